"""The value head by itself: passes over what it reads, without the backbone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator

from vlm_agent.common.seeding import derive_rng
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.ppo.advantages import explained_variance
from vlm_agent.ppo.losses import value_loss
from vlm_agent.recipe.recipe import PPOConfig
from vlm_agent.rollout.samples import Samples


def fit_value_head(
    policy: VLMPolicy,
    accelerator: Accelerator,
    samples: Samples,
    returns_TN: np.ndarray,
    *,
    ppo: PPOConfig,
    epochs: int,
    learning_rate: float,
    purpose: Sequence[int | str] = ("value head",),
) -> float:
    """Teach the value head the returns of a rollout; nothing else changes.

    What it reads is made once, so that a pass costs next to nothing.

    Args:
        policy: Whose value head.
        accelerator: Talks to the other processes; everyone learns from everyone's rollouts, so
            that all end with the same head.
        samples: This rank's rollout.
        returns_TN: Its targets; NaN where there is none.
        ppo: Has the size of minibatches and the run's seed.
        epochs: Passes.
        learning_rate: Of AdamW.
        purpose: Decides with the seed the order of the samples.

    Returns:
        The variance of all returns that it explains afterwards.
    """
    order = np.array_split(np.arange(len(samples)), -(-len(samples) // ppo.batch_size))
    with accelerator.autocast():
        inputs = torch.cat([policy.value_inputs(**samples.inputs(index)) for index in order])
    inputs_BD = accelerator.gather(inputs)
    returns_B = accelerator.gather(samples.tensor(returns_TN))
    inputs_BD, returns_B = inputs_BD[~returns_B.isnan()], returns_B[~returns_B.isnan()]
    if not len(returns_B):
        return 0.0
    num_batches = min(len(order), len(returns_B))
    head = policy.value_head
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate)
    for epoch in range(epochs):
        rng = derive_rng(ppo.seed, *purpose, epoch)
        for index in np.array_split(rng.permutation(len(returns_B)), num_batches):
            loss = value_loss(head(inputs_BD[index]), returns_B[index], returns_B[index], None)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        values = head(inputs_BD).cpu().numpy()
    return explained_variance(values, returns_B.cpu().numpy())
