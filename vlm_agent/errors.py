"""Errors that are meant for people: one message, exit code 2, no traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can fix. The message says what, where, and what was expected.

    Commands print it without a traceback and exit with code 2 (:mod:`vlm_agent.entry`).
    """


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
