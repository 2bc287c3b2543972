"""Where templates are rendered: without a way out, without end, and without more than a page."""

from __future__ import annotations

import ctypes
import functools
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jinja2
import jinja2.nodes
import jinja2.sandbox

from vlm_agent.common.errors import UserError

LONGEST = 100_000
"""Characters of a prompt, and the largest number in a template."""

TRIED_FOR_S = 10.0
"""How long a template may take to be rendered with all kinds of facts."""


_WIDE = re.compile(r"%[^a-zA-Z%]*(\d{5,}|\*)")
"""A format of a width that no prompt needs."""


class TimeIsUpError(Exception):
    """The time is up."""


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Multiplies, and raises to a power, only as far as a prompt needs."""

    intercepted_binops = frozenset(["*", "**", "%"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = [side for side in (left, right) if isinstance(side, int)]
        if any(abs(number) > LONGEST for number in numbers):
            raise UserError(f"{operator} with a number above {LONGEST}")
        if operator == "%" and isinstance(left, str) and _WIDE.search(left):
            raise UserError(f"{left!r} makes more than {LONGEST} characters")
        if operator == "**" and any(abs(number) > 16 for number in numbers):
            raise UserError("** with a number above 16")
        sizes = [len(side) for side in (left, right) if isinstance(side, str | list | tuple)]
        if operator == "*" and numbers and sizes and abs(numbers[0]) * sizes[0] > LONGEST:
            raise UserError(f"* makes more than {LONGEST} characters")
        return super().call_binop(context, operator, left, right)


@functools.cache
def environment() -> jinja2.sandbox.SandboxedEnvironment:
    """The one in which all templates are read."""
    return _Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)


@functools.lru_cache(maxsize=32)
def compiled(source: str) -> jinja2.Template:
    """A template that can be rendered."""
    return environment().from_string(source)


def large_numbers(tree: jinja2.nodes.Node) -> list[int]:
    """Numbers in a template that no prompt needs; filters would make a text of that size."""
    return [
        node.value
        for node in tree.find_all(jinja2.nodes.Const)
        if isinstance(node.value, int) and abs(node.value) > LONGEST
    ]


@contextmanager
def limited_time() -> Iterator[None]:
    """Leave a template that does not come to an end.

    Raises:
        UserError: It has not.
    """
    thread, seconds = threading.get_ident(), TRIED_FOR_S
    is_done = threading.Event()

    def interrupt() -> None:
        if not is_done.wait(seconds):
            raised = ctypes.py_object(TimeIsUpError)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), raised)

    watcher = threading.Thread(target=interrupt, name="template", daemon=True)
    watcher.start()
    try:
        yield
    except TimeIsUpError:
        raise UserError(f"the template is not rendered within {seconds:.0f} s") from None
    finally:
        is_done.set()
        watcher.join()
