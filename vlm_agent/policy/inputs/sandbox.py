"""Where templates are rendered: without a way out, without end, and without more than a page."""

from __future__ import annotations

import ctypes
import functools
import re
import threading
from collections.abc import Iterator, Mapping
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


def _short_range(*bounds: int) -> range:
    numbers = range(*bounds)
    if len(numbers) > LONGEST_LOOP:
        raise UserError(f"a range of {len(numbers)} numbers; there may be {LONGEST_LOOP}")
    return numbers


@functools.cache
def environment() -> jinja2.sandbox.SandboxedEnvironment:
    """The one in which all templates are read."""
    made = _Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.globals["range"] = _short_range
    return made


@functools.lru_cache(maxsize=32)
def compiled(source: str) -> jinja2.Template:
    """A template that can be rendered."""
    return environment().from_string(source)


METHODS = ("upper", "lower", "title", "capitalize", "strip", "startswith", "endswith", "index")
"""Of texts and lists, those that make nothing longer."""

FILTERS = (
    *METHODS, "join", "length", "count", "first", "last", "int", "float", "round", "abs", "trim",
    "default", "list", "sort", "reverse", "string", "unique",
)  # fmt: skip

MOST_LOOPS = 2
"""Within each other, each of at most :data:`LONGEST_LOOP`."""

LONGEST_LOOP = 1000


def rendered(source: str, values: Mapping[str, Any]) -> str:
    """A template's text, left when it becomes too long.

    Raises:
        UserError: It does.
    """
    pieces, length = [], 0
    for piece in compiled(source).generate(values):
        length += len(piece)
        if length > LONGEST:
            raise UserError(f"a prompt has more than {LONGEST} characters")
        pieces.append(piece)
    return "".join(pieces).strip()


def unusual_parts(tree: jinja2.nodes.Node) -> list[str]:
    """What no prompt needs, and what would make it long, or take long, in an episode's middle."""
    found = []
    for call in tree.find_all(jinja2.nodes.Call):
        node = call.node
        if isinstance(node, jinja2.nodes.Getattr) and node.attr in METHODS:
            continue
        if not (isinstance(node, jinja2.nodes.Name) and node.name in ("range", "loop")):
            name = getattr(node, "attr", getattr(node, "name", "?"))
            found.append(f"{name}(...) is not to be had; there are {', '.join(METHODS)}")
    found += [
        f"the filter {node.name!r} is not to be had; there are {', '.join(FILTERS)}"
        for node in tree.find_all(jinja2.nodes.Filter)
        if node.name not in FILTERS
    ]
    joins = [node for node in tree.find_all(jinja2.nodes.Filter) if node.name == "join"]
    if any(
        inner is not node and inner.name == "join"
        for node in joins
        for inner in node.find_all(jinja2.nodes.Filter)
    ):
        found.append("join of what was joined")
    if _loops(tree) > MOST_LOOPS:
        found.append(f"loops lie in each other more than {MOST_LOOPS} deep")
    return found


def _loops(node: jinja2.nodes.Node) -> int:
    inner = max((_loops(child) for child in node.iter_child_nodes()), default=0)
    return inner + isinstance(node, jinja2.nodes.For)


def large_numbers(tree: jinja2.nodes.Node) -> list[float]:
    """Numbers in a template that no prompt needs; filters would make a text of that size."""
    return [
        node.value
        for node in tree.find_all(jinja2.nodes.Const)
        if isinstance(node.value, int | float) and abs(node.value) > LONGEST
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
