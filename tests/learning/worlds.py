"""Small worlds with the interface of ``EnvPool``, for tests that need no robot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vlm_agent.actions import MOTIONS
from vlm_agent.observations import Observations
from vlm_agent.robot.episode import Episode
from vlm_agent.robot.pool import StepBatch

SIZE = 56


class ColourPool:
    """The picture's colour says which word is right; a right word earns 1.

    Two colours, two right words out of eight; the colours of an episode follow from its seed.
    Chance is 1/8. Every episode is truncated after ``horizon`` words.
    """

    COLOURS = ((230, 20, 20), (20, 20, 230))
    RIGHT = (2, 5)

    def __init__(self, num_envs: int, horizon: int = 4) -> None:
        self.num_envs = num_envs
        self.horizon = horizon
        self._episodes: dict[int, tuple[int, list[int]]] = {}

    def reset(self, episodes: Mapping[int, Episode]) -> Observations:
        for slot, episode in episodes.items():
            self._episodes[slot] = (episode.seed, list(episode.actions))
        return Observations.stack([self._observe(slot) for slot in episodes])

    def step(self, actions: Mapping[int, int]) -> StepBatch:
        rewards = []
        for slot, action in actions.items():
            rewards.append(float(action == self.RIGHT[self._colour(slot)]))
            self._episodes[slot][1].append(action)
        ended = [len(self._episodes[slot][1]) >= self.horizon for slot in actions]
        return StepBatch(
            Observations.stack([self._observe(slot) for slot in actions]),
            np.array(rewards),
            np.zeros(len(ended), bool),
            np.array(ended),
            [self._info() for _ in actions],
        )

    def _colour(self, slot: int) -> int:
        seed, said = self._episodes[slot]
        return int(np.random.default_rng([seed, len(said)]).integers(2))

    def _observe(self, slot: int) -> Observations:
        frame = np.empty((SIZE, SIZE, 3), np.uint8)
        frame[:] = self.COLOURS[self._colour(slot)]
        return Observations(frame, np.array([0, len(MOTIONS), 0, 1], np.int32))

    def _info(self) -> dict[str, Any]:
        return {"is_success": False, "stage": "none", "staged_reward": 0.0}

    def close(self) -> None:
        pass


class ScriptedPool(ColourPool):
    """Ends episodes as a script says and counts steps in the picture, to see what goes where.

    Args:
        script: For each step, one letter per environment: ``t`` terminates, ``l`` runs into the
            time limit, anything else goes on.
    """

    def __init__(self, script: list[str]) -> None:
        super().__init__(num_envs=len(script[0]))
        self.script = script
        self.steps_done = 0

    def step(self, actions: Mapping[int, int]) -> StepBatch:
        letters = self.script[self.steps_done]
        self.steps_done += 1
        for slot, action in actions.items():
            self._episodes[slot][1].append(action)
        return StepBatch(
            Observations.stack([self._observe(slot) for slot in actions]),
            np.array([10.0 * self.steps_done + slot for slot in actions]),
            np.array([letters[slot] == "t" for slot in actions]),
            np.array([letters[slot] == "l" for slot in actions]),
            [self._info() for _ in actions],
        )

    def _observe(self, slot: int) -> Observations:
        seed, said = self._episodes[slot]
        frame = np.full((SIZE, SIZE, 3), (37 * seed + 11 * len(said)) % 256, np.uint8)
        return Observations(frame, np.array([0, len(MOTIONS), 0, 1], np.int32))
