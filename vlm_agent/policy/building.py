"""Making policies: fresh ones from a recipe's settings, merged ones for deployment."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import peft

from vlm_agent.errors import UserError
from vlm_agent.policy.config import ModelConfig
from vlm_agent.policy.encoding import ObservationEncoder
from vlm_agent.policy.families import get_family
from vlm_agent.policy.loading import Backbone, find_model_type, load_base_model, load_processor
from vlm_agent.policy.lora import add_lora
from vlm_agent.policy.policy import POLICY_FILE, VLMPolicy, saved_encoder
from vlm_agent.prompts import PromptTemplate

logger = logging.getLogger(__name__)


def build_encoder(config: ModelConfig, template: PromptTemplate) -> ObservationEncoder:
    """The encoder of a recipe's model, which can be had without the model's weights."""
    name, revision = config.model_name_or_path, config.model_revision
    processor = load_processor(name, revision)
    family = get_family(find_model_type(name, revision), name)
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
    if config.use_peft:
        backbone = add_lora(backbone, config, encoder.family, seed)
    return VLMPolicy(backbone, encoder, config, seed, recipe)


def merge_adapter(folder: str | Path) -> VLMPolicy:
    """A saved LoRA policy with the adapter's weights added to the backbone's.

    The backbone is loaded without quantisation, so the scores of a 4-bit or 8-bit policy change by
    what its quantisation had rounded away.

    Raises:
        UserError: There is no policy in the folder, or one without an adapter.
    """
    folder = Path(folder)
    if not (folder / POLICY_FILE).is_file():
        raise UserError(f"no policy in the folder {str(folder)!r} (no {POLICY_FILE})")
    about = json.loads((folder / POLICY_FILE).read_text())
    config = ModelConfig(**about["model"])
    if not config.use_peft:
        raise UserError(f"the policy in {str(folder)!r} has no adapter to merge")
    config = dataclasses.replace(config, load_in_4bit=False, load_in_8bit=False)
    encoder = saved_encoder(folder, about)
    base = load_base_model(config, encoder.processor, about["seed"])
    merged = peft.PeftModel.from_pretrained(base, str(folder)).merge_and_unload(safe_merge=True)
    saved = VLMPolicy.from_pretrained(folder)
    config = dataclasses.replace(config, use_peft=False)
    policy = VLMPolicy(merged, encoder, config, about["seed"], saved.recipe)
    policy.read_heads(folder)
    return policy
