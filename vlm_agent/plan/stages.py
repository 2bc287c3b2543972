"""How long each stage of a recipe takes, and what it spends its time with."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vlm_agent.plan.costs import Costs
from vlm_agent.plan.machine import Machine
from vlm_agent.plan.memory import Memory, memory_of
from vlm_agent.plan.sizes import Sizes
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.recipe.sections import ImitationConfig

SHARED = ("demonstrations", "num_demo_episodes", "demo_noise")
"""Keys of imitation that recipes of PPO set, too: for a curriculum."""

SOLVED = 0.6
"""Share of an evaluation's episodes that are taken to be solved; the others last to the end."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage.

    Attributes:
        name: Its kind and its run's name.
        words: That are said in training.
        parts: Seconds by what is done in them.
        memory: What a process needs; ``None`` for the expert's episodes.
    """

    name: str
    words: int
    parts: dict[str, float]
    memory: Memory | None

    @property
    def seconds(self) -> float:
        """From its beginning to its end."""
        return sum(self.parts.values())

    @property
    def bottleneck(self) -> str:
        """What takes most of it."""
        return max(self.parts, key=self.parts.__getitem__)


def is_warm_start(recipe: Recipe) -> bool:
    """Whether a recipe says how to imitate."""
    defaults, ours = ImitationConfig(), recipe.imitation
    keys = vars(defaults).keys() - set(SHARED)
    return any(getattr(defaults, key) != getattr(ours, key) for key in keys)


def planned_stages(recipe: Recipe, sizes: Sizes, machine: Machine) -> list[PlannedStage]:
    """A recipe's own stages."""
    costs = Costs(recipe, sizes, machine)
    if is_warm_start(recipe):
        return [_demonstrating(costs), _imitating(costs)]
    return [_reinforcing(costs)]


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
    moving = words * _expert_constant(costs, "demonstrated_word_s") / machine.cores
    seconds = {"start": machine.constants["start_s"], "simulator": moving}
    return PlannedStage(f"demonstrations: {recipe.run.run_name}", round(words), seconds, None)


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
    parts = {
        "start": machine.constants["start_s"],
        "learning": moments / (how.sft_batch_size * processes) * step,
        "student": said / processes * costs.word,
        "evaluation": (how.dagger_rounds + 1) * _played(costs, recipe.evaluation.num_eval_episodes),
    }
    memory = memory_of(recipe, costs.sizes, machine, known)
    return PlannedStage(f"warm start: {recipe.run.run_name}", moments, parts, memory)


def _reinforcing(costs: Costs) -> PlannedStage:
    """Rollouts, all epochs of their updates, evaluations."""
    recipe, machine, ppo = costs.recipe, costs.machine, costs.recipe.ppo
    words = recipe.run.total_timesteps / machine.processes
    batch = min(ppo.batch_size, round(words))
    memory = memory_of(recipe, costs.sizes, machine, 0)
    is_kept = not costs.sizes.vision_is_trained
    update = words / batch * ppo.n_epochs * costs.learn(batch, is_kept)
    again = ppo.recompute_log_probs + (ppo.kl_coef > 0)
    if recipe.critic.value_epochs and recipe.critic.value_input == "hidden":
        again += 1
    update += again * words / batch * costs.rescore(batch, is_kept)
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
        "evaluation": evaluations * _played(costs, recipe.evaluation.num_eval_episodes),
    }
    name = f"PPO: {recipe.run.run_name}"
    return PlannedStage(name, recipe.run.total_timesteps, parts, memory)
