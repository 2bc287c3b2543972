"""``ReverseCurriculum``: episodes that begin near their end, then earlier and earlier."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

from vlm_agent.common.seeding import derive_rng
from vlm_agent.demonstrations.dataset import read_episodes
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.world.episode import Episode

WINDOW = 50
"""How many episodes from the farthest starts decide where the next ones are."""


class ReverseCurriculum:
    """Starts on the way of an expert's episode, as far from its end as the policy can manage.

    An episode is its seed and its words, so a rollout can begin at any moment of one that the
    expert has played: where its words up to there lead. At first at most ``stride`` of the
    expert's words are missing to success. Whenever the policy solves enough of the episodes that
    begin farthest, within a stride of ``words_left``, those begin a stride earlier, until it has
    to do all of it; whenever it solves less than half of what would be enough, a stride later
    (Florensa et al. 2017, with demonstrations as in Salimans & Chen 2018).

    Every other episode begins farthest, and only those are counted: near starts are solved long
    before, and would hide that far ones are not.

    Args:
        episodes: The expert's, which ended with success.
        seed: The run's seed.
        threshold: The success rate that is enough.
        stride: How many words at a time are left to the policy.
        patience: Where the expert needs n words more, the policy has ``patience`` n + ``stride``;
            what it does far from the way there teaches it little.
    """

    def __init__(
        self,
        episodes: Sequence[Episode],
        seed: int,
        threshold: float,
        stride: int,
        patience: float,
    ) -> None:
        self.episodes = episodes
        self.seed = seed
        self.threshold = threshold
        self.stride = stride
        self.patience = patience
        self.words_left = stride
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        self._lengths = {episode.seed: len(episode.actions) for episode in episodes}
        self._longest = max(self._lengths.values())

    def start(self, *coordinates: int | str) -> Episode:
        """The words that an episode begins with; coordinates say which of the run's episodes."""
        rng = derive_rng(self.seed, "curriculum", *coordinates)
        chosen = self.episodes[int(rng.integers(len(self.episodes)))]
        # Nearer starts stay in, so that what is learnt is not forgotten.
        nearest = 1 if rng.random() < 0.5 else max(1, self.words_left - self.stride + 1)
        left = min(int(rng.integers(nearest, self.words_left + 1)), len(chosen.actions))
        begun = len(chosen.actions) - left
        horizon = begun + math.ceil(self.patience * left) + self.stride
        return Episode(chosen.seed, chosen.actions[:begun], horizon)

    @property
    def share(self) -> float:
        """How much of the longest episode is left to the policy."""
        return min(1.0, self.words_left / self._longest)

    def is_farthest(self, seed: int, begun: int) -> bool:
        """Whether an episode began as far from its end as any does now.

        Args:
            seed: The episode's.
            begun: How many of the expert's words it began with.
        """
        left = self._lengths[seed] - begun
        is_far = begun == 0 or left > self.words_left - self.stride
        return is_far and left <= self.words_left

    def learn(self, successes: Sequence[bool]) -> None:
        """Take in how episodes ended that began farthest, and move the start if need be.

        At most once: they all began where the start is now, and say nothing of the next one.
        """
        self._recent.extend(successes)
        if len(self._recent) < WINDOW:
            return
        rate = sum(self._recent) / WINDOW
        if rate >= self.threshold:
            self._move(self.stride)
        elif rate < self.threshold / 2:
            self._move(-self.stride)

    def _move(self, words: int) -> None:
        self.words_left = min(self._longest, max(self.stride, self.words_left + words))
        self._recent.clear()

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, as plain JSON values."""
        return {"words_left": self.words_left, "recent": list(self._recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The opposite of :meth:`state_dict`."""
        self.words_left = state["words_left"]
        self._recent = deque(state["recent"], maxlen=WINDOW)


def make_curriculum(recipe: Recipe) -> ReverseCurriculum | None:
    """The recipe's curriculum, if it has one.

    Raises:
        UserError: It needs demonstrations, and they are missing.
    """
    ppo = recipe.ppo
    if ppo.curriculum == "none":
        return None
    episodes = read_episodes(recipe)
    how = ppo.curriculum_threshold, ppo.curriculum_stride, ppo.curriculum_patience
    return ReverseCurriculum(episodes, ppo.seed, *how)
