"""Starting accelerate, and making sure that it started what was asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from vlm_agent.common.errors import UserError
from vlm_agent.policy.policy import VLMPolicy


def start_accelerator(log_with: list[str], project_dir: str) -> Accelerator:
    """The ``Accelerator`` of this process; on the CPU where there is no GPU.

    Args:
        log_with: Names of accelerate's trackers.
        project_dir: The folder TensorBoard writes to.

    Raises:
        UserError: Several processes were asked for, but accelerate runs one.
    """
    # Two processes on a CPU need cpu=True: without it accelerate lets each of them run alone.
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(), log_with=log_with or None, project_dir=project_dir
    )
    check_launch(accelerator.num_processes, os.environ)
    return accelerator


def allow_unused_layers(accelerator: Accelerator, policy: VLMPolicy) -> None:
    """Tell DistributedDataParallel of layers that nothing goes through; else it waits for them."""
    if policy.family.skips_layers and not policy.vision_is_frozen:
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)


def cores_per_process(environ: Mapping[str, str]) -> int:
    """How many of this machine's cores each process of the run may use, at least one."""
    cores = len(os.sched_getaffinity(0))
    return max(1, cores // int(environ.get("LOCAL_WORLD_SIZE", "1")))


def rendering_gpu(environ: Mapping[str, str], gpus: int) -> int | None:
    """The index, as EGL counts, of the GPU that this process's environments draw on.

    Each process of a run uses its own. EGL counts all GPUs of the machine, CUDA those that
    ``CUDA_VISIBLE_DEVICES`` names; where it names them by other things than numbers, the choice is
    EGL's.

    Args:
        environ: The environment that the launcher prepared.
        gpus: How many GPUs CUDA sees; with none the choice is EGL's.
    """
    if gpus == 0:
        return None
    local = int(environ.get("LOCAL_RANK", "0")) % gpus
    if not environ.get("CUDA_VISIBLE_DEVICES"):
        return local
    name = environ["CUDA_VISIBLE_DEVICES"].split(",")[local].strip()
    return int(name) if name.isdecimal() else None


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
