"""``Learner``: what gradients go through, in one process or shared among many."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor

from vlm_agent.distributed.guard import check_finite
from vlm_agent.distributed.reductions import max_over_ranks, parts_of
from vlm_agent.distributed.sharding import (
    AdamStates,
    clear_gradient,
    divides_weights,
    set_weight,
    sharding_of,
    whole_weight,
)

MakeOptimizer = Callable[[Any], torch.optim.Optimizer]
"""From the module that learns, or a copy of it, to its optimiser."""


class Learner:
    """A module and its optimiser as accelerate wrapped them, and one step of theirs.

    Rollouts, evaluations and saving need all weights in each process, at times of its own. Under
    ZeRO and FSDP2, what learns is therefore a copy, and ``module`` gets its weights after each
    update (:meth:`refresh`): weights are gathered once per update and not once per word, and no
    process waits for another one's episodes. What is frozen is copied only where processes share
    that among them, too.

    Args:
        accelerator: Talks to the other processes.
        module: What learns, whole: a policy or an actor-critic.
        make_optimizer: Makes the optimiser, an Adam.
        max_grad_norm: Gradients are clipped to this norm.
        micro_batch_size: How many samples go through the model at once; ``None``: all.

    Attributes:
        module: As it was given.
        model: What gradients go through.
        optimizer: The wrapped optimiser.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        make_optimizer: MakeOptimizer,
        max_grad_norm: float,
        micro_batch_size: int | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.module: Any = module
        self.max_grad_norm, self.micro_batch_size = max_grad_norm, micro_batch_size
        self.sharding = sharding_of(accelerator)
        learning = self._copy() if self.is_copy else module
        optimizer = make_optimizer(learning)
        moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
        names = [name for name, p in learning.named_parameters() if id(p) in moved]
        self._configure(learning)
        self.model: Any
        self.optimizer: Any
        self.model, self.optimizer = accelerator.prepare(learning, optimizer)
        now = dict(learning.named_parameters())  # FSDP2 has put others in their places
        self._trained: dict[str, nn.Parameter] = {name: now[name] for name in names}
        self._is_last = True

    @property
    def is_copy(self) -> bool:
        """Whether what learns is a copy."""
        return self.sharding != "none"

    def _copy(self) -> nn.Module:
        frozen = [p for p in self.module.parameters() if not p.requires_grad]
        shared = [] if divides_weights(self.accelerator) else frozen
        return copy.deepcopy(self.module, {id(parameter): parameter for parameter in shared})

    def _configure(self, learning: nn.Module) -> None:
        """Tell the plugins what only the model and the recipe know."""
        if self.sharding == "zero":
            config = self.accelerator.state.deepspeed_plugin.deepspeed_config
            config["train_micro_batch_size_per_gpu"] = 1  # it only counts with it
            config["gradient_accumulation_steps"] = 1
            config["gradient_clipping"] = self.max_grad_norm
        if self.sharding == "fsdp":
            plugin = self.accelerator.state.fsdp_plugin
            if not plugin.transformer_cls_names_to_wrap:
                plugin.transformer_cls_names_to_wrap = list(_layer_classes(learning))

    def parts(self, index: np.ndarray) -> Iterator[tuple[np.ndarray, float]]:
        """Split a minibatch into parts that fit into memory, whose gradients add up to its own.

        Run forward and :meth:`backward` inside of the loop: under DDP, gradients of all parts but
        the last stay in this process, and are averaged over all processes with the last part's.
        Under ZeRO and FSDP2 all processes have equally many parts; one that lacks some gets a
        sample of share 0.

        Args:
            index: The minibatch's samples.

        Yields:
            A part's samples, and their share of the minibatch, by which its mean loss is weighted.
        """
        self.optimizer.zero_grad()
        parts = parts_of(index, self.micro_batch_size)
        if self.is_copy:  # each of its passes is one of all processes
            count = torch.tensor(float(len(parts)), device=self.accelerator.device)
            lacking = round(max_over_ranks(self.accelerator, count)) - len(parts)
            parts = [*(index[:1] for _ in range(lacking)), *parts]
            shares = [0.0] * lacking
        else:
            shares = []
        shares += [len(part) / len(index) for part in parts[len(shares) :]]
        for number, (part, share) in enumerate(zip(parts, shares, strict=True), 1):
            self._is_last = number == len(parts)
            with self._unsynchronised():
                yield part, share

    def _unsynchronised(self) -> Any:
        """Where gradients stay in this process.

        ZeRO is told with each backward pass; FSDP2 would keep whole gradients until the last.
        """
        if self._is_last or self.is_copy:
            return nullcontext()
        return self.accelerator.no_sync(self.model)

    def backward(self, loss: torch.Tensor) -> None:
        """Add a loss's gradient."""
        if self.sharding == "zero":  # accelerate's would step, before the gradient is looked at
            self.model.set_gradient_accumulation_boundary(self._is_last)
            self.model.backward(loss)
        else:
            self.accelerator.backward(loss)

    def step(self, where: str, frozen: Collection[str] = ()) -> torch.Tensor:
        """Clip the gradient and move the weights.

        Args:
            where: Names the step in the message of an error.
            frozen: Names of parameters that are to stay as they are this time.

        Returns:
            The gradient's norm, over all processes.

        Raises:
            TrainingError: It is not finite; the weights are what they were.
        """
        for name in frozen:
            clear_gradient(self._trained[name])
        if self.sharding == "zero":
            self.model.step()  # clips; passes over gradients that are not finite
            norm = torch.as_tensor(self.model.get_global_grad_norm())
            check_finite(norm, self.accelerator, where)
            if frozen:
                still = [self._trained[name] for name in frozen]
                AdamStates(self.optimizer, self.sharding).forget_step(still)
            return norm
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        check_finite(norm, self.accelerator, where)
        self.optimizer.step()
        return norm.detach()

    def set_learning_rates(self, *rates: float) -> None:
        """Those of the optimiser's groups, by a group's ``number`` or its place."""
        for place, group in enumerate(self.optimizer.param_groups):
            group["lr"] = rates[group.get("number", place)]

    @torch.no_grad()
    def refresh(self) -> None:
        """Give ``module`` the weights that were learnt; all processes have to call it."""
        if self.is_copy:
            whole = dict(self.module.named_parameters())
            for name, parameter in self._trained.items():
                whole[name].copy_(whole_weight(parameter))

    def take_over(self, names: Collection[str] | None = None) -> None:
        """Learn on from the weights that ``module`` has; all processes have to call it.

        Args:
            names: Of the parameters that have changed there; all by default.
        """
        if self.is_copy:
            whole = dict(self.module.named_parameters())
            for name in self._trained if names is None else names:
                set_weight(self._trained[name], whole[name].detach())

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """The optimiser's state, ``NAME/KEY`` for each parameter, whole, in host memory.

        It is the same whatever shares the weights. All processes have to call it; the main process
        alone gets it.
        """
        found: dict[str, torch.Tensor] = {}
        adam = AdamStates(self.optimizer, self.sharding)
        for name, parameter in self._trained.items():
            state = adam.get(parameter)
            if self.accelerator.is_main_process:
                found |= {f"{name}/{key}": value.cpu() for key, value in state.items()}
        return found

    def load_optimizer_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take up a state that :meth:`optimizer_state` gave; all processes have to call it."""
        found: dict[str, dict[str, torch.Tensor]] = {name: {} for name in self._trained}
        for path, value in state.items():
            name, _, key = path.rpartition("/")
            found[name][key] = value
        adam = AdamStates(self.optimizer, self.sharding)
        for name, parameter in self._trained.items():
            adam.set(parameter, found[name])

    @contextmanager
    def restored_when_left(self, limit: float) -> Iterator[bool]:
        """Around an update: one that is left in the middle has changed nothing.

        Args:
            limit: How many bytes weights and optimiser may take to be kept for that.

        Yields:
            Whether they are: one process alone can do so.
        """
        kept = self._keep(limit)
        try:
            yield kept is not None
        except BaseException:
            if kept is not None:
                self._restore(kept)
            raise

    def _keep(self, limit: float) -> Kept | None:
        names = [name for name, p in self.module.named_parameters() if p.requires_grad]
        weights = dict(self.module.named_parameters())
        size = sum(weights[name].nbytes for name in names)
        if self.accelerator.num_processes > 1 or self.is_copy or 3 * size > limit:
            return None
        kept = {name: weights[name].detach().cpu().clone() for name in names}
        return Kept(kept, {name: value.clone() for name, value in self.optimizer_state().items()})

    @torch.no_grad()
    def _restore(self, kept: Kept) -> None:
        weights = dict(self.module.named_parameters())
        for name, value in kept.weights.items():
            weights[name].copy_(value)
        self.load_optimizer_state(kept.optimizer)


class Kept(NamedTuple):
    """What a learner was.

    Attributes:
        weights: Of all that is trained, by name.
        optimizer: As :meth:`Learner.optimizer_state` tells it.
    """

    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]


def _layer_classes(module: nn.Module) -> set[str]:
    """Names of the classes of a model's layers, as transformers knows them."""
    return {
        name
        for part in module.modules()
        for name in getattr(part, "_no_split_modules", None) or ()
        if any(type(inner).__name__ == name for inner in part.modules())
    }
