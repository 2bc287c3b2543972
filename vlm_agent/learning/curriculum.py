"""``ReverseCurriculum``: episodes that begin near their end, then earlier and earlier."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

from vlm_agent.learning.demonstrations import read_episodes
from vlm_agent.recipes import Recipe
from vlm_agent.robot.episode import Episode
from vlm_agent.seeding import derive_rng

WINDOW = 100
"""How many finished episodes decide whether to begin earlier."""


class ReverseCurriculum:
    """Starts on the way of an expert's episode, as far from its end as the policy can manage.

    An episode is its seed and its words, so a rollout can begin at any moment of one that the
    expert has played: where its words up to there lead. At first only ``words_left`` of the
    expert's words are missing to success; whenever the policy solves enough of such episodes,
    ``stride`` more are left to it, until it has to do all of it (Florensa et al. 2017, with
    demonstrations as in Salimans & Chen 2018).

    Args:
        episodes: The expert's, which ended with success.
        seed: The run's seed.
        threshold: The success rate at which to go on.
        stride: How many words more are left to the policy then.
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
        self._longest = max(len(episode.actions) for episode in episodes)

    def start(self, *coordinates: int | str) -> Episode:
        """The words that an episode begins with; coordinates say which of the run's episodes."""
        rng = derive_rng(self.seed, "curriculum", *coordinates)
        chosen = self.episodes[int(rng.integers(len(self.episodes)))]
        # Nearer starts stay in, so that what is learnt is not forgotten.
        left = min(int(rng.integers(1, self.words_left + 1)), len(chosen.actions))
        begun = len(chosen.actions) - left
        horizon = begun + math.ceil(self.patience * left) + self.stride
        return Episode(chosen.seed, chosen.actions[:begun], horizon)

    @property
    def share(self) -> float:
        """How much of the longest episode is left to the policy."""
        return min(1.0, self.words_left / self._longest)

    def learn(self, successes: Sequence[bool]) -> None:
        """Take in how a rollout's episodes ended, and move the start if that was good enough.

        At most once: they all began where the start is now, and say nothing of the next one.
        """
        self._recent.extend(successes)
        is_enough = len(self._recent) == WINDOW
        if is_enough and sum(self._recent) >= self.threshold * WINDOW:
            self.words_left = min(self._longest, self.words_left + self.stride)
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
