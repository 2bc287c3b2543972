"""Every key of a recipe with what it takes, its default and what it is for: ``vlm-agent keys``."""

from __future__ import annotations

import dataclasses
import textwrap
import types
import typing
from collections.abc import Sequence
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from vlm_agent.recipe.keys import OWN, SECTIONS

BEGINNING = """# Every key

Made by `vlm-agent keys --output docs/keys.md`. In a recipe all keys are one flat list, and each
has a default; here they are sorted by what reads them. `vlm-agent keys rate` shows those with
`rate` in their names.
"""

PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of a recipe.

    Attributes:
        name: As it stands in the file.
        section: What reads it, a name of :data:`vlm_agent.recipe.keys.SECTIONS`.
        takes: Which values it takes, in words.
        default: As it would stand in the file.
        help: What it is for.
    """

    name: str
    section: str
    takes: str
    default: str
    help: str


def recipe_keys() -> list[Key]:
    """All keys, in the order of their sections."""
    return [
        Key(field.name, name, *_about(section, field))
        for name, section in SECTIONS.items()
        for field in dataclasses.fields(section)
    ]


def _about(section: type, field: dataclasses.Field) -> tuple[str, str, str]:
    hint = typing.get_type_hints(section, include_extras=True)[field.name]
    default = getattr(section(), field.name)
    dumped = yaml.safe_dump(default, default_flow_style=True, width=10_000, allow_unicode=True)
    return _takes(hint), dumped.removesuffix("...\n").strip(), field.metadata.get("help", "")


def _takes(hint: Any) -> str:
    """What a type takes, in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        bounds = [
            f"{sign} {value:g}"
            for about in inner[1:]
            for rule in (about.metadata if isinstance(about, FieldInfo) else [])
            for name, sign in BOUNDS.items()
            # What fits into 64 bits need not be said.
            if (value := getattr(rule, name, None)) is not None and value < 2**63
        ]
        return " ".join([_takes(inner[0]), " and ".join(bounds)]).strip()
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _takes(part) for part in inner)
    if origin is typing.Literal:
        return ", ".join(map(str, inner))
    if origin is list:
        return f"a list of: {_takes(inner[0])}"
    if origin is dict or hint is dict:
        return "a mapping"
    return PLAIN.get(hint, "a value")


def keys_page() -> str:
    """The keys of the package's own sections as a page of Markdown."""
    found = recipe_keys()
    parts = [BEGINNING]
    for section in OWN:
        rows = [
            f"| `{key.name}` | `{_cell(key.default)}` | {_cell(key.takes)} | {_cell(key.help)} |"
            for key in found
            if key.section == section
        ]
        table = ["| key | default | takes | what it is for |", "|---|---|---|---|", *rows]
        parts.append("\n".join([f"## {section}", "", _about_section(section), "", *table, ""]))
    return "\n".join(parts)


def _about_section(name: str) -> str:
    return (SECTIONS[name].__doc__ or "").strip().splitlines()[0]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def keys_text(keys: Sequence[Key], width: int) -> str:
    """Keys for a terminal of a width in characters."""
    lines: list[str] = []
    section = ""
    for key in keys:
        if key.section != section:
            section = key.section
            lines.append(
                f"\n{section}: {(SECTIONS[section].__doc__ or '').strip().splitlines()[0]}"
            )
        lines.append(f"  {key.name}: {key.default}")
        for text in (key.help, f"takes {key.takes}"):
            lines += textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines).lstrip("\n")
