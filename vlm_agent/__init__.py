"""vlm-agent: fine-tune a vision-language model with PPO so that it moves a robot arm with words.

Importing the package registers the ``vlm_agent/…`` environments with gymnasium. The public names
are imported when they are asked for, so that a command that needs no torch does not wait for it.
"""

from __future__ import annotations

import os
import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

import gymnasium

if TYPE_CHECKING:
    from vlm_agent.evaluation.compare import compare
    from vlm_agent.evaluation.evaluate import Evaluation, evaluate
    from vlm_agent.imitation.trainer import ImitationTrainer
    from vlm_agent.policy.policy import VLMPolicy
    from vlm_agent.ppo.trainer import PPOTrainer
    from vlm_agent.recipe.recipe import Recipe
    from vlm_agent.runs.callbacks import Callback
    from vlm_agent.world.env import ExpertEnv
    from vlm_agent.world.pool.pool import EnvPool
    from vlm_agent.world.registry import make_env

__version__ = "0.2.0"

__all__ = [
    "Callback",
    "EnvPool",
    "Evaluation",
    "ExpertEnv",
    "ImitationTrainer",
    "PPOTrainer",
    "Recipe",
    "VLMPolicy",
    "compare",
    "evaluate",
    "make_env",
]

_PLACES = {
    "Callback": "runs.callbacks",
    "EnvPool": "world.pool.pool",
    "Evaluation": "evaluation.evaluate",
    "ExpertEnv": "world.env",
    "ImitationTrainer": "imitation.trainer",
    "PPOTrainer": "ppo.trainer",
    "Recipe": "recipe.recipe",
    "VLMPolicy": "policy.policy",
    "compare": "evaluation.compare",
    "evaluate": "evaluation.evaluate",
    "make_env": "world.registry",
}


def __getattr__(name: str) -> Any:
    """Import a public name's room when it is first asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module 'vlm_agent' has no attribute {name!r}")
    return getattr(import_module(f"vlm_agent.{_PLACES[name]}"), name)


def _let_threads_sleep() -> None:
    """Have torch's threads sleep while they wait for each other.

    By default they spin, and where anything else wants a core, as environments do, a small model's
    forward pass takes ten times as long. The variable is read when torch is imported.
    """
    if os.environ.get("OMP_WAIT_POLICY"):
        return
    if "torch" in sys.modules:
        warnings.warn(
            "torch was imported before vlm_agent, so its threads spin while they wait, and "
            "training beside environments can be ten times slower: import vlm_agent first, or set "
            "OMP_WAIT_POLICY=PASSIVE in the environment",
            stacklevel=3,
        )
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


_let_threads_sleep()

for _name, _kwargs in {
    "LanguageAction": {},
    "PickPlaceCan": {"task": "PickPlaceCan"},
    "Lift": {"task": "Lift"},
}.items():
    gymnasium.register(
        id=f"vlm_agent/{_name}-v0",
        entry_point="vlm_agent.world.env:LanguageActionEnv",
        kwargs=_kwargs,
    )
