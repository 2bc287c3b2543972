"""Starting accelerate, and making sure that it started what was asked for."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
    is_deepspeed_available,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from vlm_agent.common.errors import UserError
from vlm_agent.distributed.sharding import divides_weights, sharding_of
from vlm_agent.policy.policy import VLMPolicy

logger = logging.getLogger(__name__)

UNSUPPORTED = (
    "which is not supported: accelerate_configs/zero3.yaml and fsdp2.yaml share a model among "
    "processes"
)

SHARDING = {
    "DEEPSPEED": "ACCELERATE_USE_DEEPSPEED",
    "FSDP": "ACCELERATE_USE_FSDP",
    "MEGATRON_LM": "ACCELERATE_USE_MEGATRON_LM",
}
"""Ways to share a model among processes, and the variables by which the launcher asks for them."""


def start_accelerator(
    log_with: list[Any], project_dir: str, rank_timeout: float = 1800.0
) -> Accelerator:
    """The ``Accelerator`` of this process; on the CPU where there is no GPU.

    Args:
        log_with: Names of accelerate's trackers, or trackers.
        project_dir: The folder TensorBoard writes to.
        rank_timeout: How many seconds processes wait for one that does not join them; a
            ``RankWatch`` then says which, before a collective call gives up by itself.

    Raises:
        UserError: It would share the model among processes in a way that is not supported, or
            processes that are started again would wait for those before them.
    """
    _check_restarts(os.environ)
    sharding = asked_sharding(os.environ)  # first: accelerate would look for the package for it
    waits = timedelta(seconds=2 * rank_timeout)
    options: dict[str, Any] = {"log_with": log_with or None, "project_dir": project_dir}
    options["kwargs_handlers"] = [InitProcessGroupKwargs(timeout=waits)]
    if torch.cuda.is_available():
        return _ready(Accelerator(**options))
    # Else DeepSpeed, which transformers imports where it is installed, says that it looked for one.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if sharding == "DEEPSPEED":  # which accelerate passes over with cpu=True
        options["kwargs_handlers"] = [InitProcessGroupKwargs(backend="gloo", timeout=waits)]
        return _ready(Accelerator(**options))
    # Two processes on a CPU need cpu=True: without it accelerate lets each of them run alone.
    accelerator = Accelerator(cpu=True, **options)
    if sharding == "FSDP":  # accelerate's own FSDP2, which it begins on GPUs alone
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        accelerator.state.distributed_type = DistributedType.FSDP
    return accelerator


def _check_restarts(environ: Mapping[str, str]) -> None:
    """Refuse torchrun's restarts with one store for all starts.

    The processes of a second start then find the addresses of the first one's there, and may wait
    for them without end (pytorch/pytorch#135712).

    Raises:
        UserError: It is so.
    """
    restarts = int(environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
    if restarts and environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        raise UserError(
            "torchrun --max_restarts: processes that it starts again may wait for those of before "
            "without end: export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 first, with --rdzv_backend "
            "c10d, as docs/clusters/elastic.sh does"
        )


def _ready(accelerator: Accelerator) -> Accelerator:
    """One that does not have transformers divide each model that it makes among processes.

    Rollouts need models whole; what learns is divided by itself.
    """
    unset_hf_deepspeed_config()
    return accelerator


def check_accelerator(accelerator: Accelerator) -> None:
    """Refuse what accelerate was asked for and this package would not do, or do otherwise.

    Raises:
        UserError: It does not share the model as the launcher was told, accumulates gradients by
            itself, or runs fewer processes than that was to start.
    """
    check_launch(accelerator.num_processes, os.environ)
    asked, runs = asked_sharding(os.environ), sharding_of(accelerator)
    if asked and runs == "none":
        raise UserError(
            f"the launcher asks for {asked}, and this accelerator passes over it: have the trainer "
            "make its own"
        )
    if "MEGATRON" in str(accelerator.distributed_type):
        raise UserError(f"the accelerator shares the model by MEGATRON_LM, {UNSUPPORTED}")
    if runs != "none" and str(accelerator.mixed_precision) != "no":
        raise UserError(
            f"the accelerate config has mixed_precision: {accelerator.mixed_precision}, which "
            "ZeRO and FSDP2 would do to the heads, too: set it to 'no', and dtype: bfloat16 with "
            "use_peft in the recipe"
        )
    if (steps := accelerator.gradient_accumulation_steps) != 1:
        raise UserError(
            f"the accelerate config has gradient_accumulation_steps: {steps}; leave it out and set "
            "micro_batch_size in the recipe: how many samples of a minibatch are in memory at once"
        )


def check_device(accelerator: Accelerator, model: str) -> None:
    """Refuse to run a large model on the CPU beside a GPU; ``tiny`` is as fast there.

    Raises:
        UserError: It would.
    """
    if accelerator.device.type == "cpu" and torch.cuda.is_available() and model != "tiny":
        raise UserError(
            f"the accelerate config asks for the CPU, and there is a GPU for {model!r}: use "
            "accelerate_configs/single_gpu.yaml, or hide it: CUDA_VISIBLE_DEVICES="
        )


def allow_unused_layers(accelerator: Accelerator, policy: VLMPolicy) -> None:
    """Tell DistributedDataParallel of layers that nothing goes through; else it waits for them."""
    if policy.family.skips_layers and not policy.vision_is_frozen:
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)


def asked_sharding(environ: Mapping[str, str]) -> str | None:
    """How the launcher asks for the model to be shared among processes, a key of ``SHARDING``.

    Args:
        environ: The environment that the launcher prepared.

    Raises:
        UserError: In a way that is not supported, or whose package is not installed.
    """
    asked = [name for name, key in SHARDING.items() if environ.get(key, "").lower() == "true"]
    for plugin in asked:
        if plugin == "MEGATRON_LM":
            raise UserError(f"the accelerate config asks for {plugin}, {UNSUPPORTED}")
        if plugin == "FSDP" and environ.get("FSDP_VERSION", "1") != "2":
            raise UserError(
                "the accelerate config asks for FSDP of version 1: set fsdp_version: 2, as in "
                "accelerate_configs/fsdp2.yaml"
            )
        if plugin == "DEEPSPEED" and not is_deepspeed_available():
            raise UserError(
                "the accelerate config asks for DeepSpeed, which is not installed: "
                'pip install "vlm-agent[deepspeed]"; or use accelerate_configs/fsdp2.yaml'
            )
        if "LOCAL_RANK" not in environ:
            raise UserError(f"{SHARDING[plugin]} asks for {plugin}: start it by accelerate launch")
        if environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
            raise UserError(
                f"the accelerate config asks for {plugin} and for the CPU (use_cpu), with which "
                "accelerate passes over it in silence: leave use_cpu out, it is found out"
            )
    return asked[0] if asked else None


def check_quantized(accelerator: Accelerator, is_quantized: bool) -> None:
    """Refuse to share quantised weights among processes.

    Raises:
        UserError: They would be.
    """
    if is_quantized and divides_weights(accelerator):
        raise UserError(
            "load_in_4bit, load_in_8bit: ZeRO-3 and FSDP2 cannot divide quantised weights; use "
            "accelerate_configs/multi_gpu.yaml or zero2.yaml, where each GPU has them whole"
        )


def warn_of_slow_bits(accelerator: Accelerator, is_quantized: bool) -> None:
    """Say, once, that quantised weights want a GPU, where there is none."""
    if is_quantized and accelerator.device.type == "cpu" and accelerator.is_main_process:
        logger.warning(
            "load_in_4bit: there is no GPU here; on CPU cores 4 bits save memory and make each "
            "step slower: vlm-agent plan --cpu says by how much"
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
