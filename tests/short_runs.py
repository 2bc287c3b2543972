"""Short runs in a small world, and what they recorded."""

from __future__ import annotations

import json
from typing import Any

from accelerate import Accelerator

from tests.worlds import ColourPool, of
from vlm_agent import Callback, PPOTrainer, Recipe, VLMPolicy
from vlm_agent.policy.building import build_policy
from vlm_agent.rollout.collector import RolloutCollector
from vlm_agent.rollout.sources import FreshEpisodes
from vlm_agent.runs.folders import RunFolders

SHARES = ("physics_share", "rendering_share", "model_share", "waiting_share")
TIMES = ("words_per_s", "rollout_s", "update_s", *SHARES)


def fresh_policy(recipe: Recipe) -> VLMPolicy:
    return build_policy(recipe.model, recipe.template, recipe.run.seed, recipe.to_dict())


def trainer_for(
    recipe: Recipe,
    policy: VLMPolicy | None = None,
    *callbacks: Callback,
    pool: Any = None,
    **accelerate: str,
) -> PPOTrainer:
    """A trainer in the world of colours; keywords are for accelerate."""
    pool = of(pool or ColourPool(recipe.rollout.num_envs), recipe)
    accelerator = Accelerator(cpu=True, **accelerate) if accelerate else None
    return PPOTrainer(
        policy or fresh_policy(recipe), pool, recipe, callbacks, accelerator=accelerator
    )


def collector_for(pool: Any, seed: int = 0, rank: int = 0, groups: int = 1) -> RolloutCollector:
    return RolloutCollector(pool, FreshEpisodes(seed), seed, rank, groups)


def rollout_of(trainer: PPOTrainer, steps: int = 8):
    """A rollout of a trainer, as it would collect one."""
    return trainer.collector.collect_rollout(trainer.actor_critic.eval(), steps)[0]


def metrics_of(recipe: Recipe) -> list[dict]:
    return [json.loads(line) for line in RunFolders(recipe).metrics.read_text().splitlines()]


def without_times(metrics: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in metrics]
