"""``CrossEntropyUpdate``: one optimiser step towards the expert's words."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from vlm_agent.demonstrations.reading import Moments
from vlm_agent.distributed.learner import Learner
from vlm_agent.policy.policy import VLMPolicy

WARMUP = 0.05
"""Share of the steps in which the learning rate rises."""

WEIGHT_DECAY = 0.01

MAX_GRAD_NORM = 1.0


class CrossEntropyUpdate:
    """Minimises the cross-entropy of the policy's scores, those that PPO uses too.

    Args:
        learner: What gradients go through.
        policy: The policy, which encodes.
    """

    def __init__(self, learner: Learner, policy: VLMPolicy) -> None:
        self.learner, self.policy = learner, policy

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
        self.learner.set_learning_rates(learning_rate)
        means = {"loss": torch.zeros((), device=self.policy.device)}
        means["accuracy"] = means["loss"].clone()
        for part, share in self.learner.parts(index):
            batch = known[part]
            output = self.learner.model(**self.policy.encode(batch.observations))
            labels = torch.from_numpy(batch.actions).to(output.logits.device)
            loss = nn.functional.cross_entropy(output.logits, labels)
            # The value head learns nothing yet, but DistributedDataParallel waits for its gradient.
            self.learner.backward((loss + 0.0 * output.values.sum()) * share)
            means["loss"] += share * loss.detach()
            means["accuracy"] += share * (output.logits.argmax(-1) == labels).float().mean()
        return {**means, "grad_norm": self.learner.step(where)}


def make_optimizer(policy: VLMPolicy) -> torch.optim.Optimizer:
    """Of all that is trained but the value head."""
    return torch.optim.AdamW(policy.actor_parameters(), weight_decay=WEIGHT_DECAY)


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
