"""Making policies: fresh ones from a recipe's settings, merged ones for deployment."""

from __future__ import annotations

import copy
import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch

from vlm_agent.common.errors import UserError
from vlm_agent.policy.artifact import read_heads
from vlm_agent.policy.backbone.families import FAMILIES
from vlm_agent.policy.backbone.hidden import ModelPass
from vlm_agent.policy.backbone.loading import (
    Backbone,
    find_model_type,
    load_adapter,
    load_base_model,
    load_processor,
)
from vlm_agent.policy.backbone.lora import add_lora
from vlm_agent.policy.config import ModelConfig
from vlm_agent.policy.inputs.encoder import ObservationEncoder, PromptRows
from vlm_agent.policy.inputs.prompts import PromptTemplate
from vlm_agent.policy.places import policy_folder
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.policy.scoring.scorer import WordScorer

logger = logging.getLogger(__name__)


def build_encoder(config: ModelConfig, template: PromptTemplate) -> ObservationEncoder:
    """The encoder of a recipe's model, which can be had without the model's weights."""
    name, revision = config.model_name_or_path, config.model_revision
    processor = load_processor(name, revision)
    family = FAMILIES[find_model_type(name, revision)]
    return ObservationEncoder(processor, template, family)


def build_policy(
    config: ModelConfig,
    template: PromptTemplate,
    seed: int,
    recipe: dict[str, Any] | None = None,
) -> VLMPolicy:
    """A fresh policy from the settings of a recipe.

    Args:
        config: The recipe's part about the model.
        template: The checked prompt.
        seed: Decides what is random: ``tiny``, adapters, heads.
        recipe: All settings, to be saved with the policy.

    Raises:
        UserError: The model cannot be loaded, or its tokenizer cannot tell the words apart.
    """
    encoder = build_encoder(config, template)
    scoring, reason = encoder.words.choose_scoring(config.scoring)
    if config.scoring == "auto" and scoring != "first_token":
        logger.warning(reason)
    config = dataclasses.replace(config, scoring=scoring)
    backbone: Backbone = load_base_model(config, encoder.processor, seed)
    if commit := getattr(backbone.config, "_commit_hash", None):
        config = dataclasses.replace(config, model_revision=commit)  # a branch may move
    if config.use_peft:
        backbone = add_lora(backbone, config, encoder.family, seed)
    return VLMPolicy(backbone, encoder, config, seed, recipe)


def merge_adapter(name: str | Path) -> VLMPolicy:
    """A saved LoRA policy with the adapter's weights added to the backbone's.

    The scores stay the same up to the rounding of the backbone's dtype. Of a quantised policy the
    backbone is loaded as it was before, so there they change by what had been rounded away.

    Args:
        name: A folder, or a name on the hub.

    Raises:
        UserError: There is no policy, or one without an adapter.
    """
    folder = policy_folder(name)
    saved = VLMPolicy.from_pretrained(folder)
    if not saved.config.use_peft:
        raise UserError(f"the policy {str(name)!r} has no adapter to merge")
    config = dataclasses.replace(
        saved.config,
        use_peft=False,
        lora_layers=None,
        trained_modules=[],
        load_in_4bit=False,
        load_in_8bit=False,
    )
    adapted = saved.backbone
    if saved.config.is_quantized:
        adapted = load_adapter(load_base_model(config, saved.encoder.processor, saved.seed), folder)
    merged = adapted.merge_and_unload(safe_merge=True)
    for parameter in merged.parameters():  # trained modules were in float32
        parameter.data = parameter.data.to(getattr(torch, config.dtype))
    policy = VLMPolicy(merged, saved.encoder, config, saved.seed, saved.recipe)
    read_heads(policy, folder)
    return policy


def with_template(policy: VLMPolicy, template: PromptTemplate) -> VLMPolicy:
    """A policy's weights and heads behind another prompt; the policy stays as it is.

    Args:
        policy: The policy.
        template: The prompt, with the same words.

    Raises:
        UserError: The model cannot read it.
    """
    other = copy.copy(policy)
    other._modules = dict(policy._modules)  # else what is set below would be set in both
    other.encoder = ObservationEncoder(policy.encoder.processor, template, policy.family)
    other.rows = PromptRows(other.encoder, policy.inner_model.model)
    other.model_pass = ModelPass(policy.inner_model.model, policy.family)
    by_head = policy.config.scoring == "action_head"
    scoring = "first_token" if by_head else policy.config.scoring
    other.scorer = WordScorer(other.encoder.words, scoring).to(policy.device)
    other.phrases = WordScorer(other.encoder.words, "phrase_sum").to(policy.device)
    other.model_pass.find_frozen()
    return other
