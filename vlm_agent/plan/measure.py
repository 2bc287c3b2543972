"""``vlm-agent plan --measure``: the constants that plans are made of, on this machine."""

from __future__ import annotations

import copy
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch
from torch import nn
from tqdm import tqdm
from transformers import Qwen2VLForConditionalGeneration

from vlm_agent.bench.models import (
    DEEP,
    QWEN2_VL_2B,
    benchmark_encoder,
    benchmark_policy,
    random_observations,
)
from vlm_agent.demonstrations.demonstrate import demonstrate
from vlm_agent.plan.watch import watch
from vlm_agent.policy.backbone.tiny import TEXT_SIZES, VISION_SIZES, qwen2_vl_config
from vlm_agent.policy.inputs.encoder import ObservationEncoder
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.studies.road import launcher
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.env import LanguageActionEnv
from vlm_agent.world.episode import Episode
from vlm_agent.world.pool.pool import EnvPool

ROWS = 16
"""Of the larger batch that passes are measured with."""

VOCABULARY = 1024

MODELS: dict[int, dict[str, Any]] = {
    128: TEXT_SIZES,
    256: DEEP[0] | {"num_hidden_layers": 4},
    576: DEEP[0]
    | {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 4,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    1536: QWEN2_VL_2B[0] | {"num_hidden_layers": 2},
}
"""Width -> sizes of a language model of that width, with few layers."""

EPISODES = 12
"""Of the expert, by which its words are counted."""


def measure() -> dict[str, Any]:
    """All constants, flat; minutes on an idle machine."""
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    constants: dict[str, Any] = {"processor": _processor(), "cores": cores}
    with tqdm(total=len(MODELS) + 4, desc="measuring") as bar:
        for part in (_simulators, _expert, _start, _optimizer):
            constants |= part()
            bar.update()
        constants["widths"] = list(MODELS)
        for width, sizes in MODELS.items():
            constants |= measure_passes(width, sizes)
            bar.update()
    program = constants["run_bytes"] - constants["worker_bytes"] - constants["env_bytes"]
    return {**constants, "program_bytes": program}


def _processor() -> str:
    """Its name, as Linux knows it."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.machine())


def _simulators() -> dict[str, float]:
    """Bytes of a worker and of an environment."""
    sizes = {}
    for count in (1, 4):
        with EnvPool(EnvConfig(), count, 1) as pool:
            pool.reset({i: Episode(i, ()) for i in range(count)})
            sizes[count] = psutil.Process(pool.worker_pids()[0]).memory_full_info().pss
    each = (sizes[4] - sizes[1]) / 3
    return {"env_bytes": each, "worker_bytes": sizes[1] - each}


def _expert() -> dict[str, float]:
    """How many words its episodes have, and core-seconds of a word, with it and without."""
    found, episodes = {}, []
    for words in ("eight", "scaled"):
        with LanguageActionEnv(EnvConfig(words=words)) as env:
            began = time.perf_counter()
            episodes = [demonstrate(env, seed, 0.06).episode for seed in range(EPISODES)]
            seconds = time.perf_counter() - began
        said = sum(len(episode.actions) for episode in episodes)
        found[f"episode_words_{words}"] = said / EPISODES
        found[f"demonstrated_word_s_{words}"] = seconds / said
        if words == "eight":
            found |= {f"word_s_{size}": _word_seconds(episodes, size) for size in (112, 224)}
    return found


def _word_seconds(episodes: Sequence[Episode], frame_size: int) -> float:
    """Of a word in one of two environments of a worker, which play these episodes again."""
    said, began = 0, 0.0
    with EnvPool(EnvConfig(frame_size=frame_size), 2, 1) as pool:
        for pair in zip(episodes[::2], episodes[1::2], strict=True):
            if not began:
                pool.wait_until_ready()
                began = time.perf_counter()
            pool.reset({i: Episode(episode.seed, ()) for i, episode in enumerate(pair)})
            length = min(len(episode.actions) for episode in pair)
            for step in range(length):
                pool.step({i: episode.actions[step] for i, episode in enumerate(pair)})
            said += 2 * length
        return (time.perf_counter() - began) / said


def _start() -> dict[str, float]:
    """Seconds and bytes of a run that does next to nothing."""
    words = ["--run_name", "nothing", "--total_timesteps", "1", "--num_envs", "1"]
    words += ["--rollout_steps", "1", "--batch_size", "1", "--n_epochs", "1", "--horizon", "2"]
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", *launcher(), "vlm_agent.train", *words]
        command += ["--num_eval_episodes", "1", "--output_dir", folder]
        seconds, size = watch(command, Path(folder), {**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    return {"start_s": seconds, "run_bytes": float(size)}


def _optimizer() -> dict[str, float]:
    """Seconds that AdamW takes for a parameter."""
    weights = [nn.Parameter(torch.zeros(1024, 1024)) for _ in range(16)]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer = torch.optim.AdamW(weights)
    seconds = _median(optimizer.step)
    return {"optimizer_s_per_parameter": seconds / sum(w.numel() for w in weights)}


def measure_passes(width: int, sizes: dict[str, Any]) -> dict[str, float]:
    """What passes through a language model of some width cost."""
    encoder = benchmark_encoder()
    whole = _policy(sizes, encoder)
    observations = random_observations(ROWS, 112)
    with torch.no_grad():
        kept = whole(**whole.encode(observations)).kept
    assert kept is not None
    rows = kept.rows()
    inputs = {n: whole.encode(observations[:n], rows[:n]) for n in (1, ROWS)}
    flops = {n: language_flops(whole, inputs[n]) for n in inputs}
    with torch.no_grad():
        one, many = (_median(lambda n=n: whole(**inputs[n])) for n in (1, ROWS))  # type: ignore[misc]
    layers = sizes["num_hidden_layers"]
    rate = (flops[ROWS] - flops[1]) / max(many - one, 0.1 * many)
    started = max(one - flops[1] / rate, 1e-6 * layers) / layers
    found = {f"layer_s_{width}": started, f"decide_flops_{width}": rate}
    adapted = _policy(sizes, encoder, use_peft=True)
    with torch.no_grad():
        seconds = _median(lambda: adapted(**inputs[ROWS]))
    found[f"decide_lora_flops_{width}"] = flops[ROWS] / max(
        seconds - layers * started, 0.1 * seconds
    )
    for work, policy in (("full", whole), ("lora", adapted)):
        seconds = _median(lambda policy=policy: _learn(policy, inputs[ROWS]))  # type: ignore[misc]
        computing = max(seconds - 3 * layers * started, 0.1 * seconds)
        found[f"{work}_flops_{width}"] = flops[ROWS] / computing
    if width == min(MODELS):
        fresh = _median(lambda: whole.encode(observations)) / ROWS
        prompt = _median(lambda: whole.encode(observations, rows)) / ROWS
        patches = len(whole.encode(observations)["pixel_values"]) / ROWS
        found["prompt_s"] = prompt
        found["encode_s_per_patch"] = max(fresh - prompt, 0.0) / patches
        found["activations_share"] = _saved_share(whole, inputs[ROWS], sizes)
    return found


def _policy(sizes: dict[str, Any], encoder: ObservationEncoder, **settings: Any) -> VLMPolicy:
    """With random weights, of which the vision tower's are frozen."""
    vision = VISION_SIZES | {"hidden_size": sizes["hidden_size"]}
    config = qwen2_vl_config(encoder.processor.tokenizer, copy.deepcopy(sizes), vision, VOCABULARY)
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(config).eval()
    return benchmark_policy(model, encoder, freeze_vision=True, **settings)


def language_flops(policy: VLMPolicy, inputs: dict[str, torch.Tensor]) -> float:
    """Of a forward pass through the language model's layers, as plans count them."""
    prefix, (count, length) = len(inputs["prefix_ids"]), inputs["input_ids"].shape
    layers = policy.model_pass.language_model.layers
    each = sum(p.numel() for name, p in layers[0].named_parameters() if ".lora_" not in name)
    width = policy.inner_model.config.get_text_config().hidden_size
    tokens = prefix + count * (length - prefix)
    return tokens * len(layers) * (2.0 * each + 4.0 * width * length)


def _learn(policy: VLMPolicy, inputs: dict[str, torch.Tensor]) -> None:
    policy.zero_grad()
    policy(**inputs).logits.log_softmax(-1)[:, 0].mean().backward()


def _saved_share(
    policy: VLMPolicy, inputs: dict[str, torch.Tensor], sizes: dict[str, Any]
) -> float:
    """What the backward pass keeps of the forward pass, in units of what plans count."""
    saved: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = policy(**inputs).logits
    del logits
    prefix, (count, length) = len(inputs["prefix_ids"]), inputs["input_ids"].shape
    tokens = prefix + count * (length - prefix)
    unit = 10 * sizes["hidden_size"] + 4 * sizes["intermediate_size"]
    return sum(saved.values()) / (4.0 * tokens * unit * sizes["num_hidden_layers"])


def _median(run: Callable[[], object], times: int = 7) -> float:
    """Seconds."""
    run()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))
