"""``CrossEntropyUpdate``: one optimiser step towards the expert's words."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from vlm_agent.demonstrations.reading import Moments
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.runs.distributed import micro_batches
from vlm_agent.runs.guard import check_finite

WARMUP = 0.05
"""Share of the steps in which the learning rate rises."""

WEIGHT_DECAY = 0.01

MAX_GRAD_NORM = 1.0


class CrossEntropyUpdate:
    """Minimises the cross-entropy of the policy's scores, those that PPO uses too.

    Args:
        model: What gradients go through: the policy, as accelerate wrapped it.
        policy: The policy without the wrapper.
        optimizer: As accelerate wrapped it.
        accelerator: Talks to the other processes.
        micro_batch_size: How many moments go through the model at once; ``None``: all.
    """

    def __init__(
        self,
        model: Any,
        policy: VLMPolicy,
        optimizer: Any,
        accelerator: Accelerator,
        micro_batch_size: int | None,
    ) -> None:
        self.model, self.policy, self.optimizer = model, policy, optimizer
        self.accelerator, self.micro_batch_size = accelerator, micro_batch_size

    def step(
        self, known: Moments, index: np.ndarray, learning_rate: float, where: str
    ) -> dict[str, torch.Tensor]:
        """One step on one minibatch.

        Args:
            known: Moments and the expert's words.
            index: Which of them (B,).
            learning_rate: Of this step.
            where: Names the step in the message of an error.

        Returns:
            The means over the minibatch: ``loss``, ``accuracy``; and the ``grad_norm``.

        Raises:
            TrainingError: A gradient is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad()
        means = {"loss": torch.zeros((), device=self.policy.device)}
        means["accuracy"] = means["loss"].clone()
        size = self.micro_batch_size
        for part, share in micro_batches(self.accelerator, self.model, index, size):
            batch = known[part]
            output = self.model(**self.policy.encode(batch.observations))
            labels = torch.from_numpy(batch.actions).to(output.logits.device)
            loss = nn.functional.cross_entropy(output.logits, labels)
            # The value head learns nothing yet, but DistributedDataParallel waits for its gradient.
            self.accelerator.backward((loss + 0.0 * output.values.sum()) * share)
            means["loss"] += share * loss.detach()
            means["accuracy"] += share * (output.logits.argmax(-1) == labels).float().mean()
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        check_finite(norm, self.accelerator, where)
        self.optimizer.step()
        return {**means, "grad_norm": norm.detach()}


def warmup_and_decay(progress: float) -> float:
    """The factor of the learning rate: from 0 up to 1, then straight down to 0.

    Args:
        progress: Share of the steps that are done, in [0, 1].
    """
    return min(progress / WARMUP, (1.0 - progress) / (1.0 - WARMUP))


def pass_over(count: int, fresh: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """The moments of one pass, in a random order.

    Args:
        count: How many are known, the oldest first.
        fresh: How many of the last ones are all gone over.
        share: Of the others.
        rng: Draws which, and the order.
    """
    if share == 1:
        return rng.permutation(count)
    old = count - fresh
    kept = rng.choice(old, round(share * old), replace=False)
    return rng.permutation(np.concatenate([kept, np.arange(old, count)]))
