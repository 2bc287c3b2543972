"""``RolloutAhead``: the next rollout is collected while the present one is learnt from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from vlm_agent.common.errors import Stopped
from vlm_agent.distributed.stopping import Stopping
from vlm_agent.rollout.collector import RolloutCollector

T = TypeVar("T")


class RolloutAhead(AbstractContextManager["RolloutAhead[T]"], Generic[T]):
    """Collects rollouts in a thread, with the actor as it was when one was begun.

    So a rollout's words are of the policy before the update that goes on meanwhile: one update
    old, whatever is faster. What is frozen is not copied. As a context manager it leaves no thread
    at the pool behind an error.

    Args:
        actor: Learns, in the thread of whoever calls this.
        collector: Keeps the episodes.
        stopping: Whether somebody wants the run to end.
        collect: Collects one rollout with an actor.
    """

    def __init__(
        self,
        actor: nn.Module,
        collector: RolloutCollector,
        stopping: Stopping,
        collect: Callable[[Any], T],
    ) -> None:
        shared = {id(p): p for p in actor.parameters() if not p.requires_grad}
        self._actor, self._collector, self._collect = actor, collector, collect
        self._stopping = stopping
        self._behaviour = copy.deepcopy(actor, shared).eval()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rollout")
        self._under_way: Future[T] | None = None
        self._before: dict[str, Any] | None = None  # the collector, before the one under way
        self._leaves = False
        self._is_due = False  # with the weights that the copy has

    def begin(self) -> None:
        """Begin to collect with the actor's present weights."""
        self.load_weights(dict(self._trained(self._actor)))
        self._submit()

    def wait(self) -> None:
        """Wait for the rollout under way; the pool is anyone's then."""
        if self._under_way is not None:
            wait([self._under_way])  # what it raised is for whoever takes it

    def __enter__(self) -> RolloutAhead[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leave the rollout under way, where an error ends all; who takes it begins it anew."""
        if kind is not None and self._under_way is not None and not self._under_way.done():
            assert self._before is not None
            self._leaves = True
            wait([self._under_way])
            self._collector.load_state_dict(self._before)
            self._leaves, self._under_way, self._is_due = False, None, True

    def check(self) -> None:
        """Called by a rollout at each step.

        Raises:
            Stopped: It is to end.
        """
        if self._leaves:
            raise Stopped("an error")
        self._stopping.check()

    def take(self) -> T | None:
        """The rollout that was begun, if one was."""
        if self._is_due:
            self._submit()
        if self._under_way is None:
            return None
        rollout = self._under_way.result()
        self._under_way = self._before = None
        return rollout

    def collector_state(self) -> dict[str, Any]:
        """Where the episodes stood before the rollout that was begun, or stand without one."""
        return self._before or self._collector.state_dict()

    def weights(self) -> dict[str, torch.Tensor]:
        """Those of the policy that has collected, or is collecting; empty if none was begun."""
        if self._under_way is None and not self._is_due:
            return {}
        return {name: p.detach().clone() for name, p in self._trained(self._behaviour)}

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Have a rollout, begun before a checkpoint was written, collected again by these."""
        for name, parameter in self._trained(self._behaviour):
            parameter.copy_(weights[name])
        self._is_due = True

    def _submit(self) -> None:
        self._is_due = False
        self._before = self._collector.state_dict()
        self._under_way = self._thread.submit(self._collect, self._behaviour)

    @staticmethod
    def _trained(actor: nn.Module) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in actor.named_parameters() if p.requires_grad]
