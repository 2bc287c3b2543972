"""Rollouts: the policy speaks, the pool moves, the buffer keeps what PPO needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlm_agent.observations import Observations
from vlm_agent.policy.policy import VLMPolicy, act, predict_values
from vlm_agent.robot.episode import Episode
from vlm_agent.robot.pool import EnvPool
from vlm_agent.robot.scene import Stage
from vlm_agent.seeding import derive_rng, derive_seed


@dataclass
class EpisodeRecord:
    """An episode, running or finished.

    Attributes:
        seed: The reset seed.
        actions: The action indices said so far.
        episode_return: Undiscounted sum of the rewards.
        success: Whether the task was solved.
        stage: The highest stage so far, a lower-case name of :class:`Stage`.
    """

    seed: int
    actions: list[int] = field(default_factory=list)
    episode_return: float = 0.0
    success: bool = False
    stage: str = Stage.NONE.name.lower()

    def add(self, action: int, reward: float, info: dict[str, Any]) -> None:
        """Take one word and what came of it."""
        self.actions.append(action)
        self.episode_return += reward
        self.success = info["is_success"]
        self.stage = info["stage"]

    def has_reached(self, stage: Stage) -> bool:
        """Whether the episode came at least so far."""
        return Stage[self.stage.upper()] >= stage

    @property
    def episode(self) -> Episode:
        """Seed and words, from which the episode can be played again."""
        return Episode(self.seed, tuple(self.actions))


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
    """

    observations: Observations
    actions: np.ndarray
    log_probs: np.ndarray
    values: np.ndarray
    next_values: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray


class RolloutCollector:
    """Keeps N episodes running in a pool and collects rollouts from them.

    Everything random is derived from the run's seed, the rank, and where in the run it is used.

    Args:
        pool: The environments.
        seed: The run's seed.
        rank: This process's index; every rank has its own episodes.
    """

    def __init__(self, pool: EnvPool, seed: int, rank: int) -> None:
        self.pool = pool
        self.seed = seed
        self.rank = rank
        self.words_said = 0  # per environment, since the run began
        self.episodes_begun = [0] * pool.num_envs
        self.running: list[EpisodeRecord] = []
        self._observations: Observations | None = None
        self._away = True  # whether the pool stands elsewhere than these episodes

    def step_aside(self) -> None:
        """Leave the pool to something else; the next rollout takes the episodes up again."""
        self._away = True

    def take_up(self) -> None:
        """Make the pool stand where these episodes stand, by playing them from seeds and words.

        Raises:
            RuntimeError: The replay gave another picture than the first time.
        """
        if not self.running:
            self.running = [self._next_episode(i) for i in range(self.pool.num_envs)]
        again = self.pool.reset({i: record.episode for i, record in enumerate(self.running)})
        before = self._observations
        if before is not None and not np.array_equal(before.frames, again.frames):
            raise RuntimeError("a replayed episode differs from its first play")
        self._observations, self._away = again, False

    def collect_rollout(
        self, policy: VLMPolicy, steps: int, on_step: Callable[[], object] = lambda: None
    ) -> tuple[RolloutBuffer, list[EpisodeRecord]]:
        """Say ``steps`` words in each environment.

        Args:
            policy: Speaks; in evaluation mode and without gradients.
            steps: T.
            on_step: Called after each step, for progress bars.

        Returns:
            The buffer, and the episodes that ended on the way.
        """
        if self._away:
            self.take_up()
        assert self._observations is not None
        envs = range(self.pool.num_envs)
        rows: list[dict[str, Any]] = []
        finished: list[EpisodeRecord] = []
        for _ in range(steps):
            rng = derive_rng(self.seed, "sample", self.rank, self.words_said)
            said = act(policy, self._observations, rng.random(len(envs)))
            led_to = self.pool.step({i: int(said.actions[i]) for i in envs})
            rows.append(
                {
                    "observations": self._observations,
                    "actions": said.actions,
                    "log_probs": said.log_probs,
                    "values": said.values,
                    "rewards": led_to.rewards,
                    "terminated": led_to.terminated,
                    "truncated": led_to.truncated,
                    "final_values": self._final_values(
                        policy, led_to.observations, led_to.truncated
                    ),
                }
            )
            for i in envs:
                self.running[i].add(int(said.actions[i]), led_to.rewards[i], led_to.infos[i])
            self._observations = self._restart_ended(led_to, finished)
            self.words_said += 1
            on_step()
        last_values = predict_values(policy, self._observations)
        return _make_buffer(rows, last_values), finished

    @staticmethod
    def _final_values(
        policy: VLMPolicy, observations: Observations, truncated_N: np.ndarray
    ) -> np.ndarray:
        """V of the last observation of the episodes that ran out of time, else 0; (N,)."""
        values_N = np.zeros(len(truncated_N), np.float32)
        if truncated_N.any():
            values_N[truncated_N] = predict_values(policy, observations[truncated_N])
        return values_N

    def _restart_ended(self, led_to: Any, finished: list[EpisodeRecord]) -> Observations:
        """Begin new episodes where one ended; the observations to act on next."""
        ended = np.flatnonzero(led_to.terminated | led_to.truncated)
        if not len(ended):
            return led_to.observations
        for i in ended:
            finished.append(self.running[i])
            self.running[i] = self._next_episode(i)
        fresh = self.pool.reset({int(i): self.running[i].episode for i in ended})
        frames, facts = (led_to.observations.frames.copy(), led_to.observations.facts.copy())
        frames[ended], facts[ended] = fresh.frames, fresh.facts
        return Observations(frames, facts)

    def _next_episode(self, env: int) -> EpisodeRecord:
        number = self.episodes_begun[env]
        self.episodes_begun[env] += 1
        return EpisodeRecord(derive_seed(self.seed, "episode", self.rank, int(env), number))

    def state_dict(self) -> dict[str, Any]:
        """Where the episodes stand, as plain JSON values."""
        return {
            "words_said": self.words_said,
            "episodes_begun": list(self.episodes_begun),
            "running": [vars(record) for record in self.running],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The opposite of :meth:`state_dict`; the next rollout goes on from there."""
        self.words_said = state["words_said"]
        self.episodes_begun = list(state["episodes_begun"])
        self.running = [EpisodeRecord(**record) for record in state["running"]]
        self._observations, self._away = None, True


def _make_buffer(rows: list[dict[str, Any]], last_values_N: np.ndarray) -> RolloutBuffer:
    stacked = {
        key: np.stack([row[key] for row in rows]) for key in rows[0] if key != "observations"
    }
    # What step t led to is what step t + 1 acted on, unless the episode was cut off there.
    following_TN = np.concatenate([stacked["values"][1:], last_values_N[None]])
    final_TN = stacked.pop("final_values")
    return RolloutBuffer(
        observations=Observations.stack([row["observations"] for row in rows]),
        next_values=np.where(stacked["truncated"], final_TN, following_TN),
        **stacked,
    )
