"""YAML without its traps: keys given twice, numbers and words that are read as something else.

``1e-4`` is a number. What YAML 1.1 reads as another number than it looks, or as a truth value, is
refused with what was probably meant. A file of aliases that grows when it is read is none.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from vlm_agent.common.errors import UserError, read_text, unknown_name

LARGEST_FILE = 2**20

DEEPEST = 20

LONGEST_NUMBER = 40
"""Digits."""

AMBIGUOUS = {
    r"[-+]?0\d+": "a number does not begin with 0: write {decimal}, or quotes around a text",
    r"[-+]?\d+(:\d+)+(\.\d*)?": "write seconds as one number, or quotes around a text",
    r"[-+]?0[xXbBoO][\da-fA-F_]+": "write a decimal number, or quotes around a text",
    r"[-+]?\d[\d_]*_[\d_.]*": "write {decimal}, or quotes around a text",
    r"(?i:yes|no|on|off|y|n)": "write true or false, or quotes around a text",
}
"""Plain scalars that look like one thing and are read as another -> what to write."""


class _StrictLoader(yaml.SafeLoader):
    depth = anchored = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Nodes as deep as they may be, and no aliases within what an alias may repeat."""
        is_alias = self.check_event(yaml.AliasEvent)
        if is_alias and self.anchored:
            raise UserError(f"*{self.peek_event().anchor}: an alias within an anchor's value")
        is_anchored = not is_alias and self.peek_event().anchor is not None
        self.depth += 1
        self.anchored += is_anchored
        if self.depth > DEEPEST:
            raise UserError(f"values lie in each other more than {DEEPEST} deep")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1
            self.anchored -= is_anchored

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """What a scalar without quotes is."""
        if kind is yaml.ScalarNode and implicit[0]:
            if len(value) > LONGEST_NUMBER and value.lstrip("+-").isdecimal():
                raise UserError(f"{value[:9]}...: a number of {len(value)} digits")
            for pattern, advice in AMBIGUOUS.items():
                if re.fullmatch(pattern, value):
                    sign = "-" if value.startswith("-") else ""
                    decimal = sign + (value.lstrip("+-0").replace("_", "") or "0")
                    raise UserError(f"{value}: {advice.format(decimal=decimal)}")
        return super().resolve(kind, value, implicit)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise UserError(f"{key}: the key is given twice")
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text; raises ``yaml.YAMLError`` or ``UserError``."""
    return yaml.load(text, _StrictLoader)  # noqa: S506 (a SafeLoader)


def read_yaml(path: Path) -> dict[str, Any]:
    """A file of ``key: value`` lines as a dictionary.

    Raises:
        UserError: No such file, no valid YAML, or no mapping.
    """
    if not path.is_file():
        siblings = [str(p) for p in path.parent.glob("[!.]*.yaml")] if path.parent.is_dir() else []
        hint = unknown_name("recipe", str(path), siblings) if siblings else "no such file"
        raise UserError(f"{path}: {hint}")
    try:
        values = parse_yaml(read_text(path, LARGEST_FILE))
    except UserError as error:
        raise UserError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected lines of 'key: value'")
    return values
