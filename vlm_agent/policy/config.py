"""The settings of the mind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from vlm_agent.settings import STRICT, setting

TINY = "tiny"
"""The name of the embedded, randomly initialised Qwen2-VL."""


@dataclass(config=STRICT, frozen=True)
class ModelConfig:
    """Which model, in which form it is trained, and the shape of its value head."""

    model_name_or_path: str = setting(
        TINY, "a Qwen2-VL on the hub, a local folder with the same files, or 'tiny'"
    )
    model_revision: str = setting("main", "branch, tag or commit on the hub")
    dtype: Literal["float32", "bfloat16"] = setting("float32", "dtype of the backbone's weights")
    use_peft: bool = setting(False, "train LoRA adapters on the language model, not all weights")
    lora_r: Annotated[int, Field(ge=1, le=1024)] = setting(16, "LoRA rank")
    lora_alpha: Annotated[int, Field(ge=1)] = setting(32, "LoRA scale")
    lora_dropout: Annotated[float, Field(ge=0, le=1)] = setting(
        0.0, "must be 0: with dropout the update would see another policy than the rollout"
    )
    lora_target_modules: list[str] = setting(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "linear layers of the language model that get adapters",
    )
    gradient_checkpointing: bool = setting(False, "recompute activations to save memory")
    value_head_width: Annotated[int, Field(ge=1)] = setting(
        256, "hidden width of the value head's MLP"
    )
    detach_value: bool = setting(False, "keep the value loss from reaching the backbone")
