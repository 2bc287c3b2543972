"""Errors that are meant for people: one message, exit code 2, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path


class UserError(Exception):
    """Something the user can fix. The message says what, where, and what was expected.

    Commands print it without a traceback and exit with code 2 (:mod:`vlm_agent.cli.entry`).
    """


class TrainingError(Exception):
    """A run that cannot go on. The message says where it stopped and what to try.

    Commands print it without a traceback and exit with code 1.
    """


class NotFiniteError(TrainingError):
    """What a policy says of some observations is not finite.

    Attributes:
        rows: Which of them.
    """

    def __init__(self, message: str, rows: Sequence[int]) -> None:
        super().__init__(message)
        self.rows = list(rows)


class Stopped(Exception):  # noqa: N818 (nothing has gone wrong)
    """Somebody has asked a run to end, and it has come to a place where it can.

    Attributes:
        reason: The name of a signal, or the setting that is the limit.
        folder: The checkpoint from which it can be gone on with, if it has one.
    """

    def __init__(self, reason: str, folder: Path | None = None) -> None:
        super().__init__(reason)
        self.reason, self.folder = reason, folder


def nearest(name: str, valid: Iterable[str], limit: int = 3) -> list[str]:
    """The valid names closest to ``name`` (case-insensitive), best first, possibly none."""
    by_lower = {v.lower(): v for v in valid}
    matches = difflib.get_close_matches(name.lower(), list(by_lower), n=limit, cutoff=0.5)
    return [by_lower[match] for match in matches]


def unknown_name(kind: str, name: object, valid: Iterable[str]) -> str:
    """One sentence for a name that does not exist: the nearest valid ones, or all of them."""
    valid = sorted(valid)
    close = nearest(str(name), valid)
    if close:
        return f"unknown {kind} {name!r}; did you mean {' or '.join(repr(c) for c in close)}?"
    return f"unknown {kind} {name!r}; valid names are: {', '.join(valid)}"


def read_text(path: Path, largest: int | None = None) -> str:
    """The text of a file that a user wrote.

    Args:
        path: The file.
        largest: How many bytes it may have.

    Raises:
        UserError: It is not UTF-8, or larger.
    """
    if largest is not None and (size := path.stat().st_size) > largest:
        raise UserError(f"{path}: {size} bytes, and at most {largest} are read")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8: {error}") from None
