"""Files and folders that are whole or absent, and known to be whole."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlm_agent.common.errors import UserError

MANIFEST = "manifest.json"
"""Size and SHA-256 of every file of a folder, by name; what is for people alone is not in it."""

COUNTED = (".safetensors", ".json", ".jinja", ".txt", ".model")
"""Endings of the files that are in it; what else lies there is for people."""

RENAME_EXCHANGE = 2
"""The flag of Linux's ``renameat2`` with which two names change places in one step."""

AT_FDCWD = -100

BLOCK = 1 << 20


def hidden(path: Path) -> Path:
    """Where something is written, or deleted, that is not to be taken for what it will be."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder to write into; when it is whole, it takes the other one's place.

    There is no moment in which neither the former nor the new one is there, and none in which half
    of one is.

    Args:
        folder: Its name then.

    Raises:
        UserError: It cannot be written: the disk is full, or there is no such place.
    """
    partial, former = hidden(folder), _former(folder)
    try:
        if former.exists():  # a save was killed between two renames
            remove(former) if folder.exists() else former.rename(folder)
        remove(partial)
        partial.mkdir(parents=True)
        yield partial
        write_manifest(partial)
        for path in sorted(partial.rglob("*")):
            _settle(path)
        _settle(partial)
        _replace(partial, folder)
        _settle(folder.parent)
    except Exception as error:  # safetensors has errors of its own
        if former.exists() and not folder.exists():
            former.rename(folder)
        for left in (partial, former):
            remove(left, ignore_errors=True)
        if isinstance(error, OSError) or "os error" in str(error):
            raise cannot_write(folder, error) from error
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a file that is whole or as it was before.

    Raises:
        UserError: It cannot be written.
    """
    with whole_file(path) as partial:
        partial.write_text(text)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A hidden file to write to; when it is whole, it takes the other one's place.

    Args:
        path: Its name then.

    Raises:
        UserError: It cannot be written.
    """
    partial = hidden(path)
    try:
        yield partial
        _settle(partial)
        partial.replace(path)
        _settle(path.parent)
    except OSError as error:
        remove(partial, ignore_errors=True)
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: Exception) -> UserError:
    """One sentence with the place, and how much room there is."""
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    what = getattr(error, "strerror", None) or error
    return UserError(
        f"cannot write {str(path)!r}: {what} ({free / 1e6:.0f} MB free in {str(place)!r}); what "
        "was written before is as it was"
    )


def write_manifest(folder: Path) -> None:
    """Write down what a folder holds, so that a change is noticed."""
    files = {path.name: _digest(path) for path in sorted(folder.iterdir()) if _counts(path)}
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n")


def check_whole(folder: Path) -> None:
    """Refuse a folder one of whose files is not what was written.

    Raises:
        UserError: A file is missing, damaged or another one.
    """
    try:
        known = json.loads((folder / MANIFEST).read_text())["files"]
        for name, about in known.items():
            path = folder / name
            if not path.is_file():
                raise UserError(f"{str(folder)!r} is not whole: {name} is missing")
            size = path.stat().st_size
            if size != about["size"] or _digest(path) != about:
                raise UserError(
                    f"{str(folder)!r} is not whole: {name} is not what was written ({size} bytes, "
                    f"{about['size']} then); if you have changed it: vlm-agent seal {folder}"
                )
    except FileNotFoundError:
        raise UserError(f"{str(folder)!r} is not whole: {MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{str(folder)!r} is not whole: {MANIFEST}: {error}") from None
    except OSError as error:  # which may pass
        raise UserError(f"cannot read {str(folder)!r}: {error}") from None


def remove(path: Path, ignore_errors: bool = False) -> None:
    """Delete a file, a link or a folder, if it is there."""
    if path.is_symlink() or path.is_file():
        with contextlib.suppress(*([OSError] if ignore_errors else [])):
            path.unlink()
    elif path.exists():
        shutil.rmtree(path, ignore_errors=ignore_errors)


def _counts(path: Path) -> bool:
    return path.is_file() and path.name != MANIFEST and path.suffix in COUNTED


def _digest(path: Path) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            size += len(block)
    return {"size": size, "sha256": digest.hexdigest()}


def _settle(path: Path) -> None:
    """Have the disk hold it, and others be allowed to read what they may read else."""
    if path.is_file():
        mask = os.umask(0)
        os.umask(mask)
        path.chmod(0o666 & ~mask)  # some libraries write for the owner alone
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if path.is_file() or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise  # else it is a folder of a file system that settles none
    finally:
        os.close(handle)


def _replace(partial: Path, folder: Path) -> None:
    """Give a folder the name of another, which is deleted."""
    if not folder.is_symlink() and not folder.exists():
        partial.rename(folder)
    elif _exchange(partial, folder):
        remove(partial, ignore_errors=True)  # somebody may be reading it
    else:  # a file system that cannot; for a moment the former one has another name
        former = _former(folder)
        folder.rename(former)
        partial.rename(folder)
        remove(former, ignore_errors=True)


def _former(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.former")


def _exchange(one: Path, other: Path) -> bool:
    """Have two names change places; whether the system can."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    return bool(rename(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0)
