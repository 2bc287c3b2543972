"""How a setting is declared: one dataclass field with its default, its range and its help text.

The sections of a recipe (``EnvConfig``, ``ModelConfig``, ``PPOConfig``, …) are pydantic
dataclasses: types and ranges are checked strictly when one is made, every fault is reported, and a
setting that does not exist is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from os.path import expanduser
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field

from vlm_agent.common.errors import UserError, unknown_name

STRICT = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Natural = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1, lt=2**63)]
UserPath = Annotated[str, AfterValidator(expanduser)]
Seconds = Annotated[float, Field(gt=0, le=1e8)]


def setting(default: Any, help: str) -> Any:
    """A dataclass field with a default (copied if it can change) and the text ``--help`` shows."""
    metadata = {"help": help}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def known_settings(section: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that are settings of a section; what an older version had too is left.

    Settings that are missing take their defaults, so that what an older version wrote still loads.
    """
    names = [field.name for field in dataclasses.fields(section)]
    return {name: values[name] for name in names if name in values}


def check_names(section: type, names: Iterable[str]) -> None:
    """Refuse settings that a section does not have.

    Raises:
        UserError: Naming each with the nearest ones.
    """
    known = [field.name for field in dataclasses.fields(section)]
    if unknown := [unknown_name("setting", name, known) for name in names if name not in known]:
        raise UserError("; ".join(unknown))
