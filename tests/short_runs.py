"""Short runs in a small world, and what they recorded."""

from __future__ import annotations

import json

from accelerate import Accelerator

from tests.worlds import ColourPool
from vlm_agent.policy.building import build_policy
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.ppo.trainer import PPOTrainer
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.runs.folders import RunFolders

SHARES = ("physics_share", "rendering_share", "model_share", "waiting_share")
TIMES = ("words_per_s", "rollout_s", "update_s", *SHARES)


def fresh_policy(recipe: Recipe) -> VLMPolicy:
    return build_policy(recipe.model, recipe.template, recipe.run.seed, recipe.to_dict())


def trainer_for(
    recipe: Recipe,
    policy: VLMPolicy | None = None,
    start: VLMPolicy | None = None,
    **accelerate: str,
) -> PPOTrainer:
    RunFolders(recipe).prepare(recipe)
    pool = ColourPool(recipe.rollout.num_envs)
    accelerator = Accelerator(cpu=True, **accelerate)
    return PPOTrainer(recipe, accelerator, policy or fresh_policy(recipe), pool, start)


def metrics_of(recipe: Recipe) -> list[dict]:
    return [json.loads(line) for line in RunFolders(recipe).metrics.read_text().splitlines()]


def without_times(metrics: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in metrics]
