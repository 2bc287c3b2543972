"""Backbones: ``tiny``, a local folder or a name on the hub, all through one function."""

from __future__ import annotations

import functools
import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import peft
import torch
from huggingface_hub import constants
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from vlm_agent.errors import UserError
from vlm_agent.policy.config import TINY, ModelConfig
from vlm_agent.policy.processor import Qwen2VLProcessor
from vlm_agent.policy.tiny import build_tiny_model, build_tiny_processor

Backbone = PreTrainedModel | peft.PeftModel


def load_processor(name: str, revision: str = "main") -> Qwen2VLProcessor:
    """The processor of ``tiny``, of a local folder or of a name on the hub."""
    if name == TINY:
        return build_tiny_processor()
    return _from_pretrained(Qwen2VLProcessor, name, revision)


def load_base_model(config: ModelConfig, processor: Any, seed: int) -> PreTrainedModel:
    """The backbone without adapters.

    Args:
        config: Names the model and its dtype.
        processor: The model's processor; gives ``tiny`` its vocabulary.
        seed: Decides the weights of ``tiny``.

    Raises:
        UserError: There is no such model, the hub cannot be reached, or it is no Qwen2-VL.
    """
    dtype = getattr(torch, config.dtype)
    name, revision = config.model_name_or_path, config.model_revision
    if name == TINY:
        return build_tiny_model(processor.tokenizer, seed, dtype)
    model_type = _from_pretrained(AutoConfig, name, revision).model_type
    if model_type != "qwen2_vl":
        raise UserError(f"model_name_or_path: {name!r} is a {model_type!r}, expected a 'qwen2_vl'")
    return _from_pretrained(AutoModelForImageTextToText, name, revision, dtype=dtype)


def add_lora(model: PreTrainedModel, config: ModelConfig, seed: int) -> peft.PeftModel:
    """LoRA adapters on the language model's linear layers; everything else is frozen.

    The vision tower has layers of the same names in some models, so the pattern asks for the
    language model's path (PEFT's ``all-linear`` would adapt both).

    Raises:
        UserError: No layer matches ``lora_target_modules``.
    """
    names = "|".join(re.escape(name) for name in config.lora_target_modules)
    lora = peft.LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=rf".*language_model.*\.({names})",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return peft.get_peft_model(model, lora)
        except ValueError as error:
            raise UserError(f"lora_target_modules: {error}") from None


def _from_pretrained(cls: Any, name: str, revision: str, **kwargs: Any) -> Any:
    is_path = name.startswith((".", "/", "~")) or Path(name).is_dir()
    path = Path(name).expanduser()
    if is_path and not (path / "config.json").is_file():
        raise UserError(f"model_name_or_path: no model in the folder {name!r} (no config.json)")
    try:
        return cls.from_pretrained(
            str(path) if is_path else name,
            revision=revision,
            trust_remote_code=False,
            local_files_only=is_path or not hub_is_reachable(),
            **kwargs,
        )
    except (OSError, ValueError) as error:
        if is_path:
            raise UserError(f"model_name_or_path: cannot load {name!r}: {error}") from None
        raise UserError(
            f"cannot get the model {name!r} from the Hugging Face hub, and it is not in the local "
            "cache: give a local folder (MODEL=/path/to/folder, --model_name_or_path) or run the "
            "built-in model (MODEL=tiny)"
        ) from error


@functools.cache
def hub_is_reachable(timeout: float = 5.0) -> bool:
    """Whether the hub's host answers; asked once, since its client would retry for minutes.

    Behind a proxy the host cannot be asked directly, and the client is left to find out.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    if getproxies():
        return True
    url = urlsplit(constants.ENDPOINT)
    port = url.port or (80 if url.scheme == "http" else 443)
    try:
        with socket.create_connection((url.hostname, port), timeout):
            return True
    except OSError:
        return False
