"""``vlm-agent plan``: what a recipe will take, and what to change where it does not fit."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_agent.common.errors import UserError
from vlm_agent.plan.costs import Costs
from vlm_agent.plan.machine import GIB, Machine
from vlm_agent.plan.sizes import Sizes, sizes_of
from vlm_agent.plan.stages import PlannedStage, planned_stages
from vlm_agent.recipe.command_line import load_recipe
from vlm_agent.recipe.recipe import Recipe, make_recipe, read_recipe, recipe_file
from vlm_agent.recipe.sections import ImitationConfig
from vlm_agent.studies.road import ITS_KEYS, OWN_KEYS, start_recipe

OF_CURRICULA = ("demonstrations", "num_demo_episodes", "demo_noise")
"""Keys of imitation that recipes of PPO set, too."""

ADVICE = {
    "simulator": "more cores, or a smaller frame_size; on a GPU, num_envs of at least twice its "
    "cores",
    "decisions": "a larger num_envs: the model scores half of them at once",
    "update": "lora_layers: 8, a smaller n_epochs, or a larger micro_batch_size",
    "evaluation": "a smaller num_eval_episodes, or a larger eval_freq",
    "learning": "a smaller sft_epochs or dagger_replay, lora_layers: 8, freeze_vision: true",
    "student": "a smaller dagger_words, or a larger num_envs",
    "network": "use_peft: true, lora_layers: 8, a larger batch_size, or a faster network",
    "start": "nothing: it is short",
}
"""What takes most of the time -> what makes it less."""


TOP_LAYERS = 8
"""That are enough to train, of a deep model: what is advised."""


@dataclass(frozen=True)
class Plan:
    """What a recipe takes.

    Attributes:
        recipes: Those that follow each other: of a warm start, of PPO, or both.
        begins_warm: Whether the first is of a warm start.
        sizes: Of the last one's model and prompts.
        machine: Where it is to run.
        stages: From demonstrations to PPO, as far as they are its road.
    """

    recipes: list[Recipe]
    begins_warm: bool
    sizes: Sizes
    machine: Machine
    stages: list[PlannedStage]

    @property
    def recipe(self) -> Recipe:
        """What all is for."""
        return self.recipes[-1]

    @property
    def neediest(self) -> PlannedStage:
        """The stage that needs the most of the memory that there is."""
        return max((stage for stage in self.stages if stage.memory), key=self.fullness)

    def fullness(self, stage: PlannedStage) -> float:
        """How much of the memory a stage needs, of the GPU's or the host's; above 1, too much."""
        on_gpu, on_host = self.need(stage)
        card = self.machine.gpu.memory if self.machine.gpu else 1.0
        return max(on_gpu / card, on_host / self.machine.memory)

    def need(self, stage: PlannedStage) -> tuple[float, float]:
        """Bytes of each GPU (0 without one), and of the host."""
        assert stage.memory is not None
        model, host = (sum(kinds.values()) for kinds in vars(stage.memory).values())
        if self.machine.gpu is None:
            return 0.0, model + host
        return model, host * self.machine.on_node

    @property
    def fits(self) -> bool:
        """Whether its memory is there."""
        return self.fullness(self.neediest) <= 1

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
            "nodes": machine.nodes,
            "processes": machine.processes,
            "scaling": self.scaling,
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
    def scaling(self) -> float:
        """How much faster iterations are than in one process, with its share of a node."""
        is_warm_start = self.begins_warm and len(self.recipes) == 1
        alone = self.machine.alone()
        *_, stage = planned_stages(self.recipe, self.sizes, alone, is_warm_start)
        return stage.running / self.stages[-1].running

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
    path = recipe_file(config).resolve()
    recipe = load_recipe(["--config", str(path), *overrides], prog="vlm-agent plan")
    start = start_recipe(path, recipe)
    if start is None:
        return plan_of([recipe], machine, begins_warm=imitates(path))
    # Each recipe has its own name and start; what else is overridden is for both.
    shared = [f"--{key}={json.dumps(recipe.to_dict()[key])}" for key in _overridden(overrides)]
    first = load_recipe(["--config", str(start), *shared], prog="vlm-agent plan")
    return plan_of([first, recipe], machine, begins_warm=True)


def _overridden(overrides: Sequence[str]) -> Iterator[str]:
    """The keys of ``--key value`` words that are for both recipes of a road."""
    for word in overrides:
        key = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and key not in (*OWN_KEYS, *ITS_KEYS):
            yield key


def imitates(config: Path) -> bool:
    """Whether a recipe's file says how to imitate."""
    own = {field.name for field in dataclasses.fields(ImitationConfig)} - set(OF_CURRICULA)
    return bool(own & read_recipe(config)[0].keys())


def plan_of(recipes: Sequence[Recipe], machine: Machine, begins_warm: bool = False) -> Plan:
    """Plan recipes that follow each other; the last one is what they are for."""
    stages: list[PlannedStage] = []
    for place, recipe in enumerate(recipes):
        sizes = sizes_of(recipe)
        stages += planned_stages(recipe, sizes, machine, begins_warm and place == 0)
    return Plan(list(recipes), begins_warm, sizes, machine, stages)


def ways_to_fit(plan: Plan) -> Iterator[str]:
    """Settings with each of which alone the recipe would fit, the cheapest first."""
    seen = set()
    for keys in _cheaper_settings(plan):
        first = next(iter(keys))
        old = plan.recipe.to_dict()
        if first in seen or all(old[key] == value for key, value in keys.items()):
            continue
        try:
            changed = [make_recipe({**recipe.to_dict(), **keys}) for recipe in plan.recipes]
        except UserError:  # with which the recipe would not be one
            continue
        if plan_of(changed, plan.machine, plan.begins_warm).fits:
            seen.add(first)
            yield ", ".join(f"{key}: {_yaml(value)}" for key, value in keys.items())


def _cheaper_settings(plan: Plan) -> Iterator[dict[str, Any]]:
    """Keys that need less memory; of one key the mildest value first."""
    recipe = plan.recipe
    largest = recipe.imitation.sft_batch_size if plan.begins_warm else recipe.ppo.batch_size
    for size in _halves(recipe.ppo.micro_batch_size or max(largest, recipe.ppo.batch_size)):
        yield {"micro_batch_size": size}
    yield {"gradient_checkpointing": True}
    if recipe.run.init_from is None or len(plan.recipes) > 1:  # else the start decides its form
        if plan.sizes.layers > TOP_LAYERS:
            yield {"lora_layers": TOP_LAYERS, "use_peft": True}
        yield {"dtype": "bfloat16"}
        yield {"load_in_4bit": True, "use_peft": True, "dtype": "bfloat16"}
    yield {"feature_cache_gb": 0.0}
    for count in _halves(recipe.rollout.num_envs):
        yield {"num_envs": count}


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
    if machine.nodes > 1:
        where = f"{machine.nodes} nodes of {where}"
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
    if (count := machine.processes) > 1:
        share = 100 * plan.scaling / count
        yield f"  processes   {count}, {plan.scaling:.1f} times as fast as one ({share:.0f} %)"
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
