"""``make_env``: an environment from a recipe's section, or from a task's name."""

from __future__ import annotations

import dataclasses
from typing import Any

from vlm_agent.common.settings import check_names
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.robosuite.env import LanguageActionEnv


def make_env(
    env: EnvConfig | str = "PickPlaceCan", gamma: float = 0.99, **settings: Any
) -> LanguageActionEnv:
    """A Gymnasium environment whose actions are words.

    Args:
        env: ``recipe.env``, or the name of a robosuite task.
        gamma: Discount of the progress reward; the learner's own.
        settings: Single settings of :class:`EnvConfig`, e.g. ``horizon=60``.

    Raises:
        UserError: There is no such task or setting.
    """
    check_names(EnvConfig, settings)
    config = EnvConfig(task=env) if isinstance(env, str) else env
    return LanguageActionEnv(dataclasses.replace(config, **settings), gamma)
