"""Settings that are right by themselves but cannot work, or not with the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlm_agent.common.errors import UserError
from vlm_agent.policy.config import ModelConfig
from vlm_agent.recipe.sections import (
    CriticConfig,
    PPOConfig,
    PromptConfig,
    RolloutConfig,
    TrackingConfig,
)
from vlm_agent.world.registry import declare

CRITIC_KEYS = (
    "value_input",
    "value_lambda",
    "value_epochs",
    "clip_range_value",
    "critic_warmup_updates",
)
"""What only a critic has; a learning rate for heads is an action head's too."""

Check = Callable[[Mapping[str, Any]], dict[str, str]]
"""From the sections of a recipe to what is wrong: key -> sentence."""


def combination_problems(sections: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with a recipe, though each value is one that its key can have."""
    found: dict[str, str] = {}
    for check in (_world, _training_form, _adapters, _sizes, _groups, _ahead, _trackers):
        found = check(sections) | found
    return found


def _world(sections: Mapping[str, Any]) -> dict[str, str]:
    prompt: PromptConfig = sections["prompt"]
    found = {}
    try:
        spec = declare(sections["env"])
        if prompt.action_words is not None:
            try:
                spec.vocabulary.renamed(prompt.action_words)
            except UserError as error:
                found["action_words"] = str(error)
        if prompt.task_description is not None and len(spec.instructions.sentences) > 1:
            found["task_description"] = (
                f"stands beside {len(spec.instructions.sentences)} instructions: leave it out"
            )
    except UserError as error:
        key, _, problem = str(error).partition(": ")
        found[key] = problem
    return found


def _training_form(sections: Mapping[str, Any]) -> dict[str, str]:
    """Weights that could not be trained so, or could not be found."""
    model: ModelConfig = sections["model"]
    found = {}
    if model.dtype == "bfloat16" and not model.use_peft:
        found["dtype"] = (
            "'bfloat16' weights are too coarse for full fine-tuning's small steps: add "
            "use_peft: true, or keep float32 weights and set mixed_precision: bf16 in the "
            "accelerate config"
        )
    if model.is_quantized and not model.use_peft:
        key = "load_in_4bit" if model.load_in_4bit else "load_in_8bit"
        found[key] = "quantised weights cannot be trained: add use_peft: true"
    if model.load_in_4bit and model.load_in_8bit:
        found["load_in_8bit"] = "is true beside load_in_4bit; choose one of them"
    if sections["ppo"].kl_coef and model.scoring == "action_head":
        found["kl_coef"] = (
            "is not 0, but scoring: action_head starts from no policy worth keeping to"
        )
    name = model.model_name_or_path
    if name.startswith((".", "/", "~")) and not Path(name).is_dir():
        found["model_name_or_path"] = f"there is no folder {name!r}"
    return found


def _adapters(sections: Mapping[str, Any]) -> dict[str, str]:
    model: ModelConfig = sections["model"]
    found = {}
    if model.lora_dropout:
        found["lora_dropout"] = (
            f"{model.lora_dropout} is not 0: with dropout the update sees another policy than "
            "the rollout, and PPO's ratios are wrong"
        )
    if model.trained_modules and not model.use_peft:
        found["trained_modules"] = "is for use_peft; without it all is trained"
    if "vision_tower" in model.trained_modules and model.lora_vision_modules:
        found["lora_vision_modules"] = "adapts a vision tower that trained_modules trains whole"
    if model.lora_vision_modules and not model.use_peft:
        found["lora_vision_modules"] = "names layers to adapt, but use_peft is false"
    if model.lora_layers is not None and not model.use_peft:
        found["lora_layers"] = "says where adapters go, but use_peft is false"
    if model.use_peft and not model.lora_target_modules and not model.lora_vision_modules:
        found["lora_target_modules"] = "the list is empty: use_peft needs layers to adapt"
    if model.lora_vision_modules and model.freeze_vision:
        found["freeze_vision"] = "is true, but lora_vision_modules names layers to adapt"
    return found


def _sizes(sections: Mapping[str, Any]) -> dict[str, str]:
    rollout: RolloutConfig = sections["rollout"]
    ppo: PPOConfig = sections["ppo"]
    found = {}
    if rollout.num_workers > rollout.num_envs:
        found["num_workers"] = f"{rollout.num_workers} is more than num_envs ({rollout.num_envs})"
    samples = rollout.rollout_steps * rollout.num_envs
    if ppo.advantage == "gae" and ppo.batch_size > samples:
        found["batch_size"] = f"{ppo.batch_size} is more than rollout_steps x num_envs ({samples})"
    return found


def _groups(sections: Mapping[str, Any]) -> dict[str, str]:
    """Group advantages have no critic, and whole groups."""
    ppo: PPOConfig = sections["ppo"]
    if ppo.advantage != "group":
        return {}
    critic, unset = sections["critic"], CriticConfig()
    found = {
        key: f"{getattr(critic, key)!r} is about a critic, and advantage: group has none: leave "
        f"it out, or set advantage: gae"
        for key in CRITIC_KEYS
        if getattr(critic, key) != getattr(unset, key)
    }
    if (count := sections["rollout"].num_envs) % ppo.group_size:
        found["num_envs"] = f"{count} is no multiple of group_size ({ppo.group_size})"
    return found


def _ahead(sections: Mapping[str, Any]) -> dict[str, str]:
    """Rollouts of the policy before the update."""
    rollout: RolloutConfig = sections["rollout"]
    ppo: PPOConfig = sections["ppo"]
    if not rollout.async_rollout:
        return {}
    if ppo.advantage == "group":
        return {"async_rollout": "is for advantage: gae: leave it out, or set that"}
    if ppo.recompute_log_probs:
        return {
            "async_rollout": "learns from what its words' probabilities were when they were said, "
            "and recompute_log_probs: true forgets that: leave one of them out"
        }
    return {}


def _trackers(sections: Mapping[str, Any]) -> dict[str, str]:
    tracking: TrackingConfig = sections["tracking"]
    if "none" in tracking.report_to and len(tracking.report_to) > 1:
        return {"report_to": "'none' cannot stand beside other trackers"}
    return {}
