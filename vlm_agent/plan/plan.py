"""``vlm-agent plan``: what a recipe will take, and what to change where it does not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_agent.plan.costs import Costs
from vlm_agent.plan.machine import Machine
from vlm_agent.plan.sizes import Sizes, sizes_of
from vlm_agent.plan.stages import PlannedStage, is_warm_start, planned_stages
from vlm_agent.recipe.command_line import load_recipe
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.studies.road import Road

GIB = 2**30

ADVICE = {
    "simulator": "more cores, or a smaller frame_size; on a GPU, num_envs of at least twice its "
    "cores",
    "decisions": "a larger num_envs: the model scores half of them at once",
    "update": "lora_layers: 8, a smaller n_epochs, or a larger micro_batch_size",
    "evaluation": "a smaller num_eval_episodes, or a larger eval_freq",
    "learning": "a smaller sft_epochs or dagger_replay, lora_layers: 8, freeze_vision: true",
    "student": "a smaller dagger_words, or a larger num_envs",
    "start": "nothing: it is short",
}
"""What takes most of the time -> what makes it less."""


TOP_LAYERS = 8
"""That are enough to train, of a deep model: what is advised."""


@dataclass(frozen=True)
class Plan:
    """What a recipe takes.

    Attributes:
        recipe: The recipe.
        sizes: Of its model and prompts.
        machine: Where it is to run.
        stages: From demonstrations to PPO, as far as they are its road.
    """

    recipe: Recipe
    sizes: Sizes
    machine: Machine
    stages: list[PlannedStage]

    @property
    def neediest(self) -> PlannedStage:
        """The stage that needs the most memory."""
        return max((s for s in self.stages if s.memory), key=lambda stage: sum(self.need(stage)))

    def need(self, stage: PlannedStage) -> tuple[float, float]:
        """Bytes of each GPU (0 without one), and of the host."""
        assert stage.memory is not None
        model, host = (sum(kinds.values()) for kinds in vars(stage.memory).values())
        if self.machine.gpu is None:
            return 0.0, model + host
        return model, host * self.machine.processes

    @property
    def fits(self) -> bool:
        """Whether its memory is there."""
        on_gpu, on_host = self.need(self.neediest)
        card = self.machine.gpu.memory if self.machine.gpu else 0.0
        return on_gpu <= card and on_host <= self.machine.memory

    def to_dict(self) -> dict[str, Any]:
        """Flat, in bytes and seconds."""
        machine, stage = self.machine, self.neediest
        on_gpu, on_host = self.need(stage)
        assert stage.memory is not None
        kinds = {**stage.memory.model, **stage.memory.host}
        result: dict[str, Any] = {
            "recipe": self.recipe.run.run_name,
            "gpu": machine.gpu.name if machine.gpu else None,
            "gpus": machine.gpus,
            "cores": machine.cores,
            "parameters": self.sizes.base,
            "trained_parameters": self.sizes.trained,
            "prompt_tokens": self.sizes.prefix + self.sizes.rest,
            "prefix_tokens": self.sizes.prefix,
            "words_per_s": self.words_per_s,
            "fits": self.fits,
            "gpu_bytes": on_gpu,
            "host_bytes": on_host,
            **{f"{kind.lower()}_bytes": size for kind, size in kinds.items()},
        }
        for planned in self.stages:
            kind = planned.name.split(":")[0].replace(" ", "_").lower()
            result[f"{kind}_s"] = planned.seconds
            result[f"{kind}_bottleneck"] = planned.bottleneck
        return result

    @property
    def words_per_s(self) -> float:
        """Of rollouts, all processes together."""
        return self.machine.processes / Costs(self.recipe, self.sizes, self.machine).word


def make_plan(config: Path, overrides: Sequence[str], machine: Machine) -> Plan:
    """Plan a recipe's road; of a recipe of imitation, its own stages.

    Args:
        config: The recipe's file, or the name of one that ships.
        overrides: ``--key value`` words.
        machine: Where it is to run.

    Raises:
        UserError: The recipe cannot be used, or its model's configuration is not to be had.
    """
    words = ["--config", str(config), *overrides]
    recipe = load_recipe(words, prog="vlm-agent plan")
    recipes = [recipe] if is_warm_start(recipe) else Road(config, overrides).recipes()
    return plan_of(recipes, machine)


def plan_of(recipes: Sequence[Recipe], machine: Machine) -> Plan:
    """Plan recipes that follow each other; the last one is what they are for."""
    stages: list[PlannedStage] = []
    for recipe in recipes:
        sizes = sizes_of(recipe)
        stages += planned_stages(recipe, sizes, machine)
    return Plan(recipe, sizes, machine, stages)


def ways_to_fit(plan: Plan) -> Iterator[str]:
    """Settings with each of which alone the recipe would fit, the cheapest first."""
    recipe, seen = plan.recipe, set()
    for section, keys in _cheaper_settings(plan):
        first, old = next(iter(keys)), getattr(recipe, section)
        new = dataclasses.replace(old, **keys)
        if new == old or first in seen:
            continue
        if plan_of([dataclasses.replace(recipe, **{section: new})], plan.machine).fits:
            seen.add(first)
            yield ", ".join(f"{key}: {_yaml(value)}" for key, value in keys.items())


def _cheaper_settings(plan: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    """Sections, and keys of them that need less memory; of one key the mildest value first."""
    recipe = plan.recipe
    batch = recipe.ppo.micro_batch_size or recipe.ppo.batch_size
    for size in _halves(batch):
        yield "ppo", {"micro_batch_size": size}
    yield "model", {"gradient_checkpointing": True}
    if plan.sizes.layers > TOP_LAYERS:
        yield "model", {"use_peft": True, "lora_layers": TOP_LAYERS}
    yield "model", {"dtype": "bfloat16"}
    yield "model", {"load_in_4bit": True, "use_peft": True, "dtype": "bfloat16"}
    yield "rollout", {"feature_cache_gb": 0.0}
    for count in _halves(recipe.rollout.num_envs):
        yield "rollout", {"num_envs": count}


def _halves(number: int) -> Iterator[int]:
    while number > 1:
        number //= 2
        yield number


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def describe(plan: Plan) -> Iterator[str]:
    """A plan as lines for people."""
    sizes, machine = plan.sizes, plan.machine
    where = f"{machine.cores} cores, {machine.memory / GIB:.0f} GiB"
    if machine.gpu:
        where = f"{machine.gpus} x {machine.gpu.name}, {where}"
    yield f"{plan.recipe.run.run_name} on {where}"
    trained = 100 * sizes.trained / max(1, sizes.base)
    yield (
        f"  model       {sizes.base / 1e6:.1f} M parameters, {sizes.trained / 1e6:.2f} M trained "
        f"({trained:.1f} %), {sizes.trunk} of {sizes.layers} layers below all that is trained"
    )
    yield (
        f"  prompt      {sizes.prefix + sizes.rest} tokens, {sizes.picture} of the picture, "
        f"{sizes.prefix} that all prompts begin with"
    )
    yield f"  rollouts    {plan.words_per_s:.1f} words/s"
    yield ""
    for stage in plan.stages:
        parts = ", ".join(f"{part} {_time(s)}" for part, s in stage.parts.items() if s >= 1)
        yield f"  {stage.name:<36}{_time(stage.seconds):>8}   {parts}"
    yield f"  {'together':<36}{_time(sum(stage.seconds for stage in plan.stages)):>8}"
    yield ""
    yield from _memory_lines(plan)
    longest = max(plan.stages, key=lambda stage: stage.seconds)
    yield (
        f"Most time goes into {longest.bottleneck} ({longest.name}). Less: "
        f"{ADVICE[longest.bottleneck]}."
    )
    if plan.recipe.env.env is not None:
        yield "The simulator is taken to be PickPlaceCan's: of this world nothing is measured."
    if machine.gpu:
        yield (
            "Of a GPU nothing is measured here: its speed is its maker's figure times the shares "
            "in vlm_agent/plan/machine.py."
        )


def _memory_lines(plan: Plan) -> Iterator[str]:
    stage = plan.neediest
    memory = stage.memory
    assert memory is not None
    on_gpu, on_host = plan.need(stage)
    machine = plan.machine
    if machine.gpu:
        yield _memory_line("each GPU", on_gpu, machine.gpu.memory, memory.model)
        yield _memory_line("host", on_host, machine.memory, memory.host)
    else:
        yield _memory_line("memory", on_host, machine.memory, {**memory.model, **memory.host})
    if not plan.fits:
        ways = list(ways_to_fit(plan))
        advice = "; or ".join(ways) if ways else "a larger machine, or a smaller model"
        yield f"It does not fit in {stage.name}. It would with {advice}."


def _memory_line(name: str, need: float, there: float, kinds: dict[str, float]) -> str:
    largest = sorted(kinds.items(), key=lambda item: -item[1])
    parts = ", ".join(f"{kind} {size / GIB:.2f}" for kind, size in largest if size > 0.005 * GIB)
    return f"  {name:<12}{need / GIB:.2f} of {there / GIB:.0f} GiB: {parts}"


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
