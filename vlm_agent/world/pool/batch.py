"""``StepBatch``: what one word in each of N environments led to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_agent.world.observations import Observations


@dataclass(frozen=True)
class StepBatch:
    """What one word in each of N environments led to.

    Attributes:
        observations: After the word, before any new episode: leading axis N.
        next_observations: What to act on next: the same, but the first observation of the new
            episode where one was begun.
        rewards: float64 (N,).
        terminated: bool (N,), the task is done.
        truncated: bool (N,), the time is up.
        infos: One ``info`` per environment.
    """

    observations: Observations
    next_observations: Observations
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    infos: list[dict[str, Any]]
