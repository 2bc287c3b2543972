"""Small worlds with the interface of ``EnvPool``, for tests that need no robot."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlm_agent import Recipe
from vlm_agent.demonstrations.reading import Labelled
from vlm_agent.world.actions import MOTIONS
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.episode import Episode
from vlm_agent.world.observations import Observations
from vlm_agent.world.pool.batch import StepBatch
from vlm_agent.world.registry import declare

SIZE = 56


class ColourPool:
    """The picture's colour says which word is right; a right word earns 1.

    Two colours, two right words out of eight; the colours of an episode follow from its seed.
    Chance is 1/8. Every episode is truncated after ``horizon`` words, or its own.
    """

    COLOURS = ((230, 20, 20), (20, 20, 230))
    RIGHT = (2, 5)

    def __init__(self, num_envs: int, horizon: int = 4, size: int = SIZE) -> None:
        self.config = EnvConfig()
        self.num_envs = num_envs
        self.num_workers = 1
        self.requests = 0
        self.size = size
        self.world = declare(self.config)
        self.facts = tuple(fact.name for fact in self.world.usual_facts)
        self.replays = True
        self.state_size = None
        self.horizon = horizon
        self._episodes: dict[int, tuple[int, list[int]]] = {}
        self._limits: dict[int, int] = {}
        self._begun: deque[tuple[Mapping[int, int], Mapping[int, Episode]]] = deque()
        self.seconds = {"physics": 0.0, "rendering": 0.0, "waiting": 0.0}

    def reset(self, episodes: Mapping[int, Episode]) -> Observations:
        assert not self._begun, "a step is under way: finish it before a reset"
        self.requests += 1
        for slot, episode in episodes.items():
            self._begin(slot, episode)
        return Observations.stack([self._observe(slot) for slot in episodes])

    def _begin(self, slot: int, episode: Episode) -> None:
        self._episodes[slot] = (episode.seed, list(episode.actions))
        self._limits[slot] = min(self.horizon, episode.horizon or self.horizon)

    def start_step(
        self, actions: Mapping[int, int], following: Mapping[int, Episode] | None = None
    ) -> None:
        self.requests += 1
        self._begun.append((actions, following or {}))

    def finish_step(self) -> StepBatch:
        actions, following = self._begun.popleft()
        rewards = np.array([self._reward(slot, action) for slot, action in actions.items()])
        for slot, action in actions.items():
            self._episodes[slot][1].append(action)
        terminated, truncated = (np.array(ends) for ends in self._ends(list(actions)))
        after = Observations.stack([self._observe(slot) for slot in actions])
        for slot, ended in zip(actions, terminated | truncated, strict=True):
            if ended and slot in following:
                self._begin(slot, following[slot])
        fresh = Observations.stack([self._observe(slot) for slot in actions])
        return StepBatch(
            after, fresh, rewards, terminated, truncated, [self._info() for _ in actions]
        )

    def abandon_steps(self) -> None:
        self._begun.clear()

    def step(
        self, actions: Mapping[int, int], following: Mapping[int, Episode] | None = None
    ) -> StepBatch:
        self.start_step(actions, following)
        return self.finish_step()

    def _reward(self, slot: int, action: int) -> float:
        return float(action == self.RIGHT[self._colour(slot)])

    def _ends(self, slots: list[int]) -> tuple[list[bool], list[bool]]:
        return [False] * len(slots), [
            len(self._episodes[slot][1]) >= self._limits[slot] for slot in slots
        ]

    def _colour(self, slot: int) -> int:
        seed, said = self._episodes[slot]
        return int(np.random.default_rng([seed, len(said)]).integers(2))

    def _observe(self, slot: int) -> Observations:
        frame = np.empty((self.size, self.size, 3), np.uint8)
        frame[:] = self.COLOURS[self._colour(slot)]
        return Observations(frame, np.array([0, len(MOTIONS), 0, 1], np.int32))

    def _info(self) -> dict[str, Any]:
        return {"is_success": False, "stage": "none", "staged_reward": 0.0}

    def wait_until_ready(self) -> None:
        pass

    def close(self) -> None:
        pass

    def __enter__(self) -> ColourPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def of(pool: ColourPool, recipe: Recipe) -> ColourPool:
    """A small world that says it were the recipe's."""
    pool.config = recipe.env
    return pool


class ExpertPool(ColourPool):
    """Tells, as an expert would, the right word of the picture that a word was said on."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs)
        self._experts: deque[list[int]] = deque()

    def start_step(self, actions, following=None):
        self._experts.append([self.RIGHT[self._colour(slot)] for slot in actions])
        super().start_step(actions, following)

    def finish_step(self):
        batch = super().finish_step()
        for info, word in zip(batch.infos, self._experts.popleft(), strict=True):
            info["expert_action"] = word
        return batch


def known(count: int = 64) -> Labelled:
    """Demonstrations: pictures of the two colours with their right words."""
    colours = np.arange(count) % 2
    frames = np.array(ColourPool.COLOURS, np.uint8)[colours][:, None, None]
    frames = np.broadcast_to(frames, (count, 56, 56, 3)).copy()
    facts = np.tile(np.array([0, 8, 0, 1], np.int32), (count, 1))
    return Labelled(Observations(frames, facts), np.array(ColourPool.RIGHT)[colours])


class UnequalPool(ColourPool):
    """The first word of an episode says how long it is: two to five words."""

    def _ends(self, slots: list[int]) -> tuple[list[bool], list[bool]]:
        said = [self._episodes[slot][1] for slot in slots]
        return [len(words) == 2 + words[0] % 4 for words in said], [False] * len(slots)


class ScriptedPool(ColourPool):
    """Ends episodes as a script says and counts steps in the picture, to see what goes where.

    Args:
        script: For each of an environment's words, one letter per environment: ``t`` terminates,
            ``l`` runs into the time limit, in ``x`` the episode is lost, anything else goes on.
    """

    def __init__(self, script: list[str]) -> None:
        super().__init__(num_envs=len(script[0]))
        self.script = script
        self.words_said = [0] * self.num_envs

    def _letter(self, slot: int) -> str:
        return self.script[self.words_said[slot] - 1][slot]

    def _reward(self, slot: int, action: int) -> float:
        self.words_said[slot] += 1
        return 0.0 if self._letter(slot) == "x" else 10.0 * self.words_said[slot] + slot

    def _ends(self, slots: list[int]) -> tuple[list[bool], list[bool]]:
        letters = [self._letter(slot) for slot in slots]
        return [letter == "t" for letter in letters], [letter in "lx" for letter in letters]

    def finish_step(self) -> StepBatch:
        slots = list(self._begun[0][0])
        batch = super().finish_step()
        for slot, info in zip(slots, batch.infos, strict=True):
            info["lost"] = self._letter(slot) == "x"
        return batch

    def _observe(self, slot: int) -> Observations:
        seed, said = self._episodes[slot]
        frame = np.full((SIZE, SIZE, 3), (37 * seed + 11 * len(said)) % 256, np.uint8)
        return Observations(frame, np.array([0, len(MOTIONS), 0, 1], np.int32))
