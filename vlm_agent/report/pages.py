"""Parts of a page that a command writes."""

from __future__ import annotations

from pathlib import Path

from vlm_agent.common.errors import UserError


def replace_between(page: Path, begin: str, end: str, text: str) -> None:
    """Put a text between two marks of a page, in place of what stands there.

    Raises:
        UserError: The page has not got them.
    """
    before, mark, rest = page.read_text().partition(begin)
    _, last, after = rest.partition(end)
    if not mark or not last:
        raise UserError(f"{page}: expected the lines {begin!r} and {end!r}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")
