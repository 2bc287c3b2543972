"""The settings of the model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from vlm_agent.common.settings import STRICT, Count, Fraction, UserPath, setting

TINY = "tiny"
"""The name of the embedded, randomly initialised Qwen2-VL."""

Scoring = Literal["auto", "first_token", "phrase_sum", "phrase_mean", "phrase_word", "action_head"]


@dataclass(config=STRICT, frozen=True)
class ModelConfig:
    """Which model, how it scores words, in which form it is trained, and its value head."""

    model_name_or_path: UserPath = setting(
        TINY, "a model on the hub, a local folder with the same files, or 'tiny'"
    )
    model_revision: str = setting("main", "branch, tag or commit on the hub")
    dtype: Literal["float32", "bfloat16"] = setting("float32", "dtype of the backbone's weights")
    scoring: Scoring = setting(
        "auto",
        "how words are scored: by their first_token; as whole phrases, whose tokens' "
        "log-probabilities are added up (phrase_sum) and divided by the number of tokens "
        "(phrase_mean) or of words (phrase_word); by an action_head of their own; auto: "
        "first_token if all differ, else phrase_word",
    )
    temperature: Annotated[float, Field(ge=0.001)] = setting(
        1.0, "scores are divided by it, in rollouts, updates and evaluation"
    )
    mask_senseless_words: bool = setting(
        False, "never close a closed gripper, nor open an open one"
    )
    use_peft: bool = setting(False, "train LoRA adapters on the language model, not all weights")
    lora_r: Annotated[int, Field(ge=1, le=1024)] = setting(16, "LoRA rank")
    lora_alpha: Count = setting(32, "LoRA scale")
    lora_dropout: Fraction = setting(
        0.0, "must be 0: with dropout the update would see another policy than the rollout"
    )
    lora_target_modules: list[str] = setting(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "linear layers of the language model that get adapters",
    )
    lora_layers: Count | None = setting(
        None,
        "train adapters in this many of the language model's top layers only; what leaves the "
        "layers below is then computed once per word; default: in all layers. A policy that "
        "begins with adapters in more layers keeps them",
    )
    lora_vision_modules: list[str] = setting(
        [], "linear layers of the vision tower that get adapters; none: it is frozen"
    )
    trained_modules: list[Literal["connector", "vision_tower"]] = setting(
        [],
        "what is trained beside the adapters, whole and in float32: the connector between vision "
        "tower and language model, or the vision_tower with it; freeze_vision leaves them be",
    )
    freeze_vision: bool = setting(
        False,
        "leave the vision tower as it is: in full fine-tuning, and what trained_modules names",
    )
    load_in_4bit: bool = setting(False, "LoRA on a backbone quantised to 4 bits (QLoRA)")
    load_in_8bit: bool = setting(False, "LoRA on a backbone quantised to 8 bits (LLM.int8())")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = setting("nf4", "number format of the 4 bits")
    gradient_checkpointing: bool = setting(False, "recompute activations to save memory")
    value_head_width: Annotated[int, Field(ge=1, le=65_536)] = setting(
        256, "width of the value head's hidden layers"
    )
    value_head_depth: Annotated[int, Field(ge=0, le=64)] = setting(
        1, "number of the value head's hidden layers; 0 for a linear one"
    )
    detach_value: bool = setting(False, "keep the value loss from reaching the backbone")

    @property
    def is_quantized(self) -> bool:
        """Whether the backbone's weights have 4 or 8 bits."""
        return self.load_in_4bit or self.load_in_8bit
