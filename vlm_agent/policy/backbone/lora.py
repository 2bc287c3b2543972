"""LoRA adapters on exactly the layers that the recipe names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import peft
import torch
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from vlm_agent.common.errors import UserError, unknown_name
from vlm_agent.policy.backbone.families import Family
from vlm_agent.policy.config import ModelConfig


def add_lora(
    model: PreTrainedModel, config: ModelConfig, family: Family, seed: int
) -> peft.PeftModel:
    """Adapters on linear layers of the language model, and of the vision tower if it is asked for.

    Both have layers of the same names in some models, so PEFT gets whole paths (its ``all-linear``
    would adapt both). Everything else is frozen.

    Raises:
        UserError: A part of the model has no linear layer of a name that the recipe gives, or
            there are fewer layers.
    """
    language = _top_layers(model, family, config.lora_layers)
    vision = [f"model.{name}" for name in family.vision]
    lora = peft.LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=[
            *_linear_layers(model, language, config.lora_target_modules, "lora_target_modules"),
            *_linear_layers(model, vision, config.lora_vision_modules, "lora_vision_modules"),
        ],
        modules_to_save=_trained_modules(model, config, family) or None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(model, lora)
    settle_trained_modules(adapted)
    return adapted


def choose_trained(model: peft.PeftModel, config: ModelConfig, family: Family) -> None:
    """Train a model's adapters in the top layers that settings name, and what is beside them.

    Args:
        model: It may have adapters in more layers.
        config: ``lora_layers``, and ``freeze_vision`` for the trained modules.
        family: The model's.
    """
    base: Any = model.get_base_model()
    layers = tuple(f"{path}." for path in _top_layers(base, family, config.lora_layers))
    language = f"model.{family.language_model}."
    for name, parameter in base.named_parameters():
        if ".lora_" in name:
            is_above = not name.startswith(language) or name.startswith(layers)
            parameter.requires_grad_(is_above and "default" in name)
        elif ".modules_to_save." in name:
            parameter.requires_grad_(not config.freeze_vision)


def _trained_modules(model: Any, config: ModelConfig, family: Family) -> list[str]:
    """Paths of what is trained beside the adapters."""
    # All that a vision tower's pictures go through has the connector in it.
    whole = "vision_tower" in config.trained_modules
    names = ["vision_tower"] if whole else config.trained_modules
    return [f"model.{path}" for name in names for path in family.parts(model.model, name)]


def settle_trained_modules(model: peft.PeftModel) -> None:
    """Let what is trained beside the adapters compute in float32: bfloat16 is too coarse to learn.

    Also what PEFT copied from a model in bfloat16.
    """
    for wrapper in model.modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            for module in wrapper.modules_to_save.values():
                module.float()
                module.register_forward_pre_hook(_as_its_weights, with_kwargs=True)


def _as_its_weights(
    module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs in the dtype of a module's weights."""
    dtype = next(module.parameters()).dtype

    def cast(value: Any) -> Any:
        is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if is_float else value

    return tuple(map(cast, inputs)), {name: cast(value) for name, value in named.items()}


def _top_layers(model: nn.Module, family: Family, count: int | None) -> list[str]:
    """Paths of the language model's top layers; all of it by default."""
    path = f"model.{family.language_model}"
    if count is None:
        return [path]
    layers: Any = model.get_submodule(f"{path}.layers")
    depth = len(layers)
    if count > depth:
        raise UserError(f"lora_layers: {count} is more than the model has: {depth}")
    return [f"{path}.layers.{i}" for i in range(depth - count, depth)]


def _linear_layers(
    model: nn.Module, parts: Sequence[str], wanted: Sequence[str], key: str
) -> list[str]:
    """Paths of the linear layers of parts of a model whose last names are wanted."""
    paths = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and path.startswith(tuple(f"{p}." for p in parts))
    ]
    names = {path.rpartition(".")[2] for path in paths}
    for name in wanted:
        if name not in names:
            raise UserError(f"{key}: {unknown_name('linear layer', name, names)}")
    return [path for path in paths if path.rpartition(".")[2] in wanted]
