"""What critics learn at the end of a warm start."""

from __future__ import annotations

from accelerate import Accelerator

from vlm_agent.ppo.advantages import returns_of_ended_episodes
from vlm_agent.ppo.critic import ActorCritic, fit_critic
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.rollout.buffer import RolloutBuffer
from vlm_agent.rollout.samples import Samples

VALUE_EPOCHS = 20
"""Passes of the value head over the student's returns; they cost next to nothing."""


def learn_returns(
    actor_critic: ActorCritic, accelerator: Accelerator, recipe: Recipe, rollout: RolloutBuffer
) -> dict[str, float]:
    """Have critics learn the returns of the episodes that ended in a rollout.

    Args:
        actor_critic: Its critic learns, and the policy's own value head.
        accelerator: Talks to the other processes.
        recipe: The run.
        rollout: Of the student.

    Returns:
        How much of the returns' variance each explains then, by the name of the figure.
    """
    returns_TN = returns_of_ended_episodes(
        rollout.rewards,
        rollout.values,
        rollout.next_values,
        rollout.terminated,
        rollout.truncated,
        recipe.ppo.gamma,
        rollout.lost,
    )

    def fit(judge: ActorCritic) -> float:
        return fit_critic(
            judge,
            accelerator,
            Samples(judge, rollout, accelerator.autocast),
            returns_TN,
            recipe=recipe,
            epochs=VALUE_EPOCHS,
            learning_rate=recipe.critic.value_learning_rate,
        )

    explained = {"explained_variance": fit(actor_critic)}
    if actor_critic.state_critic is not None:  # the policy's own head learns too
        explained["explained_variance_of_value_head"] = fit(ActorCritic(actor_critic.policy))
    return explained
