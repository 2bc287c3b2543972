"""``Standing``: where a run stood, so that it can be gone on with from there."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

KEPT_BYTES = 2**30
"""Of weights and optimiser from before an update, so that a run can be left in the middle of it."""


class Standing(NamedTuple):
    """Where a run of PPO stood before a rollout.

    Attributes:
        timesteps: Words said in training.
        new_timesteps: Of these, the last rollout's.
        collector: Where its episodes stood.
        behaviour: The weights that the next rollout is collected with, if others than the policy's.
    """

    timesteps: int
    new_timesteps: int
    collector: dict[str, Any]
    behaviour: dict[str, torch.Tensor]
