"""Starting accelerate, and making sure that it started what was asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from vlm_agent.common.errors import UserError
from vlm_agent.policy.policy import VLMPolicy

SHARDING = {
    "DEEPSPEED": "ACCELERATE_USE_DEEPSPEED",
    "FSDP": "ACCELERATE_USE_FSDP",
    "MEGATRON_LM": "ACCELERATE_USE_MEGATRON_LM",
}
"""Ways to share a model among processes, and the variables by which the launcher asks for them."""


def start_accelerator(log_with: list[Any], project_dir: str) -> Accelerator:
    """The ``Accelerator`` of this process; on the CPU where there is no GPU.

    Args:
        log_with: Names of accelerate's trackers, or trackers.
        project_dir: The folder TensorBoard writes to.

    Raises:
        UserError: It would share the model among processes.
    """
    check_sharding(os.environ)  # first: accelerate would look for the package that does it
    # Two processes on a CPU need cpu=True: without it accelerate lets each of them run alone.
    return Accelerator(
        cpu=not torch.cuda.is_available(), log_with=log_with or None, project_dir=project_dir
    )


def check_accelerator(accelerator: Accelerator) -> None:
    """Refuse what accelerate was asked for and this package would not do, or do otherwise.

    Raises:
        UserError: It shards the model, accumulates gradients by itself, or runs fewer processes
            than the launcher was told to start.
    """
    check_launch(accelerator.num_processes, os.environ)
    check_sharding(os.environ, str(accelerator.distributed_type).rpartition(".")[2])
    if (steps := accelerator.gradient_accumulation_steps) != 1:
        raise UserError(
            f"the accelerate config has gradient_accumulation_steps: {steps}; leave it out and set "
            "micro_batch_size in the recipe: how many samples of a minibatch are in memory at once"
        )


def allow_unused_layers(accelerator: Accelerator, policy: VLMPolicy) -> None:
    """Tell DistributedDataParallel of layers that nothing goes through; else it waits for them."""
    if policy.family.skips_layers and not policy.vision_is_frozen:
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)


def check_sharding(environ: Mapping[str, str], distributed_type: str = "NO") -> None:
    """Refuse a launch that would share the model among processes.

    Args:
        environ: The environment that the launcher prepared.
        distributed_type: What accelerate does, in its own words; on a CPU it passes over sharding
            in silence, and only the environment tells.

    Raises:
        UserError: It would.
    """
    for plugin, variable in SHARDING.items():
        if distributed_type == plugin or environ.get(variable, "false").lower() == "true":
            raise UserError(
                f"the accelerate config asks for {plugin}, which is not supported yet: rollouts "
                "and checkpoints need the whole model in each process; use "
                "accelerate_configs/multi_gpu.yaml, with use_peft or load_in_4bit to save memory"
            )


def check_launch(num_processes: int, environ: Mapping[str, str]) -> None:
    """Refuse a launch of several processes that silently became one.

    Args:
        num_processes: What accelerate runs.
        environ: The environment that the launcher prepared.

    Raises:
        UserError: It is fewer than the launcher was told to start.
    """
    world_size = int(environ.get("WORLD_SIZE", "1"))
    # `accelerate launch --cpu --num_processes 2` sets up a meeting point but starts one process.
    alone_at_meeting_point = (
        "ACCELERATE_MIXED_PRECISION" in environ
        and "MASTER_PORT" in environ
        and "WORLD_SIZE" not in environ
    )
    if alone_at_meeting_point or num_processes != world_size:
        asked = "several processes" if alone_at_meeting_point else f"{world_size} processes"
        raise UserError(
            f"the launcher was asked for {asked}, but accelerate runs {num_processes}: for two "
            "processes on a CPU use --config_file accelerate_configs/cpu_2proc.yaml"
        )
