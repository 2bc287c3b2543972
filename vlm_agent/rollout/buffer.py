"""``RolloutBuffer``: what T words in each of N environments left."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np

from vlm_agent.rollout.features import FeatureCache
from vlm_agent.world.episode import Episode
from vlm_agent.world.observations import Observations


@dataclass(frozen=True)
class RolloutBuffer:
    """What T words in each of N environments left, T first.

    Attributes:
        observations: The observations the words were chosen on; frames stay uint8 (T, N, H, W, 3).
        actions: int64 (T, N).
        log_probs: Of the actions when they were chosen, float32 (T, N).
        values: V of the observations, float32 (T, N).
        next_values: V of what each word led to, before any reset, float32 (T, N).
        rewards: float64 (T, N).
        terminated, truncated: bool (T, N).
        said: Whether a word was said there, bool (T, N); an environment may wait for others.
        lost: Words that teach nothing because their episode was lost with its worker, bool (T, N).
            The one in which it was lost is truncated.
        expert_actions: What the expert would have said, int64 (T, N); -1 where none was asked.
        episodes: The :class:`Episode` before each word, object (T, N).
        features: What frozen parts of the policy made of the observations; slot t N + n.
    """

    observations: Observations
    actions: np.ndarray
    log_probs: np.ndarray
    values: np.ndarray
    next_values: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    said: np.ndarray
    lost: np.ndarray
    expert_actions: np.ndarray
    episodes: np.ndarray
    features: FeatureCache

    @classmethod
    def empty(cls, steps: int, like: Observations, feature_bytes: float = 0.0) -> RolloutBuffer:
        """Room for ``steps`` words on observations like these (N of them).

        Args:
            steps: T.
            like: N observations.
            feature_bytes: How much memory ``features`` may take.
        """
        shape = (steps, len(like))
        return cls(
            observations=like.empty(steps),
            actions=np.zeros(shape, np.int64),
            log_probs=np.zeros(shape, np.float32),
            values=np.zeros(shape, np.float32),
            next_values=np.zeros(shape, np.float32),
            rewards=np.zeros(shape),
            terminated=np.zeros(shape, bool),
            truncated=np.zeros(shape, bool),
            said=np.ones(shape, bool),
            lost=np.zeros(shape, bool),
            expert_actions=np.full(shape, -1),
            episodes=np.full(shape, None, object),
            features=FeatureCache(feature_bytes),
        )

    @property
    def ended(self) -> np.ndarray:
        """Where an episode ended, whatever the reason, bool (T, N)."""
        return self.terminated | self.truncated

    @property
    def valid(self) -> np.ndarray:
        """The words that something is learnt from, bool (T, N)."""
        return self.said & ~self.lost

    @property
    def lost_episodes(self) -> int:
        """How many episodes were lost."""
        return int((self.lost & self.ended).sum())

    def first(self, steps: int) -> RolloutBuffer:
        """The first steps, in the same memory."""
        shared = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "features"}
        return replace(self, **{name: array[:steps] for name, array in shared.items()})


class Collected(NamedTuple):
    """A rollout of one process.

    Attributes:
        buffer: Its words.
        episodes: Those that ended in it.
        lost: How many were lost.
        seconds: How long it took.
        shares: What that time went to.
    """

    buffer: RolloutBuffer
    episodes: list[Episode]
    lost: int
    seconds: float
    shares: dict[str, float]
