"""A rollout as flat samples, and the model inputs of any of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.rollout.buffer import RolloutBuffer


class Samples:
    """Words of a rollout, step by step, as B samples.

    Args:
        actor: Encodes the observations: an ``ActorCritic``.
        rollout: The buffer.
        autocast: The context in which the policy ran when the features were made.
        chosen: Which of the T x N words, bool (T, N); all by default. Where it has none, the
            first stands in for them.

    Attributes:
        rows: Where they are among all T x N words, (B,).
    """

    def __init__(
        self,
        actor: Any,
        rollout: RolloutBuffer,
        autocast: Callable[[], AbstractContextManager],
        chosen: np.ndarray | None = None,
    ) -> None:
        self.actor, self.rollout = actor, rollout
        self.policy: VLMPolicy = actor.policy
        self.observations = rollout.observations.flatten()
        self.features = rollout.features
        count = rollout.actions.size
        rows = np.arange(count) if chosen is None else np.flatnonzero(chosen)
        self.rows = rows if len(rows) else np.zeros(1, np.int64)
        self.actions = self.tensor(rollout.actions)
        self.autocast = autocast

    def __len__(self) -> int:
        return len(self.rows)

    def tensor(self, array_TN: np.ndarray) -> torch.Tensor:
        """Their part of (T, N) as a tensor (B,) on the device: float32, or int64 for indices."""
        flat = torch.from_numpy(np.ascontiguousarray(array_TN).reshape(-1)[self.rows])
        return (flat.float() if flat.is_floating_point() else flat.long()).to(self.policy.device)

    def inputs(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        """Model inputs of some samples.

        They hold what frozen parts of the policy made of them, from the rollout as far as that was
        kept, and made again for the rest.
        """
        rows = self.rows[index]
        with self.autocast():
            return self.actor.encode(self.observations[rows], self.features.get(rows))

    def fresh_inputs(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        """Model inputs of some samples, with their pictures and nothing else about them."""
        return self.actor.encode(self.observations[self.rows[index]])
