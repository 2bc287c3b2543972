"""``vlm-agent plan --measure_gpu``: what the model side of a run reaches on a GPU, beside plans.

No simulator is needed: pictures are noise, rewards random, weights drawn at random. Neither changes
what a pass costs.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from vlm_agent.bench.models import (
    benchmark_encoder,
    benchmark_model,
    random_observations,
    take_turns,
)
from vlm_agent.bench.update import benchmark_learner, random_rollout
from vlm_agent.plan.costs import Costs
from vlm_agent.plan.machine import GPUS, Gpu, Machine
from vlm_agent.plan.memory import memory_of
from vlm_agent.plan.sizes import sizes_of
from vlm_agent.policy.building import build_policy
from vlm_agent.policy.decisions import act
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.ppo.update import PPOUpdate
from vlm_agent.recipe.recipe import Recipe

FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("full", {}),
    "top_layers": ("full", {"lora_layers": 8}),
    "four_bit": ("full_4bit", {"kl_coef": 0.0}),
}
"""Name -> recipe, and what is changed of it."""

MATRIX = {"cuda": 8192, "cpu": 1024}
"""Side of the matrices by which a device's rate is measured."""

VOCABULARY = 151_936
"""Of Qwen2-VL."""

ROUNDS = 5


def measure_gpu(
    arch: str = "qwen2-vl-2b",
    device: str = "cuda",
    steps: int = 16,
    vocabulary: int = VOCABULARY,
    **settings: Any,
) -> dict[str, Any]:
    """Speed and memory of each form, flat.

    Args:
        arch: A name of :data:`vlm_agent.bench.models.ARCHITECTURES`.
        device: ``cuda`` or ``cpu``.
        steps: Words of each environment in a rollout that is learnt from.
        vocabulary: Of the model.
        settings: Further keys of the recipes.

    Raises:
        UserError: There is no such device.
    """
    rate = matrix_rate(device)
    found: dict[str, Any] = {"arch": arch, "device": device_name(device), "matrix_flops": rate}
    machine = _machine(device, rate)
    with TemporaryDirectory() as name, tqdm(total=len(FORMS), desc="forms") as bar:
        folder = _model_folder(Path(name), arch, device, vocabulary)
        for form, (recipe, changed) in FORMS.items():
            figures = _measure(
                _recipe(recipe, folder, device, changed | settings), machine, device, steps
            )
            figures["share_of_matrix_rate"] = figures.pop("flops_per_s") / rate
            found |= {f"{form}_{key}": value for key, value in figures.items()}
            gc.collect()  # a policy holds itself: its memory would count in the next form's
            if device == "cuda":
                torch.cuda.empty_cache()
            bar.update()
    return found


def device_name(device: str) -> str:
    """What computes."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def matrix_rate(device: str) -> float:
    """FLOP/s of large matrix products: in bfloat16 on a GPU, in float32 on a CPU."""
    side = MATRIX[device]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = take_turns({"product": lambda: left @ right}, ROUNDS, device)["product"]
    return 2.0 * side**3 / seconds


def _machine(device: str, rate: float) -> Machine:
    """What plans know of this machine; a card unknown to them is one of its measured rate."""
    machine = Machine.here()
    if device == "cpu":
        return machine
    name = torch.cuda.get_device_name().lower()
    memory = torch.cuda.get_device_properties(0).total_memory
    unknown = Gpu(name, memory, rate, 1e12)
    # The smallest of that name that has so much: there are two A100s.
    known = [card for part, card in GPUS.items() if part.partition("-")[0] in name]
    large = sorted((card.memory, card.name) for card in known if card.memory > 0.9 * memory)
    gpu = GPUS[large[0][1]] if large else unknown
    return dataclasses.replace(machine, gpu=gpu, gpus=1)


def _model_folder(folder: Path, arch: str, device: str, vocabulary: int) -> Path:
    """A model with random weights, as the hub would have it."""
    encoder = benchmark_encoder()
    tokens = len(encoder.processor.tokenizer)
    model = benchmark_model(arch, max(vocabulary, tokens), device, encoder)
    model.save_pretrained(folder)
    encoder.processor.save_pretrained(folder)
    return folder


def _recipe(name: str, folder: Path, device: str, changed: dict[str, Any]) -> Recipe:
    dtype = "bfloat16" if device == "cuda" else "float32"
    return Recipe.load(
        name, model_name_or_path=str(folder), init_from=None, dtype=dtype, value_input="hidden",
        value_epochs=0, critic_warmup_updates=0, **changed,
    )  # fmt: skip


def _measure(recipe: Recipe, machine: Machine, device: str, steps: int) -> dict[str, Any]:
    """One form: decisions, an update, a whole iteration with the simulator's known rate."""
    policy = build_policy(recipe.model, recipe.template, 0).to(device).eval()
    costs = Costs(recipe, sizes_of(recipe), machine)
    rows = -(-recipe.rollout.num_envs // recipe.rollout.rollout_groups)
    deciding = _decision_seconds(policy, recipe, rows, device)
    words = recipe.rollout.num_envs * steps
    seconds, flops, peak, error = _update(policy, recipe, words, device)
    samples = words * recipe.ppo.n_epochs
    moving = max(costs.moving, deciding) if device == "cuda" else costs.moving + deciding
    planned = words / recipe.ppo.batch_size * recipe.ppo.n_epochs
    planned *= costs.learn(recipe.ppo.batch_size, is_kept=True)
    need = memory_of(recipe, costs.sizes, machine, 0).model
    return {
        "decisions_per_s": 1 / deciding,
        "decisions_per_s_planned": 1 / costs.deciding,
        "update_samples_per_s": samples / seconds,
        "update_samples_per_s_planned": samples / planned,
        "words_per_s": words / (words * moving + seconds),
        "words_per_s_planned": words / (words * costs.word + planned),
        "flops_per_s": flops / seconds,
        "peak_memory_gib": peak / 2**30,
        "peak_memory_gib_planned": sum(need.values()) / 2**30,
        "first_ratio_error": error,
    }


def _decision_seconds(policy: VLMPolicy, recipe: Recipe, rows: int, device: str) -> float:
    """Of one word in a rollout."""
    observations = random_observations(rows, recipe.env.frame_size)
    uniforms = np.random.default_rng(0).random(rows)
    run = {"decisions": lambda: act(policy, observations, uniforms)}
    return take_turns(run, ROUNDS, device)["decisions"] / rows


def _update(
    policy: VLMPolicy, recipe: Recipe, words: int, device: str
) -> tuple[float, float, int, float]:
    """Seconds, FLOPs, peak bytes and the error of the first ratios of an update."""
    observations = random_observations(words, recipe.env.frame_size)
    limit = recipe.rollout.feature_cache_gb * 2**30
    rollout = random_rollout(policy, observations, recipe.ppo.batch_size, limit)
    accelerator = Accelerator(cpu=device == "cpu")
    improve = PPOUpdate(recipe, benchmark_learner(accelerator, policy, recipe))
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with FlopCounterMode(display=False) as counter:
        error = improve(rollout, 1, 1e-5)["first_ratio_error"]  # warms up, too
    began = time.perf_counter()
    improve(rollout, 2, 1e-5)["first_ratio_error"]  # reading it waits for the device
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return seconds, counter.get_total_flops(), peak, error
