"""The site has a copy of each file of the repository that a page links to."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Have links that lead out of docs/ lead to the copy, under ``files/``."""
    folder = posixpath.dirname(page.file.src_uri)

    def moved(found: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join("docs", folder, found[1]))
        if place.startswith("docs/"):
            return found[0]
        if not (ROOT / place).is_file():
            raise PluginError(f"{page.file.src_uri}: {found[1]}: there is no file {place}")
        copy = f"files/{place}" + (".txt" if Path(place).suffix in (".md", ".py", "") else "")
        if files.get_file_from_path(copy) is None:
            files.append(File.generated(config, copy, abs_src_path=str(ROOT / place)))
        return f"]({posixpath.relpath(copy, folder or '.')})"

    return LINK.sub(moved, markdown)


ROLE = re.compile(r":(?:class|func|data|meth|attr|mod):(?=<code>|<a )")


def on_page_content(html: str, **_: Any) -> str:
    """Leave out the roles of docstrings, which Sphinx would read: code is code without them."""
    return ROLE.sub("", html)
