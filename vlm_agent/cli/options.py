"""Values of options, checked as they are read."""

from __future__ import annotations

import argparse
from pathlib import Path

from vlm_agent.common.errors import UserError


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text!r}")
    return int(text)


def boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text.lower() == "true"


def check_writable(path: Path | None, option: str = "--json") -> None:
    """Find out now whether the result can be written, not when it is there."""
    if path:
        if path.is_dir():
            raise UserError(f"{option} {path}: is a folder; name a file")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            was_there = path.exists()
            path.touch()
            if not was_there:
                path.unlink()  # an empty file would look like a result
        except OSError as error:
            raise UserError(f"{option} {path}: cannot be written: {error}") from None


def add_trust(parser: argparse.ArgumentParser) -> None:
    """``--trust_modules``: whether what a file names may be imported."""
    parser.add_argument(
        "--trust_modules",
        type=boolean,
        nargs="?",
        const=True,
        default=False,
        metavar="true|false",
        help="import the modules that a policy or an episode names (default: false)",
    )


def check_new(path: Path, option: str) -> None:
    """Refuse to write a folder where there is something.

    Raises:
        UserError: Naming the option.
    """
    if path.exists():
        raise UserError(f"{option} {path}: is there already; name a new folder")
