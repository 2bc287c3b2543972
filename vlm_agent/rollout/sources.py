"""Episode sources: which episode an environment begins next."""

from __future__ import annotations

from typing import Any, Protocol

from vlm_agent.common.seeding import episode_seed
from vlm_agent.world.episode import Episode


class EpisodeSource(Protocol):
    """Says which episode comes next; a pure function of where in the run that is."""

    def next_episode(self, rank: int, env: int, number: int) -> Episode:
        """The ``number``-th episode of an environment of a process."""

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs, as plain JSON values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The opposite of :meth:`state_dict`."""


class FreshEpisodes:
    """Every episode begins at its beginning, with a seed of its own.

    Args:
        seed: The run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def next_episode(self, rank: int, env: int, number: int) -> Episode:
        """The ``number``-th episode of an environment of a process."""
        return Episode(episode_seed("train", self.seed, "rollout", rank, env, number))

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the seed says all."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to take."""
