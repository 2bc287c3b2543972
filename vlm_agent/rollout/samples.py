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
    """The B = T x N samples of a rollout, step by step.

    Args:
        actor: Encodes the observations: an ``ActorCritic``.
        rollout: The buffer.
        autocast: The context in which the policy ran when the features were made.
    """

    def __init__(
        self,
        actor: Any,
        rollout: RolloutBuffer,
        autocast: Callable[[], AbstractContextManager],
    ) -> None:
        self.actor = actor
        self.policy: VLMPolicy = actor.policy
        self.observations = rollout.observations.flatten()
        self.features = rollout.features
        self.actions = self.tensor(rollout.actions)
        self.autocast = autocast

    def __len__(self) -> int:
        return len(self.observations)

    def tensor(self, array_TN: np.ndarray) -> torch.Tensor:
        """(T, N) as a flat tensor on the device: float32, or int64 for indices."""
        flat = torch.from_numpy(np.ascontiguousarray(array_TN).reshape(-1))
        return (flat.float() if flat.is_floating_point() else flat.long()).to(self.policy.device)

    def inputs(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        """Model inputs of some samples.

        With a frozen vision tower they hold its features, from the rollout as far as those were
        kept, and made again for the rest.
        """
        observations = self.observations[index]
        if not self.policy.vision_is_frozen:
            return self.actor.encode(observations)
        held, kept = self.features.get(index)
        if kept is not None and held.all():
            return self.actor.encode(observations, kept)
        with self.autocast():
            made = self.policy.image_features(observations.frames[~held])
        features = made.new_empty((len(index), *made.shape[1:]))
        features[torch.from_numpy(~held)] = made
        if kept is not None:
            features[torch.from_numpy(held)] = kept.to(made)
        return self.actor.encode(observations, features)
