"""Whole tensors of a model that processes share among them, and back.

Every process has to call what is here, in the same order: it gathers from all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from vlm_agent.distributed.reductions import rank_and_size

Sharding = Literal["none", "zero", "fsdp"]
"""None of it, DeepSpeed's ZeRO, or PyTorch's FSDP2."""

STEP, MOMENTS = "step", ("exp_avg", "exp_avg_sq")
"""Of Adam's state: how many steps there were, and what it knows of gradients."""


def sharding_of(accelerator: Accelerator) -> Sharding:
    """How an accelerator shares a model among its processes."""
    kind = str(accelerator.distributed_type).rpartition(".")[2]
    return {"DEEPSPEED": "zero", "FSDP": "fsdp"}.get(kind, "none")  # type: ignore[return-value]


def divides_weights(accelerator: Accelerator) -> bool:
    """Whether no process has all weights; ZeRO's first two stages divide less."""
    sharding = sharding_of(accelerator)
    return sharding == "fsdp" or (
        sharding == "zero" and accelerator.state.deepspeed_plugin.zero_stage == 3
    )


@torch.no_grad()
def whole_weight(parameter: nn.Parameter) -> torch.Tensor:
    """A parameter's whole value, in every process."""
    if isinstance(parameter, DTensor):
        return parameter.full_tensor()
    with _gathered(parameter):
        return parameter.detach().clone()


@torch.no_grad()
def set_weight(parameter: nn.Parameter, value: torch.Tensor) -> None:
    """Give a parameter another value, which every process has."""
    if isinstance(parameter, DTensor):
        _put(parameter, value)
        return
    with _gathered(parameter, modifier_rank=0):
        if parameter.numel():
            parameter.copy_(value)
    if hasattr(parameter, "ds_id"):
        from deepspeed.utils import safe_set_local_fp32_param

        safe_set_local_fp32_param(parameter, _part(value, parameter))
    elif _is_zeros(parameter):
        from deepspeed.utils import safe_set_full_fp32_param

        safe_set_full_fp32_param(parameter, value.to(parameter.device, torch.float32))


class AdamStates:
    """What Adam knows of parameters, whole. All processes have to ask for the same.

    Args:
        optimizer: As accelerate wrapped it.
        sharding: What shares the weights.
    """

    def __init__(self, optimizer: Any, sharding: Sharding) -> None:
        self.sharding = sharding
        self._plain = None if sharding == "zero" else optimizer.optimizer.state
        self._groups = list(_zeros_groups(optimizer)) if sharding == "zero" else []
        self._of = {number: state for group, state in self._groups for number in group}

    @torch.no_grad()
    def get(self, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        """By name; empty before its first step."""
        if self.sharding == "zero":
            from deepspeed.utils import safe_get_full_optimizer_state

            whole = {STEP: self._of[id(parameter)][STEP].clone()}  # one for a whole group
            for name in MOMENTS:
                moment = safe_get_full_optimizer_state(parameter, name)
                whole[name] = moment.view(_shape(parameter))
            return whole
        assert self._plain is not None
        return {
            name: value.full_tensor() if isinstance(value, DTensor) else value
            for name, value in self._plain.get(parameter, {}).items()
        }

    @torch.no_grad()
    def set(self, parameter: nn.Parameter, state: dict[str, torch.Tensor]) -> None:
        """What :meth:`get` told; empty for nothing."""
        if self.sharding == "zero":
            self._set_zeros(parameter, state)
            return
        mine: dict[str, torch.Tensor] = {}
        for name, value in state.items():
            if name == STEP:
                mine[name] = value.clone()
            elif isinstance(parameter, DTensor):
                mine[name] = distribute_tensor(
                    value.to(parameter.device), parameter.device_mesh, parameter.placements
                )
            else:
                mine[name] = value.to(parameter.device, copy=True)
        assert self._plain is not None
        self._plain[parameter] = mine

    def _set_zeros(self, parameter: nn.Parameter, state: dict[str, torch.Tensor]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if not state:
            return
        self._of[id(parameter)][STEP].copy_(state[STEP])
        for name in MOMENTS:
            if hasattr(parameter, "ds_id"):
                safe_set_local_optimizer_state(parameter, _part(state[name], parameter), name)
            else:
                safe_set_full_optimizer_state(parameter, state[name].to(parameter.device), name)

    @torch.no_grad()
    def forget_step(self, parameters: Collection[nn.Parameter]) -> None:
        """Have ZeRO's Adam not count a step that groups of parameters took without a gradient.

        It counts the steps of a group: all of its parameters have to be among them.
        """
        chosen = set(map(id, parameters))
        for group, state in self._groups:
            if group <= chosen:
                state[STEP] -= 1


@torch.no_grad()
def clear_gradient(parameter: Any) -> None:
    """Have the optimiser pass over a parameter, or as good as that: ZeRO's takes a zero."""
    if _is_zeros(parameter):
        from deepspeed.utils import safe_set_full_grad, safe_set_local_grad

        if hasattr(parameter, "ds_id"):
            safe_set_local_grad(parameter, torch.zeros_like(parameter.ds_tensor))
        else:
            safe_set_full_grad(parameter, torch.zeros_like(parameter))
    else:
        parameter.grad = None


def _put(parameter: DTensor, value: torch.Tensor) -> None:
    """Put a process's part of a value into its part of a parameter."""
    value = value.to(parameter.device, parameter.dtype)
    mine = distribute_tensor(value, parameter.device_mesh, parameter.placements)
    parameter.to_local().copy_(mine.to_local())


@contextmanager
def _gathered(parameter: nn.Parameter, modifier_rank: int | None = None) -> Iterator[None]:
    """A parameter that ZeRO's third stage has divided, whole for a moment."""
    if hasattr(parameter, "ds_id"):
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter], modifier_rank=modifier_rank):
            yield
    else:
        yield


def _is_zeros(parameter: nn.Parameter) -> bool:
    """Whether DeepSpeed trains it."""
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def _part(value: torch.Tensor, parameter: Any) -> torch.Tensor:
    """A process's part of a value, as ZeRO's third stage divides a parameter; the last is padded.

    DeepSpeed's own functions for whole values fail where the parts are not equal.
    """
    rank, ranks = rank_and_size()
    flat = value.to(parameter.device, torch.float32).flatten()
    size = parameter.ds_tensor.numel()
    return nn.functional.pad(flat, (0, ranks * size - len(flat))).narrow(0, rank * size, size)


def _shape(parameter: nn.Parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


def _zeros_groups(optimizer: Any) -> Iterator[tuple[set[int], dict[str, Any]]]:
    """Parameters, by their ``id``, that ZeRO made one tensor of, and Adam's state of that."""
    zero = optimizer.optimizer
    is_third = hasattr(zero, "sub_group_to_group_id")
    groups = zero.fp16_groups if is_third else zero.bit16_groups
    flats = zero.fp32_partitioned_groups_flat if is_third else zero.single_partition_of_fp32_groups
    states = zero.optimizer.state
    for flat in flats:
        if not states.get(flat):  # before its first step
            moments = {name: torch.zeros_like(flat) for name in MOMENTS}
            states[flat] = {STEP: torch.zeros(()), **moments}
    if not is_third:  # DeepSpeed looks once, when only the first group has had its step
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()
    for group, flat in zip(groups, flats, strict=True):
        yield set(map(id, group)), states[flat]
