"""What an update aims at: advantages of a rollout's words, and the critic's targets."""

from __future__ import annotations

import numpy as np

from vlm_agent.distributed.reductions import concatenate_ranks, normalize_over_ranks
from vlm_agent.ppo.advantages import generalized_advantages
from vlm_agent.ppo.groups import group_advantages
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.rollout.buffer import RolloutBuffer


def estimate_targets(
    recipe: Recipe, rollout: RolloutBuffer, rewards_TN: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Advantages and returns, float64 (T, N), as the recipe wants them; and what is logged of them.

    Args:
        recipe: The run.
        rollout: What this rank collected.
        rewards_TN: Its rewards, which may have been lowered.
    """
    if recipe.ppo.advantage == "group":
        return _of_groups(recipe, rollout, rewards_TN)
    return *_of_critic(recipe, rollout, rewards_TN), {}


def _of_critic(
    recipe: Recipe, rollout: RolloutBuffer, rewards_TN: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """By a critic, whose targets may have a lambda of their own."""
    watched = (
        rewards_TN,
        rollout.values,
        rollout.next_values,
        rollout.terminated,
        rollout.truncated,
        recipe.ppo.gamma,
    )
    lost_TN, value_lambda = rollout.lost, recipe.critic.value_lambda
    advantages_TN, returns_TN = generalized_advantages(*watched, recipe.ppo.gae_lambda, lost_TN)
    if value_lambda is not None:
        _, returns_TN = generalized_advantages(*watched, value_lambda, lost_TN)
    if recipe.ppo.normalize_advantage:
        advantages_TN[~lost_TN] = normalize_over_ranks(advantages_TN[~lost_TN])
    return advantages_TN, returns_TN


def _of_groups(
    recipe: Recipe, rollout: RolloutBuffer, rewards_TN: np.ndarray
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Within this process's groups. There is no critic: its targets are what it says."""
    ppo = recipe.ppo
    watched = rewards_TN, rollout.ended, rollout.valid
    advantages_TN, deviations, flat = group_advantages(
        *watched, ppo.group_size, ppo.group_baseline, ppo.group_std
    )
    logged = {
        "group_deviation": float(concatenate_ranks(deviations).mean()),
        "flat_groups": float(concatenate_ranks(flat).mean()),
    }
    return advantages_TN, rollout.values, logged
