"""Moments of episodes, kept so that one can be taken up there without saying its words again."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Moment:
    """What an episode was like after a word: the world, the highest stage, whether it is solved."""

    world: Any
    stage: int
    success: bool


class Snapshots(Generic[T]):
    """What episodes were like after some of their words; what was used longest ago is dropped.

    Args:
        room: How many moments to keep; one takes 3 to 4 kB.
    """

    def __init__(self, room: int = 50_000) -> None:
        self.room = room
        self._kept: OrderedDict[tuple[int, bytes], T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, seed: int, actions: Sequence[int], snapshot: T) -> None:
        """Keep what it was like in the episode of that seed after these words."""
        self._kept[seed, _key(actions)] = snapshot
        if len(self._kept) > self.room:
            self._kept.popitem(last=False)

    def latest(self, seed: int, actions: Sequence[int]) -> tuple[int, T | None]:
        """The last moment on the way through these words that is kept.

        Returns:
            How many of the words had been said, and what it was like; 0 and ``None`` if the episode
            has to be begun anew.
        """
        for said in range(len(actions), 0, -1):
            key = seed, _key(actions[:said])
            if key in self._kept:
                self._kept.move_to_end(key)
                return said, self._kept[key]
        return 0, None


def _key(actions: Sequence[int]) -> bytes:
    return array("H", actions).tobytes()
