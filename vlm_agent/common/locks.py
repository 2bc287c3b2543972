"""Locks that other processes see, and that end with the process that holds them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vlm_agent.common.errors import UserError

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF)

logger = logging.getLogger(__name__)

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
    if not _try(file):
        file.close()
        raise UserError(otherwise)
    _HELD[path] = file


def release(path: Path) -> None:
    """Let others have a lock, if this process has it."""
    if file := _HELD.pop(path.resolve(), None):
        file.close()


def is_free(path: Path) -> bool:
    """Whether no other process holds a lock."""
    if path.resolve() in _HELD or not path.is_file():
        return True
    with path.open("r+") as file:  # on a network's file system a lock needs a file to write to
        return _try(file)


def _try(file: IO[str]) -> bool:
    """Whether a lock was to be had; true where the file system has none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        logger.warning("this file system has no locks: nobody keeps a second process away")
    return True
