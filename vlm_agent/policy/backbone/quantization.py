"""Backbones in 4 or 8 bits, through bitsandbytes, on a GPU or a CPU."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from vlm_agent.common.errors import UserError
from vlm_agent.policy.backbone.families import Family
from vlm_agent.policy.config import ModelConfig


def quantization_config(config: ModelConfig, family: Family) -> BitsAndBytesConfig | None:
    """How transformers is to quantise a backbone as it loads; ``None`` if it is not to.

    The language head stays whole, since words are scored with its rows, and so does the vision
    tower.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    if not config.is_quantized:
        return None
    if find_spec("bitsandbytes") is None:
        key = "load_in_4bit" if config.load_in_4bit else "load_in_8bit"
        raise UserError(f"{key}: needs bitsandbytes: pip install 'vlm-agent[quantization]'")
    return BitsAndBytesConfig(
        load_in_4bit=config.load_in_4bit,
        load_in_8bit=config.load_in_8bit,
        bnb_4bit_quant_type=config.bnb_4bit_quant_type,
        bnb_4bit_compute_dtype=getattr(torch, config.dtype),
        llm_int8_skip_modules=["lm_head", *(f"model.{name}" for name in family.vision)],
    )


def settle_quantized(model: nn.Module) -> None:
    """Let 4-bit layers on a CPU keep the weights they have.

    Otherwise bitsandbytes repacks them for AVX-512 at the first call without gradients, and the
    next call with gradients finds no weights that it could differentiate through.
    """
    for module in model.modules():
        layer: Any = module
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
