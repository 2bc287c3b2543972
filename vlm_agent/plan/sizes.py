"""How large a recipe's model is and how long its prompts are, without any weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2VLForConditionalGeneration

from vlm_agent.policy.backbone.hidden import ModelPass
from vlm_agent.policy.backbone.lora import add_lora, choose_trained
from vlm_agent.policy.backbone.tiny import qwen2_vl_config
from vlm_agent.policy.building import build_encoder
from vlm_agent.policy.config import TINY
from vlm_agent.policy.inputs.encoder import ObservationEncoder
from vlm_agent.policy.scoring.scorer import WordScorer
from vlm_agent.recipe.recipe import Recipe


@dataclass(frozen=True)
class Sizes:
    """Of a model and its inputs.

    Attributes:
        vision: Parameters of the vision tower and the connector.
        layer: Of one layer of the language model, without adapters.
        layers: How many of these there are.
        embedding: Parameters of token embeddings and language head.
        adapters: Of LoRA.
        trained: What the optimiser moves.
        vision_is_trained: Whether gradients reach the vision tower.
        trunk: Layers below all that is trained.
        hidden: Width of the language model.
        intermediate: Width inside of its MLPs.
        vision_hidden: Width of the vision tower.
        vision_layers: How many layers it has.
        patches: Patches of a picture.
        picture: Tokens of a picture.
        prefix: Tokens that all prompts begin with.
        rest: Tokens behind them, with those of the words that are packed there.
    """

    vision: int
    layer: int
    layers: int
    embedding: int
    adapters: int
    trained: int
    vision_is_trained: bool
    trunk: int
    hidden: int
    intermediate: int
    vision_hidden: int
    vision_layers: int
    patches: int
    picture: int
    prefix: int
    rest: int

    @property
    def base(self) -> int:
        """Parameters without adapters."""
        return self.vision + self.layer * self.layers + self.embedding


def sizes_of(recipe: Recipe) -> Sizes:
    """The sizes of a recipe's model, with adapters as it will have them, and of its prompts.

    Raises:
        UserError: The model's configuration and tokenizer are not to be had.
    """
    encoder = build_encoder(recipe.model, recipe.template)
    family = encoder.family
    with torch.device("meta"):
        model = _skeleton(recipe, encoder)
    whole, vision = _count(model), family.vision_modules(model.model)
    seen = sum(map(_count, vision))
    layers = model.model.get_submodule(family.language_model).layers
    layer, depth = _count(layers[0]), len(layers)
    backbone: Any = model
    if recipe.model.use_peft:
        with torch.device("meta"):
            backbone = add_lora(model, recipe.model, family, seed=0)
        choose_trained(backbone, recipe.model, family)
    elif recipe.model.freeze_vision:
        for module in vision:
            module.requires_grad_(False)
    model_pass = ModelPass(model.model, family)
    named = dict(backbone.named_parameters())
    text, eyes = model.config.get_text_config(), model.config.vision_config
    return Sizes(
        vision=seen,
        layer=layer,
        layers=depth,
        embedding=whole - seen - depth * layer,
        adapters=sum(p.numel() for name, p in named.items() if ".lora_" in name),
        trained=sum(p.numel() for p in named.values() if p.requires_grad),
        vision_is_trained=not model_pass.vision_is_frozen,
        trunk=model_pass.trunk_depth,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        vision_hidden=_first(eyes, "embed_dim", "hidden_size"),
        vision_layers=_first(eyes, "depth", "num_hidden_layers"),
        patches=_patches(encoder, recipe, eyes),
        **_tokens(recipe, encoder),
    )


def _skeleton(recipe: Recipe, encoder: ObservationEncoder) -> Any:
    """The model without weights."""
    name = recipe.model.model_name_or_path
    if name == TINY:
        return Qwen2VLForConditionalGeneration(qwen2_vl_config(encoder.processor.tokenizer))
    config = AutoConfig.from_pretrained(name, revision=recipe.model.model_revision)
    return AutoModelForImageTextToText.from_config(config)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _first(config: Any, *names: str) -> int:
    """The first of some settings that a configuration has; families call them otherwise."""
    return next(int(value) for name in names if (value := getattr(config, name, None)))


def _patches(encoder: ObservationEncoder, recipe: Recipe, config: Any) -> int:
    """Patches that the vision tower makes of a frame."""
    frame = np.zeros((1, *recipe.env.frame_shape), np.uint8)
    pixels = encoder.frames(frame, torch.device("cpu"))["pixel_values"]
    if pixels.ndim == 2:  # Qwen's come cut into patches
        return len(pixels)
    size = config.patch_size
    side = size if isinstance(size, int) else size[0]
    return math.prod(pixels.shape[-2:]) // side**2


def _tokens(recipe: Recipe, encoder: ObservationEncoder) -> dict[str, int]:
    text = encoder.template.render(encoder.template.start_facts)
    ids = encoder.row(text, recipe.env.frame_shape)["input_ids"][0].tolist()
    scoring = encoder.words.choose_scoring(recipe.model.scoring)[0]
    by_head = scoring == "action_head"
    nodes = WordScorer(encoder.words, "first_token" if by_head else scoring).size
    prefix = len(encoder.prefix)
    picture = ids.count(encoder.processor.image_token_id)
    return {"picture": picture, "prefix": prefix, "rest": len(ids) - prefix + nodes}
