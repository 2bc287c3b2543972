"""Backbones: ``tiny``, a local folder or a name on the hub, all through one function."""

from __future__ import annotations

import functools
import socket
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import peft
import torch
from huggingface_hub import constants
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from vlm_agent.errors import UserError
from vlm_agent.policy.config import TINY, ModelConfig
from vlm_agent.policy.families import get_family
from vlm_agent.policy.processor import picture_processor_class
from vlm_agent.policy.quantization import quantization_config, settle_quantized
from vlm_agent.policy.tiny import MODEL_TYPE, build_tiny_model, build_tiny_processor

Backbone = PreTrainedModel | peft.PeftModel


def find_model_type(name: str, revision: str = "main") -> str:
    """Transformers' ``model_type`` of ``tiny``, of a local folder or of a name on the hub."""
    if name == TINY:
        return MODEL_TYPE
    return _from_pretrained(AutoConfig, name, revision).model_type


def load_processor(name: str, revision: str = "main") -> Any:
    """The processor of ``tiny``, of a local folder or of a name on the hub."""
    if name == TINY:
        return build_tiny_processor()
    model_type = find_model_type(name, revision)
    get_family(model_type, name)
    return _from_pretrained(picture_processor_class(model_type), name, revision)


def load_base_model(config: ModelConfig, processor: Any, seed: int) -> PreTrainedModel:
    """The backbone without adapters, quantised if the configuration says so.

    Args:
        config: Names the model and its dtype.
        processor: The model's processor; gives ``tiny`` its vocabulary.
        seed: Decides the weights of ``tiny``.

    Raises:
        UserError: There is no such model, the hub cannot be reached, or it is of a family that is
            not supported.
    """
    dtype = getattr(torch, config.dtype)
    name, revision = config.model_name_or_path, config.model_revision
    family = get_family(find_model_type(name, revision), name)
    quantization = quantization_config(config, family)
    if name == TINY:
        tiny = build_tiny_model(processor.tokenizer, seed, dtype)
        if quantization is None:
            return tiny
        with tempfile.TemporaryDirectory() as folder:  # weights are quantised as they are loaded
            tiny.save_pretrained(folder)
            return _load_model(folder, revision, dtype, quantization)
    return _load_model(name, revision, dtype, quantization)


def load_adapter(base: PreTrainedModel, folder: Path, is_trainable: bool = False) -> peft.PeftModel:
    """A backbone with a saved adapter on it.

    Raises:
        FileNotFoundError: There is none in the folder, or not as safetensors.
    """
    weights = folder / SAFETENSORS_WEIGHTS_NAME
    if not weights.is_file():  # PEFT would unpickle an older file in its place
        raise FileNotFoundError(f"there is no {weights}")
    return peft.PeftModel.from_pretrained(base, str(folder), is_trainable=is_trainable)


def _load_model(name: str, revision: str, dtype: torch.dtype, quantization: Any) -> PreTrainedModel:
    options = {} if quantization is None else {"quantization_config": quantization}
    model = _from_pretrained(
        AutoModelForImageTextToText, name, revision, dtype=dtype, use_safetensors=True, **options
    )
    settle_quantized(model)
    return model


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
    except ImportError as error:
        raise UserError(f"model_name_or_path: {name!r} needs another package: {error}") from None
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
