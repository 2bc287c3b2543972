"""Whether a saved policy fits a recipe: to resume a run, or to start one from it."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from textwrap import shorten
from typing import Any

from vlm_agent.common.errors import UserError
from vlm_agent.policy.artifact import saved_recipe, saved_template
from vlm_agent.policy.config import ModelConfig
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.recipe.keys import default_settings
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.recipe.sections import Lesser
from vlm_agent.runs.checkpoints import load_trainer_state, package_versions
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.pool.pool import EnvPool


def check_same_world(pool: EnvPool, recipe: Recipe) -> None:
    """Refuse environments that are not those of a recipe, which would be saved with the policy.

    Raises:
        UserError: Naming the settings that differ.
    """
    found, wanted = asdict(pool.config), asdict(recipe.env)
    if different := [key for key in wanted if found[key] != wanted[key]]:
        raise UserError(
            f"the environments differ from the recipe in {', '.join(different)}: make them with "
            "recipe.make_pool()"
        )


LESSER = typing.get_args(Lesser)


def check_same_run(
    folder: Path, policy: VLMPolicy, recipe: Recipe, also: Sequence[str] = ()
) -> None:
    """Refuse to resume with a recipe that describes another world or policy.

    What may change is how to learn: learning rates, epochs, how long, how often to evaluate. What
    must not is the world, the policy, the episodes by which the best one is chosen, and the
    packages, unless ``resume_anyway`` names them.

    Args:
        folder: The checkpoint.
        policy: Its policy.
        recipe: What it is to be resumed with.
        also: Further settings that must not change.

    Raises:
        UserError: Naming the settings that differ, with both values.
    """
    # What the checkpoint's recipe lacks did not exist then, and was what its default is now.
    saved, wanted = {**default_settings(), **policy.recipe}, recipe.to_dict()
    for key in ("model_name_or_path", "init_from"):  # as recipes say it now
        saved[key] = saved[key] and str(Path(saved[key]).expanduser())
    versions = package_versions()
    saved |= versions | load_trainer_state(folder).get("versions", {})
    wanted |= versions
    fixed = [field.name for cls in (EnvConfig, ModelConfig) for field in fields(cls)]
    fixed.remove("gradient_checkpointing")  # costs time and saves memory, and changes no number
    fixed += [*LESSER, "num_envs", "init_from", "curriculum", "value_input", "state_coef"]
    fixed += ["advantage", *also]
    if recipe.ppo.advantage == "group":
        fixed += ["group_size"]
    if recipe.curriculum.curriculum != "none":
        fixed += ["num_demo_episodes", "demo_noise"]
    fixed = [key for key in dict.fromkeys(fixed) if key not in recipe.run.resume_anyway]
    keys = [key for key in fixed if saved[key] != wanted[key]]
    different = [f"{key} ({_shown(saved[key])}; now {_shown(wanted[key])})" for key in keys]
    if not recipe.template.tells_the_same(policy.encoder.template):
        different.append("prompt_template, task_description, instructions or words")
    if different:
        lesser = [key for key in keys if key in LESSER]
        way = f"; to go on all the same: --resume_anyway '[{', '.join(lesser)}]'"
        raise UserError(
            f"resume_from: {folder} was written by a run that differs in {', '.join(different)}"
            + (way if len(lesser) == len(different) else "")
        )


def _shown(value: Any) -> str:
    return shorten(str(value), 60, placeholder="…")


def check_same_policy(what: str, policy: VLMPolicy, recipe: Recipe) -> None:
    """Refuse to start from a policy that is not of the recipe's kind.

    Args:
        what: Names the policy in the message.
        policy: Where the run is to start.
        recipe: The run.

    Raises:
        UserError: Naming the settings that differ.
    """
    if different := different_settings(policy.config, recipe):
        told = [
            f"{key} ({_shown(getattr(policy.config, key))}; the recipe: "
            f"{_shown(getattr(recipe.model, key))})"
            for key in different
        ]
        raise UserError(f"{what} differs from the recipe in {', '.join(told)}")


FAMILIAR = ("env", "task", "tasks", "robot", "frame_size", "history", "step_size")
"""Settings of the world by which a policy knows what its pictures and words mean."""


def unfamiliar(init_from: str, recipe: Recipe) -> list[str]:
    """In what a run differs from the one that made the policy it starts from: probably forgotten.

    Args:
        init_from: The policy's folder or name.
        recipe: The run.
    """
    saved, wanted = {**default_settings(), **saved_recipe(init_from)}, recipe.to_dict()
    found = [
        f"{key} ({_shown(saved[key])}; now {_shown(wanted[key])})"
        for key in FAMILIAR
        if saved[key] != wanted[key]
    ]
    template, now = saved_template(init_from), recipe.template
    if template.words != now.words:
        found.append(f"words ({_shown(', '.join(template.words))}; now {', '.join(now.words)})")
    if template.source != now.source:
        found.append("prompt_template")
    return found


def different_settings(has: ModelConfig, recipe: Recipe) -> list[str]:
    """The settings of a policy's model in which it is not of a recipe's kind."""
    wanted = recipe.model
    # What VLMPolicy.train_as takes from the recipe, and where the weights once came from.
    free = {"gradient_checkpointing", "freeze_vision", "detach_value", "model_revision"}
    free |= {"temperature", "mask_senseless_words"}
    asked = wanted.lora_layers
    if asked is not None and (has.lora_layers is None or asked <= has.lora_layers):
        free.add("lora_layers")  # of those that have adapters, fewer are trained
    if recipe.critic.value_input == "state":  # then these are the sizes of another critic
        free |= {"value_head_width", "value_head_depth"}
    if "auto" in (wanted.scoring, has.scoring):
        free.add("scoring")  # it is chosen when the policy is made
    names = [field.name for field in fields(ModelConfig) if field.name not in free]
    return [name for name in names if getattr(has, name) != getattr(wanted, name)]
