"""How long each stage of a recipe takes, and what it spends its time with."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vlm_agent.plan.costs import Costs
from vlm_agent.plan.machine import Machine
from vlm_agent.plan.memory import Memory, kept_share, memory_of
from vlm_agent.plan.sizes import Sizes
from vlm_agent.recipe.recipe import Recipe

SOLVED = 0.6
"""Share of an evaluation's episodes that are taken to be solved; the others last to the end."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage.

    Attributes:
        name: Its kind and its run's name.
        parts: Seconds by what is done in them.
        memory: What a process needs; ``None`` for the expert's episodes.
    """

    name: str
    parts: dict[str, float]
    memory: Memory | None

    @property
    def seconds(self) -> float:
        """From its beginning to its end."""
        return sum(self.parts.values())

    @property
    def running(self) -> float:
        """Without what comes once."""
        return self.seconds - self.parts["start"]

    @property
    def bottleneck(self) -> str:
        """What takes most of it."""
        return max(self.parts, key=self.parts.__getitem__)


def planned_stages(
    recipe: Recipe, sizes: Sizes, machine: Machine, is_warm_start: bool
) -> list[PlannedStage]:
    """A recipe's own stages."""
    costs = Costs(recipe, sizes, machine)
    return [_demonstrating(costs), _imitating(costs)] if is_warm_start else [_reinforcing(costs)]


def _expert_constant(costs: Costs, name: str) -> float:
    """What was measured of the expert, with words of one step or of several."""
    words = "scaled" if costs.recipe.env.words == "scaled" else "eight"
    return float(costs.machine.constants[f"{name}_{words}"])


def _episode_words(costs: Costs) -> float:
    """Of an episode that is solved."""
    return min(costs.recipe.env.horizon, _expert_constant(costs, "episode_words"))


def _played(costs: Costs, episodes: int) -> float:
    """Seconds of an evaluation, by a policy that is neither good nor bad."""
    words = SOLVED * _episode_words(costs) + (1 - SOLVED) * costs.recipe.env.horizon
    return episodes * words * costs.word / costs.machine.processes


def _demonstrating(costs: Costs) -> PlannedStage:
    recipe, machine = costs.recipe, costs.machine
    words = recipe.imitation.num_demo_episodes * _episode_words(costs)
    workers = min(machine.cores, recipe.rollout.num_workers or machine.cores)
    moving = words * _expert_constant(costs, "demonstrated_word_s") / workers
    seconds = {"start": machine.constants["start_s"], "simulator": moving}
    return PlannedStage(f"demonstrations: {recipe.run.run_name}", seconds, None)


def _imitating(costs: Costs) -> PlannedStage:
    """Passes over demonstrations, then over what the student came into, and the critic."""
    recipe, machine = costs.recipe, costs.machine
    how, processes = recipe.imitation, machine.processes
    known = round(how.num_demo_episodes * _episode_words(costs))
    moments = known * how.sft_epochs
    for _ in range(how.dagger_rounds):
        moments += round((known * how.dagger_replay + how.dagger_words) * how.dagger_epochs)
        known += how.dagger_words
    step = costs.learn(how.sft_batch_size, is_kept=False)
    last = max(how.dagger_words, 2 * recipe.env.horizon * costs.num_envs * processes)
    said = how.dagger_rounds * how.dagger_words + last
    steps = moments / (how.sft_batch_size * processes)
    parts = {
        "start": machine.constants["start_s"],
        "learning": steps * step,
        "network": steps * costs.reducing,
        "student": said / processes * costs.word,
        "evaluation": (how.dagger_rounds + 1) * _played(costs, recipe.evaluation.num_eval_episodes),
    }
    memory = memory_of(recipe, costs.sizes, machine, known)
    return PlannedStage(f"warm start: {recipe.run.run_name}", parts, memory)


def _reinforcing(costs: Costs) -> PlannedStage:
    """Rollouts, all epochs of their updates, evaluations."""
    recipe, machine, ppo = costs.recipe, costs.machine, costs.recipe.ppo
    words = recipe.run.total_timesteps / machine.processes
    batch = max(1, min(ppo.batch_size, round(words)))
    memory = memory_of(recipe, costs.sizes, machine, 0)
    kept = kept_share(recipe, costs.sizes)
    again_and_again = words / batch * ppo.n_epochs
    update = again_and_again * kept * costs.learn(batch, is_kept=True)
    update += again_and_again * (1 - kept) * costs.learn(batch, is_kept=False)
    again = ppo.recompute_log_probs + (ppo.kl_coef > 0)
    if recipe.critic.value_epochs and recipe.critic.value_input == "hidden":
        again += 1
    update += again * words / batch * costs.rescore(batch, is_kept=kept == 1)
    # At the beginning, now and then, at the end.
    evaluations = 1 + math.ceil(recipe.run.total_timesteps / recipe.evaluation.eval_freq)
    rollout = {"simulator": words * costs.moving, "decisions": words * costs.deciding}
    if costs.is_overlapped:
        longer = max(rollout, key=rollout.__getitem__)
        rollout = {longer: rollout[longer]}
    parts = {
        "start": machine.constants["start_s"],
        **rollout,
        "update": update,
        "network": again_and_again * costs.reducing,
        "evaluation": evaluations * _played(costs, recipe.evaluation.num_eval_episodes),
    }
    name = f"PPO: {recipe.run.run_name}"
    return PlannedStage(name, parts, memory)
