"""``vlm-agent plan --check``: plans beside what runs of them take."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from vlm_agent.bench.iterations import ITERATION, measure_apart
from vlm_agent.bench.models import benchmark_encoder, benchmark_model
from vlm_agent.plan.machine import Machine
from vlm_agent.plan.plan import make_plan, plan_of
from vlm_agent.plan.watch import watch
from vlm_agent.recipe.recipe import Recipe, recipe_file
from vlm_agent.studies.road import launcher

ON_CORES = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
"""Of commands that are to run on CPU cores."""

FEW = ("--num_eval_episodes", "8", "--num_envs", "8", "--report_to", "none")


@dataclass(frozen=True)
class Check:
    """A recipe that is planned and run, with smaller numbers.

    Attributes:
        config: The recipe.
        module: What runs it.
        overrides: ``--key value`` words.
        has_demonstrations: Whether the expert plays first.
    """

    config: str
    module: str
    overrides: str
    has_demonstrations: bool = False


CHECKS = {
    "ppo": Check("full_tiny", "vlm_agent.train", "--total_timesteps 4096 --rollout_steps 128"),
    "warm_start": Check(
        "warm_start",
        "vlm_agent.sft",
        "--num_demo_episodes 80 --sft_epochs 6 --dagger_rounds 1 --dagger_words 2048",
        has_demonstrations=True,
    ),
    "lora": Check(
        "full",
        "vlm_agent.train",
        "--dtype float32 --lora_layers 8 --total_timesteps 512 --rollout_steps 32",
    ),
}
"""The third's model is one with random weights, as deep as Qwen2-VL-2B and 256 wide."""


def check_plans(machine: Machine, names: Iterable[str] = CHECKS) -> dict[str, Any]:
    """Plan and run each; seconds and bytes side by side, flat.

    Args:
        machine: This one.
        names: Which of :data:`CHECKS`.
    """
    result: dict[str, Any] = {"cores": machine.cores}
    with TemporaryDirectory() as name:
        folder = Path(name)
        if machine.cores > 1:
            result |= check_scaling(folder, machine)
        for key in names:
            check = CHECKS[key]
            config = deep_recipe(folder) if key == "lora" else recipe_file(check.config)
            words = [*FEW, *check.overrides.split(), "--output_dir", str(folder / key)]
            result |= _side_by_side(key, check, config, words, machine)
    return result


def check_scaling(
    folder: Path, machine: Machine, num_envs: int = 4, rollout_steps: int = 32, iterations: int = 4
) -> dict[str, Any]:
    """What two processes with a core each are to one with one, planned and measured."""
    sizes = {"num_envs": num_envs, "rollout_steps": rollout_steps}
    sizes |= {"batch_size": min(32, num_envs * rollout_steps)}
    planned = plan_of(
        [Recipe.load(**{**ITERATION, **sizes})], dataclasses.replace(machine, cores=1, nodes=2)
    ).scaling
    one, other = sorted(os.sched_getaffinity(0))[:2]
    words = sizes | {"total_timesteps": (iterations + 2) * num_envs * rollout_steps}
    rates = [
        measure_apart(folder / name, words, iterations, cores)["words_per_s"]
        for name, cores in (("one", [[one]]), ("two", [[one], [other]]))
    ]
    measured = rates[1] / rates[0]
    return {
        "scaling_planned": planned,
        "scaling_measured": measured,
        "scaling_ratio": planned / measured,
    }


def deep_recipe(folder: Path) -> Path:
    """The full recipe with a small deep model, which it begins with as it is."""
    encoder = benchmark_encoder()
    model = benchmark_model("deep", len(encoder.processor.tokenizer), "cpu", encoder)
    for part in (model, encoder.processor):
        part.save_pretrained(folder / "deep")
    # The file's own keys alone: with those of imitation it would be a recipe of that.
    keys = yaml.safe_load(recipe_file("full").read_text())
    path = folder / "deep.yaml"
    own = {"init_from": None, "model_name_or_path": str(folder / "deep")}
    path.write_text(yaml.safe_dump({**keys, **own}))
    return path


def _side_by_side(
    key: str, check: Check, config: Path, words: Sequence[str], machine: Machine
) -> dict[str, Any]:
    plan = make_plan(config, words, machine)
    recipe = ("--config", str(config), *words)
    commands = [(sys.executable, "-m", *launcher(), check.module, *recipe)]
    if check.has_demonstrations:
        commands.insert(0, (sys.executable, "-m", "vlm_agent.cli", "demos", *recipe))
    seconds, peak = 0.0, 0
    for command in commands:
        watched = watch(command, Path(plan.recipe.run.output_dir), ON_CORES)
        seconds, peak = seconds + watched.seconds, max(peak, watched.peak_bytes)
    planned, need = sum(stage.seconds for stage in plan.stages), plan.need(plan.neediest)[1]
    ratios = {f"{key}_time_ratio": planned / seconds, f"{key}_memory_ratio": need / peak}
    print(", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()), flush=True)
    return {
        f"{key}_planned_s": planned,
        f"{key}_measured_s": seconds,
        f"{key}_planned_bytes": need,
        f"{key}_measured_bytes": peak,
        **ratios,
    }
