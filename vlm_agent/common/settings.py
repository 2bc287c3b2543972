"""How a setting is declared: one dataclass field with its default, its range and its help text.

The configuration classes of the rooms (``EnvConfig``, ``ModelConfig``, ``PPOConfig``) are pydantic
dataclasses: types and ranges are checked strictly when one is made, and every fault is reported.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import ConfigDict

STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def setting(default: Any, help: str) -> Any:
    """A dataclass field with a default (lists are copied) and the help text ``--help`` shows."""
    metadata = {"help": help}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
