"""Checkpoints: a folder that can be evaluated alone, and what is needed to go on training."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from vlm_agent.common.errors import UserError
from vlm_agent.common.settings import known_settings
from vlm_agent.common.versions import KEY, VERSION, version_of
from vlm_agent.common.whole import whole_folder
from vlm_agent.policy.artifact import VALUE_HEAD_FILE, holds_state_critic, write_module
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.recipe.sections import Package, PPOConfig
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.modules import check_trusted

STATE_FILE = "trainer_state.json"
CRITIC_FILE = "critic.safetensors"
STATE_HEAD_FILE = "state_head.safetensors"
BEHAVIOUR_FILE = "behaviour.safetensors"
"""Of a run with ``async_rollout``: what the policy was that collects the next rollout."""


def save_checkpoint(
    folder: Path,
    policy: VLMPolicy,
    state: dict[str, Any],
    tensors: Mapping[str, dict[str, torch.Tensor]] = MappingProxyType({}),
    heads: Mapping[str, nn.Module] = MappingProxyType({}),
) -> None:
    """Write a checkpoint; it takes its name, and another one's place, only when it is whole.

    Args:
        folder: Where to.
        policy: Adapter or weights, heads, processor, prompt, words and recipe.
        state: JSON values: what the trainer needs to go on, or how good the policy is.
        tensors: What else training needs to go on from here, by the names of the files.
        heads: What is no part of the policy, by the names of the files.

    Raises:
        UserError: It cannot be written; a former one of the name is as it was.
    """
    about = {"versions": package_versions()}
    with whole_folder(folder) as partial:
        policy.save_pretrained(partial)
        (partial / STATE_FILE).write_text(json.dumps({KEY: VERSION, **about, **state}))
        for name, kept in tensors.items():
            save_file(kept, partial / name)
        for name, head in heads.items():
            write_module(head, partial / name)


def package_versions() -> dict[str, str]:
    """The packages another version of which may compute other numbers."""
    return {name: version(name) for name in typing.get_args(Package)}


def load_trainer_state(folder: Path) -> dict[str, Any]:
    """The trainer's state of a checkpoint.

    Raises:
        UserError: It was written by a later version.
    """
    state = json.loads((folder / STATE_FILE).read_text())
    if version_of(state, f"the checkpoint {str(folder)!r}") == 1:
        for collector in state.get("collectors", []):
            _update_collector(collector)
    return state


def load_ppo_state(folder: Path, processes: int) -> dict[str, Any]:
    """The state of a run of PPO in so many processes.

    Raises:
        UserError: It is not of one, or was written by a later version.
    """
    state = load_trainer_state(folder)
    if "collectors" not in state:
        raise UserError(f"resume_from: {folder} is of a warm start: go on with vlm_agent.sft")
    if (ranks := len(state["collectors"])) != processes:
        raise UserError(f"resume_from: {folder} is of {ranks} processes, now there are {processes}")
    return state


def _update_collector(state: dict[str, Any]) -> None:
    """A collector's state of format 1 as it is now."""
    for episode in state["running"]:
        episode["prefix_length"] = episode.pop("begun")
    source = state.pop("curriculum", {})
    if "words_left" in source:
        source["steps_from_success"] = source.pop("words_left")
    state["source"] = source


def find_critic(folder: Path) -> dict[str, torch.Tensor] | None:
    """The weights of the critic that reads states, beside a policy; ``None`` if there is none."""
    path = folder / (VALUE_HEAD_FILE if holds_state_critic(folder) else CRITIC_FILE)
    return load_file(path) if path.is_file() else None


def load_heads(folder: Path, heads: Mapping[str, nn.Module]) -> None:
    """Give what is no part of the policy the weights of a checkpoint.

    Args:
        folder: The checkpoint.
        heads: By the names of their files.

    Raises:
        UserError: One of them is not there.
    """
    for name, head in heads.items():
        path = folder / name
        weights = find_critic(folder) if name == CRITIC_FILE else None
        if weights is None and not path.is_file():
            raise UserError(f"resume_from: there is no {name} in {str(folder)!r}")
        head.load_state_dict(load_file(path) if weights is None else weights)


def load_policy(
    folder: str | Path, trust_modules: bool = False
) -> tuple[VLMPolicy, EnvConfig, float]:
    """A saved policy, the scene it was trained in, and the discount of its rewards.

    Settings that its recipe lacks, since there were none then, are their defaults.

    Args:
        folder: A checkpoint, a policy that ships, or a policy's name on the hub.
        trust_modules: Whether the world may be one whose code the policy names.

    Raises:
        UserError: There is no policy, its recipe is not with it, or it names code that is not to
            be trusted.
    """
    policy = VLMPolicy.from_pretrained(folder)
    if "task" not in policy.recipe:
        raise UserError(f"the policy {str(folder)!r} does not say in which task it was trained")
    env = EnvConfig(**known_settings(EnvConfig, policy.recipe))
    check_trusted(f"the policy {str(folder)!r}", env.modules, trust_modules)
    return policy, env, policy.recipe.get("gamma", PPOConfig().gamma)
