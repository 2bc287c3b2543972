"""Locks that other processes see, and that end with the process that holds them."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vlm_agent.common.errors import UserError

_HELD: dict[Path, IO[str]] = {}
"""What this process has, until it ends."""


@contextlib.contextmanager
def locked(path: Path, otherwise: str | None = None) -> Iterator[None]:
    """Hold a lock for a while.

    Args:
        path: The lock's file.
        otherwise: What to say where it is held; without it, wait.

    Raises:
        UserError: It is held.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if otherwise else 0))
        except BlockingIOError:
            raise UserError(str(otherwise)) from None
        yield


def hold(path: Path, otherwise: str) -> None:
    """Have a lock until this process ends; once more if it has it already.

    Args:
        path: The lock's file.
        otherwise: What to say where another process holds it.

    Raises:
        UserError: One does.
    """
    path = path.resolve()
    if path in _HELD:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(otherwise) from None
    _HELD[path] = file


def is_free(path: Path) -> bool:
    """Whether no other process holds a lock."""
    if path.resolve() in _HELD or not path.is_file():
        return True
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
