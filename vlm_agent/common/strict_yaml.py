"""YAML without its traps: a key given twice, and ``1e-4`` read as a word."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from vlm_agent.common.errors import UserError, read_text, unknown_name


class _StrictLoader(yaml.SafeLoader):
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
        values = parse_yaml(read_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected lines of 'key: value'")
    return values
