"""All keys of a recipe: those of the package's sections, and of sections of one's own."""

from __future__ import annotations

import dataclasses
import functools
import typing
from typing import Any

from vlm_agent.common.errors import UserError
from vlm_agent.policy.config import ModelConfig
from vlm_agent.recipe.sections import (
    CriticConfig,
    CurriculumConfig,
    EvaluationConfig,
    ImitationConfig,
    PPOConfig,
    PromptConfig,
    RolloutConfig,
    RunConfig,
    TrackingConfig,
)
from vlm_agent.world.config import EnvConfig

SECTIONS: dict[str, type] = {
    "env": EnvConfig,
    "prompt": PromptConfig,
    "model": ModelConfig,
    "run": RunConfig,
    "rollout": RolloutConfig,
    "ppo": PPOConfig,
    "critic": CriticConfig,
    "curriculum": CurriculumConfig,
    "evaluation": EvaluationConfig,
    "tracking": TrackingConfig,
    "imitation": ImitationConfig,
}
"""Name of a section, as an attribute of ``Recipe`` -> its class."""

OWN = tuple(SECTIONS)
"""The names of the package's own sections."""


def register_section(name: str, section: type) -> None:
    """Let recipes have further keys: the fields of a dataclass.

    Args:
        name: ``recipe.extra[name]`` is the section of a recipe.
        section: A pydantic dataclass; :data:`vlm_agent.common.settings.STRICT` and
            :func:`vlm_agent.common.settings.setting` make it as strict as the package's own.

    Raises:
        UserError: The name, or one of its keys, is taken.
    """
    taken = key_types().keys() & {field.name for field in dataclasses.fields(section)}
    if name in SECTIONS or taken:
        what = ", ".join(sorted(taken)) or name
        raise UserError(f"the section {name!r}: there is {what} already")
    SECTIONS[name] = section


def key_types() -> dict[str, Any]:
    """Every key of a recipe and its type."""
    return {key: hint for section in SECTIONS.values() for key, hint in _types(section).items()}


@functools.cache
def _types(section: type) -> dict[str, Any]:
    """The keys of a section; to read the types takes longer than all the rest of a recipe."""
    hints = typing.get_type_hints(section)
    return {field.name: hints[field.name] for field in dataclasses.fields(section)}


def default_settings() -> dict[str, Any]:
    """Every key of a recipe and its default."""
    defaults: dict[str, Any] = {}
    for section in SECTIONS.values():
        defaults |= dataclasses.asdict(section())
    return defaults
