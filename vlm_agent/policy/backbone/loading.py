"""Backbones: ``tiny``, a local folder or a name on the hub, all through one function."""

from __future__ import annotations

import functools
import socket
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import peft
import torch
from huggingface_hub import constants
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from vlm_agent.common.errors import UserError
from vlm_agent.policy.backbone.families import FAMILIES
from vlm_agent.policy.backbone.lora import settle_trained_modules
from vlm_agent.policy.backbone.processor import picture_processor_class
from vlm_agent.policy.backbone.quantization import quantization_config, settle_quantized
from vlm_agent.policy.backbone.tiny import MODEL_TYPE, build_tiny_model, build_tiny_processor
from vlm_agent.policy.config import TINY, ModelConfig
from vlm_agent.policy.strangers import check_harmless

Backbone = PreTrainedModel | peft.PeftModel


def find_model_type(name: str, revision: str = "main") -> str:
    """Transformers' ``model_type`` of ``tiny``, of a local folder or of a name on the hub.

    Raises:
        UserError: There is no such model, or it is of a family that is not supported.
    """
    if name == TINY:
        return MODEL_TYPE
    model_type = _from_pretrained(AutoConfig.from_pretrained, name, revision).model_type
    if model_type not in FAMILIES:
        raise UserError(
            f"model_name_or_path: {name!r} is a {model_type!r}, expected one of: "
            f"{', '.join(FAMILIES)}"
        )
    return model_type


def load_processor(name: str, revision: str = "main") -> Any:
    """The processor of ``tiny``, of a local folder or of a name on the hub."""
    if name == TINY:
        return build_tiny_processor()
    processor: Any = picture_processor_class(find_model_type(name, revision))
    return _from_pretrained(processor.from_pretrained, name, revision)


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
    family = FAMILIES[find_model_type(name, revision)]
    quantization = quantization_config(config, family)
    if name == TINY:
        tiny = build_tiny_model(processor.tokenizer, seed, dtype)
        if quantization is None:
            return tiny
        with tempfile.TemporaryDirectory() as folder:  # weights are quantised as they are loaded
            tiny.save_pretrained(folder)
            model = _load_model(folder, revision, dtype, quantization)
            model.name_or_path = model.config._name_or_path = TINY  # adapters write down their base
            return model
    return _load_model(name, revision, dtype, quantization)


def load_adapter(base: PreTrainedModel, folder: Path, is_trainable: bool = False) -> peft.PeftModel:
    """A backbone with a saved adapter on it.

    Raises:
        FileNotFoundError: There is none in the folder, or not as safetensors.
    """
    weights = folder / SAFETENSORS_WEIGHTS_NAME
    if not weights.is_file():  # PEFT would unpickle an older file in its place
        raise FileNotFoundError(f"there is no {weights}")
    model = peft.PeftModel.from_pretrained(base, str(folder), is_trainable=is_trainable)
    settle_trained_modules(model)
    if model.peft_config["default"].modules_to_save:  # read again, in their own dtype
        peft.set_peft_model_state_dict(model, load_file(weights))
    with safe_open(weights, framework="pt") as file:
        wanted = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
        missing = set(wanted) - set(file.keys())
    if missing:
        raise ValueError(f"{weights} lacks {sorted(missing)[0]} and {len(missing) - 1} more")
    return model


def load_whole_model(name: str, **options: Any) -> PreTrainedModel:
    """A model of which every weight is there, from safetensors.

    Raises:
        ValueError: A weight is missing; transformers would go on with a random one.
    """
    model, info = AutoModelForImageTextToText.from_pretrained(
        name,
        use_safetensors=True,
        attn_implementation="sdpa",  # eager attention would add the masks of phrases as numbers
        output_loading_info=True,
        **options,
    )
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"its weights lack {missing[0]} and {len(missing) - 1} more")
    return model


def _load_model(name: str, revision: str, dtype: torch.dtype, quantization: Any) -> PreTrainedModel:
    options = {} if quantization is None else {"quantization_config": quantization}
    model = _from_pretrained(load_whole_model, name, revision, dtype=dtype, **options)
    settle_quantized(model)
    return model


def _from_pretrained(load: Callable[..., Any], name: str, revision: str, **options: Any) -> Any:
    """What ``load`` makes of a folder or of a name on the hub, with errors for people."""
    is_path = name.startswith((".", "/", "~")) or Path(name).is_dir()
    path = Path(name).expanduser()
    if is_path and (path / "adapter_config.json").is_file():
        raise UserError(
            f"model_name_or_path: {name!r} holds an adapter: make a model of it, vlm-agent merge"
        )
    if is_path and not (path / "config.json").is_file():
        raise UserError(f"model_name_or_path: no model in the folder {name!r} (no config.json)")
    if is_path:
        check_harmless(path, is_own=True)
    try:
        return load(
            str(path) if is_path else name,
            revision=revision,
            trust_remote_code=False,
            local_files_only=is_path or not hub_is_reachable(),
            **options,
        )
    except ImportError as error:
        raise UserError(f"model_name_or_path: {name!r} needs another package: {error}") from None
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if is_path or not isinstance(error, OSError):
            raise UserError(f"model_name_or_path: cannot load {name!r}: {error}") from None
        raise UserError(
            f"cannot get the model {name!r} from the Hugging Face hub, and it is not in the local "
            "cache: give a local folder (MODEL=/path/to/folder, --model_name_or_path) or run the "
            "built-in model (MODEL=tiny)"
        ) from error


@functools.cache
def hub_is_reachable() -> bool:
    """Whether the hub's host answers; asked once, since its client would retry for minutes."""
    return can_reach(constants.ENDPOINT, constants.HF_HUB_OFFLINE, getproxies())


def can_reach(
    endpoint: str, is_offline: bool, proxies: Mapping[str, str], timeout: float = 5.0
) -> bool:
    """Whether a hub's host answers.

    Behind a proxy the host cannot be asked directly, and the client is left to find out.

    Args:
        endpoint: The hub's address.
        is_offline: Whether the client is told not to ask.
        proxies: Kind of address -> proxy.
        timeout: Seconds to wait for an answer.
    """
    if is_offline:
        return False
    if proxies:
        return True
    url = urlsplit(endpoint)
    port = url.port or (80 if url.scheme == "http" else 443)
    try:
        with socket.create_connection((url.hostname, port), timeout):
            return True
    except OSError:
        return False
