"""``EpisodeCollector``: rollouts of whole episodes, for advantages that need their returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vlm_agent.common.errors import UserError
from vlm_agent.rollout.buffer import RolloutBuffer
from vlm_agent.rollout.collector import Actor, RolloutCollector
from vlm_agent.world.episode import Episode


class EpisodeCollector(RolloutCollector):
    """Collects whole episodes, equally many from each environment.

    Cutting at a number of words instead would leave out long episodes more often than short ones,
    and short ones are the solved ones. An environment that has played all of its episodes waits
    for the others; nothing is running between two rollouts. No value is asked for at time limits.
    Takes what :class:`RolloutCollector` takes.
    """

    _left: np.ndarray
    """How many episodes each environment has yet to end in this rollout, (N,)."""

    def collect_episodes(
        self, actor: Actor, rounds: int, on_step: Callable[[], object] = lambda: None
    ) -> tuple[RolloutBuffer, list[Episode]]:
        """Play ``rounds`` episodes in each environment.

        A rollout that is interrupted leaves no trace: the next one is what it would have been.

        Args:
            actor: Speaks; in evaluation mode and without gradients.
            rounds: How many.
            on_step: Called after each step, for progress bars.

        Returns:
            The buffer, as long as the environment that said most, and the episodes, without those
            that were lost.

        Raises:
            UserError: An environment does not end its episodes.
        """
        begun_before = list(self.episodes_begun)
        try:
            buffer, finished = self._play(actor, rounds, on_step)
        except BaseException:
            self.pool.abandon_steps()
            self.episodes_begun = begun_before
            raise
        finally:
            self.running, self._observations = [], None
        self.words_said += len(buffer.said)
        return buffer, finished

    @property
    def speaking(self) -> int:
        """How many environments say a word in the present step."""
        return int((self._left > 0).sum())

    def _play(
        self, actor: Actor, rounds: int, on_step: Callable[[], object]
    ) -> tuple[RolloutBuffer, list[Episode]]:
        everyone = range(self.pool.num_envs)
        self._left = np.full(len(everyone), rounds)
        self.running = [self._next_episode(env) for env in everyone]
        self.episodes_begun = [number + 1 for number in self.episodes_begun]
        self._observations = self.pool.reset(dict(enumerate(self.running)))
        # Memory that nothing is written to is not taken.
        limit = rounds * self.pool.config.horizon
        buffer = RolloutBuffer.empty(limit, self._observations, self.feature_bytes)
        buffer.said[:] = False
        under_way = [group[:0] for group in self.groups]
        finished: list[Episode] = []
        for step in range(limit + 1):
            uniforms = self._uniforms(self.words_said + step)
            for n, group in enumerate(self.groups):
                if len(under_way[n]):
                    finished += self._hear(actor, buffer, step - 1, under_way[n])
                under_way[n] = group[self._left[group] > 0]
                if len(under_way[n]) and step < limit:
                    self._speak(actor, buffer, step, under_way[n], uniforms[under_way[n]])
                    buffer.said[step, under_way[n]] = True
            if not any(map(len, under_way)):
                return buffer.first(step), finished
            on_step()
        raise UserError(
            f"advantage: 'group' needs episodes that end, and one went on after its {limit} words "
            f"(horizon: {self.pool.config.horizon}, group_rounds: {rounds})"
        )

    def _value_cut_off(self, *_: Any) -> None:
        """There is no critic."""

    def _lose(self, buffer: RolloutBuffer, step: int, env: int) -> None:
        """All words of a lost episode are lost: nobody knows its return."""
        length = self.running[env].length + 1
        buffer.lost[step + 1 - length : step + 1, env] = True

    def _following(self, group: np.ndarray) -> dict[int, Episode]:
        """Nothing in an environment's last round."""
        return super()._following(group[self._left[group] > 1])

    def _begin_next(self, env: int) -> None:
        self._left[env] -= 1
        if self._left[env]:
            super()._begin_next(env)
