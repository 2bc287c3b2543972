"""The policy that training started from, to which ``kl_coef`` ties the one being trained."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from vlm_agent.policy.decisions import evaluate_actions
from vlm_agent.policy.policy import VLMPolicy


class ReferencePolicy:
    """The start policy: the trained one without its adapter, or a frozen copy.

    Args:
        policy: The policy being trained.
        frozen: A policy with the weights of the start; ``None`` where switching the adapter off
            gives those.
        autocast: The context in which the trained policy runs.
    """

    def __init__(
        self,
        policy: VLMPolicy,
        frozen: VLMPolicy | None,
        autocast: Callable[[], AbstractContextManager],
    ) -> None:
        self.autocast = autocast
        if frozen is not None:
            frozen.requires_grad_(False).eval().to(policy.device)
        self.policy = policy if frozen is None else frozen
        self.adapter_off = policy.backbone.disable_adapter if frozen is None else nullcontext

    @torch.no_grad()
    def log_probs(self, inputs: dict[str, torch.Tensor], actions_B: torch.Tensor) -> torch.Tensor:
        """Its log-probabilities of given words, (B,)."""
        with self.adapter_off(), self.autocast():
            return evaluate_actions(self.policy, inputs, actions_B)[0]
