"""Real optimiser steps on a policy, so that nothing is at its initial value."""

from __future__ import annotations

import torch

from vlm_agent.policy.decisions import evaluate_actions
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.world.observations import Observations


def train_a_little(
    policy: VLMPolicy, observations: Observations, steps: int = 3, learning_rate: float = 1e-2
) -> list[float]:
    """Steps on words and values; the losses."""
    parameters = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, learning_rate)
    losses = []
    for _ in range(steps):
        actions = torch.arange(len(observations)) % 8
        log_probs, _, values, _ = evaluate_actions(policy, policy.encode(observations), actions)
        loss = -log_probs.mean() + (values - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
