"""``ReverseCurriculum``: episodes that begin near their end, then earlier and earlier."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlm_agent.common.seeding import derive_rng
from vlm_agent.demonstrations.reading import read_episodes
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.rollout.buffer import RolloutBuffer
from vlm_agent.rollout.sources import EpisodeSource, FreshEpisodes, GroupedEpisodes
from vlm_agent.runs.callbacks import Callback
from vlm_agent.world.episode import Episode

if TYPE_CHECKING:
    from vlm_agent.runs.trainer import Trainer

WINDOW = 50
"""How many episodes from the farthest starts decide where the next ones are."""


class ReverseCurriculum:
    """Starts on the way of an expert's episode, as far from its end as the policy can manage.

    An episode is its seed and its words, so a rollout can begin at any moment of one that the
    expert has played: where its words up to there lead. At first at most ``stride`` of the
    expert's words are missing to success. Whenever the policy solves enough of the episodes that
    begin farthest, within a stride of ``steps_from_success``, those begin a stride earlier, until
    it has to do all of it; whenever it solves less than half of what would be enough, a stride
    later (Florensa et al. 2017, with demonstrations as in Salimans & Chen 2018).

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
        self.steps_from_success = stride
        self._recent: deque[bool] = deque(maxlen=WINDOW)
        self._lengths = {episode.seed: len(episode.actions) for episode in episodes}
        self._longest = max(self._lengths.values())

    def next_episode(self, rank: int, env: int, number: int) -> Episode:
        """The ``number``-th episode of an environment, with the words that it begins with."""
        rng = derive_rng(self.seed, "curriculum", rank, env, number)
        chosen = self.episodes[int(rng.integers(len(self.episodes)))]
        # Nearer starts stay in, so that what is learnt is not forgotten.
        nearest = 1 if rng.random() < 0.5 else max(1, self.steps_from_success - self.stride + 1)
        left = min(int(rng.integers(nearest, self.steps_from_success + 1)), len(chosen.actions))
        begun = len(chosen.actions) - left
        horizon = begun + math.ceil(self.patience * left) + self.stride
        return Episode(chosen.seed, chosen.actions[:begun], horizon, prefix_length=begun)

    @property
    def share(self) -> float:
        """How much of the longest episode is left to the policy."""
        return min(1.0, self.steps_from_success / self._longest)

    def is_farthest(self, episode: Episode) -> bool:
        """Whether an episode began as far from its end as any does now."""
        left = self._lengths[episode.seed] - episode.prefix_length
        is_far = episode.prefix_length == 0 or left > self.steps_from_success - self.stride
        return is_far and left <= self.steps_from_success

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
        self.steps_from_success = min(
            self._longest, max(self.stride, self.steps_from_success + words)
        )
        self._recent.clear()

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, as plain JSON values."""
        return {"steps_from_success": self.steps_from_success, "recent": list(self._recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The opposite of :meth:`state_dict`."""
        self.steps_from_success = state["steps_from_success"]
        self._recent = deque(state["recent"], maxlen=WINDOW)

    def callbacks(self) -> Sequence[Callback]:
        """It moves with how episodes end."""
        return (MovingStart(self),)


class MovingStart(Callback):
    """Tells a curriculum how episodes ended, which moves where the next ones begin.

    Args:
        curriculum: The collector's.
    """

    def __init__(self, curriculum: ReverseCurriculum) -> None:
        self.curriculum = curriculum

    def on_rollout_end(
        self, trainer: Trainer, rollout: RolloutBuffer, episodes: Sequence[Episode]
    ) -> None:
        """Take in the episodes of all processes; where the start is goes into the metrics."""
        curriculum = self.curriculum
        farthest = [episode for episode in episodes if curriculum.is_farthest(episode)]
        curriculum.learn([episode.success for episode in farthest])
        solved = [episode.success for episode in farthest]
        trainer.metrics["curriculum_share"] = curriculum.share
        trainer.metrics["farthest_success_rate"] = sum(solved) / len(solved) if solved else None


def make_source(recipe: Recipe) -> EpisodeSource:
    """Where a recipe's episodes begin, and who plays them.

    Raises:
        UserError: Its curriculum needs demonstrations, and they are missing.
    """
    source = _beginnings(recipe)
    if recipe.ppo.advantage == "group":
        return GroupedEpisodes(source, recipe.ppo.group_size)
    return source


def _beginnings(recipe: Recipe) -> EpisodeSource:
    how = recipe.curriculum
    if how.curriculum == "none":
        return FreshEpisodes(recipe.run.seed)
    return ReverseCurriculum(
        read_episodes(recipe),
        recipe.run.seed,
        how.curriculum_threshold,
        how.curriculum_stride,
        how.curriculum_patience,
    )
