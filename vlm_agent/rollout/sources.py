"""Episode sources: which episode an environment begins next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from vlm_agent.common.seeding import episode_seed
from vlm_agent.runs.callbacks import Callback
from vlm_agent.world.episode import Episode


class EpisodeSource(Protocol):
    """Says which episode comes next; a pure function of where in the run that is."""

    def next_episode(self, rank: int, env: int, number: int) -> Episode:
        """The ``number``-th episode of an environment of a process."""

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs, as plain JSON values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The opposite of :meth:`state_dict`."""

    def callbacks(self) -> Sequence[Callback]:
        """What a trainer has to tell how its episodes ended."""


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

    def callbacks(self) -> Sequence[Callback]:
        """None: it does not matter here how episodes end."""
        return ()


class GroupedEpisodes:
    """The environments of each group play the same episodes of another source.

    Groups are of environments that stand side by side; their episodes begin at the same moment,
    also where that is on the way of an episode, and are told apart by the words that are drawn.

    Args:
        source: Has one episode for each group.
        size: Environments of a group.
    """

    def __init__(self, source: EpisodeSource, size: int) -> None:
        self.source = source
        self.size = size

    def next_episode(self, rank: int, env: int, number: int) -> Episode:
        """The ``number``-th episode of the environment's group."""
        return self.source.next_episode(rank, env // self.size, number)

    def state_dict(self) -> dict[str, Any]:
        """The other source's."""
        return self.source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The opposite of :meth:`state_dict`."""
        self.source.load_state_dict(state)

    def callbacks(self) -> Sequence[Callback]:
        """The other source's."""
        return self.source.callbacks()
