"""A headless Chromium for tests of pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def browser() -> Iterator[Any]:
    """Playwright's handle of a browser of this machine; the test is skipped where there is none."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        missing = "no Chromium here (Debian: apt-get install chromium)"
        pytest.fail(missing) if os.environ.get("NEEDS_BROWSER") else pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield started
        finally:
            started.close()


@contextmanager
def page_without_errors(started: Any, **options: Any) -> Iterator[Any]:
    """A new page; what it says of errors fails the test in the end."""
    page = started.new_page(**options)
    errors: list[str] = []
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfailed", lambda request: errors.append(f"failed: {request.url}"))
    outside = "the page asks for "
    page.on("request", lambda asked: errors.append(outside + asked.url) if _leaves(asked) else None)
    yield page
    page.close()
    assert not errors


def _leaves(asked: Any) -> bool:
    return asked.url.startswith("http") and "//127.0.0.1" not in asked.url


def serious_findings(page: Any) -> list[str]:
    """What axe-core finds serious or critical."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['html'][:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
