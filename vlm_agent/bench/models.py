"""Policies with random weights for benchmarks, and observations for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import PreTrainedModel, Qwen2VLForConditionalGeneration

from vlm_agent.common.errors import UserError
from vlm_agent.common.shipped import SHIPPED
from vlm_agent.policy.backbone.lora import add_lora
from vlm_agent.policy.backbone.tiny import TEXT_SIZES, VISION_SIZES, qwen2_vl_config
from vlm_agent.policy.building import build_encoder
from vlm_agent.policy.config import ModelConfig
from vlm_agent.policy.inputs.encoder import ObservationEncoder
from vlm_agent.policy.inputs.prompts import PromptTemplate
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.world.actions import MOTIONS
from vlm_agent.world.observations import Observations
from vlm_agent.world.robosuite.tasks import get_task

QWEN2_VL_2B: tuple[dict[str, Any], dict[str, Any]] = (
    {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32_768,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1_000_000.0,
            "mrope_section": [16, 24, 24],
        },
    },
    {
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 1536,
        "num_heads": 16,
        "mlp_ratio": 4,
        "patch_size": 14,
    },
)
"""Sizes of the language model and the vision tower in Qwen2-VL-2B-Instruct's ``config.json``."""

DEEP: tuple[dict[str, Any], dict[str, Any]] = (
    QWEN2_VL_2B[0]
    | {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": QWEN2_VL_2B[0]["rope_parameters"] | {"mrope_section": [8, 12, 12]},
    },
    VISION_SIZES | {"hidden_size": 256},
)
"""As deep as Qwen2-VL-2B, and so narrow that two CPU cores run it."""

ARCHITECTURES = {"tiny": (TEXT_SIZES, VISION_SIZES), "deep": DEEP, "qwen2-vl-2b": QWEN2_VL_2B}
"""Name -> sizes of the language model and of the vision tower."""

FRAME_SIZES = {"tiny": 112, "deep": 224, "qwen2-vl-2b": 112}
"""Name -> pixels of a frame; those of ``deep`` make as many tokens as a real model's 224 do."""

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
"""Part of a card's name -> dense bfloat16 FLOP/s that its maker states."""


def benchmark_encoder() -> ObservationEncoder:
    """Prompt as in the default recipe, tokens of ``tiny``."""
    source = (SHIPPED / "prompts" / "default.jinja").read_text()
    template = PromptTemplate(source, get_task("PickPlaceCan").description)
    return build_encoder(ModelConfig(), template)


def benchmark_model(
    arch: str, vocabulary: int, device: str, encoder: ObservationEncoder
) -> PreTrainedModel:
    """A Qwen2-VL with random weights: fp32 on a CPU, bfloat16 on a GPU.

    Args:
        arch: A name of :data:`ARCHITECTURES`.
        vocabulary: Size of the vocabulary.
        device: ``cpu`` or ``cuda``.
        encoder: Whose tokenizer's special tokens the model is to know.

    Raises:
        UserError: There is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no GPU here that torch can use")
    config = qwen2_vl_config(encoder.processor.tokenizer, *ARCHITECTURES[arch], vocabulary)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    torch.manual_seed(0)
    try:
        with torch.device(device):
            return Qwen2VLForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)


def benchmark_policy(
    model: PreTrainedModel, encoder: ObservationEncoder, **settings: Any
) -> VLMPolicy:
    """A policy on that model; ``settings`` are those of :class:`ModelConfig`."""
    config = ModelConfig(**{"scoring": "first_token", **settings})
    backbone = add_lora(model, config, encoder.family, seed=0) if config.use_peft else model
    return VLMPolicy(backbone, encoder, config, seed=0).to(model.device).eval()


def random_observations(count: int, frame_size: int) -> Observations:
    """Noise, and facts as in an episode."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (count, frame_size, frame_size, 3), dtype=np.uint8)
    steps = np.arange(count) % 120
    facts = np.stack(
        [rng.integers(0, 2, count), rng.integers(0, len(MOTIONS), count), steps, 120 - steps], 1
    )
    return Observations(frames, facts.astype(np.int32))


def take_turns(
    contenders: Mapping[str, Callable[[], object]], rounds: int, device: str
) -> dict[str, float]:
    """Median seconds of each contender, each measured in every round.

    Their order changes: what runs after a large one finds its caches cold.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for round_ in tqdm(range(-1, rounds), desc="rounds"):
        for name in np.random.default_rng(round_ + 1).permutation(names):
            began = time.perf_counter()
            contenders[name]()
            if device == "cuda":
                torch.cuda.synchronize()
            if round_ >= 0:  # one round to warm up
                seconds[name].append(time.perf_counter() - began)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def gpu_figures(run: Callable[[], object], seconds: float) -> dict[str, Any]:
    """Memory in GiB, and the share of the card's peak FLOP/s that a run of so many seconds has."""
    torch.cuda.reset_peak_memory_stats()
    with FlopCounterMode(display=False) as counter:
        run()
    torch.cuda.synchronize()
    name = torch.cuda.get_device_name()
    peak = next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
    return {
        "gpu": name,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30,
        "share_of_peak_flops": counter.get_total_flops() / seconds / peak if peak else None,
    }
