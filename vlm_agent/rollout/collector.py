"""Rollouts: the policy speaks, the pool moves, the buffer keeps what PPO needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from vlm_agent.common.seeding import derive_rng, episode_seed
from vlm_agent.policy.decisions import act, predict_values
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.rollout.curriculum import ReverseCurriculum
from vlm_agent.rollout.features import FeatureCache
from vlm_agent.world.episode import Episode
from vlm_agent.world.observations import Observations
from vlm_agent.world.pool.pool import EnvPool
from vlm_agent.world.robosuite.scene import Stage

T = TypeVar("T")


@dataclass
class EpisodeRecord:
    """An episode, running or finished.

    Attributes:
        seed: The reset seed.
        actions: The action indices said so far.
        episode_return: Undiscounted sum of the rewards.
        success: Whether the task was solved.
        stage: The highest stage so far, a lower-case name of :class:`Stage`.
        horizon: Words after which it is over, if before the scene's horizon.
        begun: How many of the words at its beginning were not the policy's.
    """

    seed: int
    actions: list[int] = field(default_factory=list)
    episode_return: float = 0.0
    success: bool = False
    stage: str = Stage.NONE.name.lower()
    horizon: int | None = None
    begun: int = 0

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
        return Episode(self.seed, tuple(self.actions), self.horizon)


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
        expert_actions: What the expert would have said, int64 (T, N); -1 where none was asked.
        features: Of the frames, where a frozen vision tower made them; slot t N + n.
    """

    observations: Observations
    actions: np.ndarray
    log_probs: np.ndarray
    values: np.ndarray
    next_values: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    expert_actions: np.ndarray
    features: FeatureCache

    @classmethod
    def empty(cls, steps: int, like: Observations, feature_bytes: float = 0.0) -> RolloutBuffer:
        """Room for ``steps`` words on observations like these (N of them).

        Args:
            steps: T.
            like: N observations.
            feature_bytes: How much memory image features may take.
        """
        shape = (steps, len(like))
        return cls(
            observations=like.empty(steps),
            actions=np.zeros(shape, np.int64),
            log_probs=np.zeros(shape, np.float32),
            values=np.zeros(shape, np.float32),
            next_values=np.zeros(shape, np.float32),
            rewards=np.zeros(shape),
            terminated=np.zeros(shape, bool),
            truncated=np.zeros(shape, bool),
            expert_actions=np.full(shape, -1),
            features=FeatureCache(steps * len(like), feature_bytes),
        )


class RolloutCollector:
    """Keeps N episodes running in a pool and collects rollouts from them.

    The environments are in groups: while those of one group move, the policy scores the next
    group's observations. Everything random is derived from the run's seed, the rank, and where in
    the run it is used, so the result does not depend on which of them is faster.

    Args:
        pool: The environments.
        seed: The run's seed.
        rank: This process's index; every rank has its own episodes.
        groups: How many groups.
        feature_bytes: How much memory the image features of a rollout may take.
        curriculum: Where episodes begin, if not at their beginning.

    Attributes:
        model_seconds: Time spent in the policy so far.
    """

    def __init__(
        self,
        pool: EnvPool,
        seed: int,
        rank: int,
        groups: int = 1,
        feature_bytes: float = 0.0,
        curriculum: ReverseCurriculum | None = None,
    ) -> None:
        self.feature_bytes = feature_bytes
        self.pool = pool
        self.seed = seed
        self.rank = rank
        self.curriculum = curriculum
        self.groups = np.array_split(np.arange(pool.num_envs), min(groups, pool.num_envs))
        self.words_said = 0  # per environment, since the run began
        self.episodes_begun = [0] * pool.num_envs
        self.running: list[EpisodeRecord] = []
        self.model_seconds = 0.0
        self._observations: Observations | None = None  # to act on next
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
            self.running = [self._next_record(i) for i in range(self.pool.num_envs)]
            self.episodes_begun = [1] * self.pool.num_envs
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
        buffer = RolloutBuffer.empty(steps, self._observations, self.feature_bytes)
        finished: list[EpisodeRecord] = []
        for step in range(steps):
            uniforms = derive_rng(self.seed, "sample", self.rank, self.words_said).random(
                self.pool.num_envs
            )
            for group in self.groups:
                if step > 0:
                    finished += self._hear(policy, buffer, step - 1, group)
                self._speak(policy, buffer, step, group, uniforms[group])
            self.words_said += 1
            on_step()
        for group in self.groups:
            finished += self._hear(policy, buffer, steps - 1, group)
        # What step t led to is what step t + 1 acted on, unless the episode was cut off there.
        last_values = self._timed(predict_values, policy, self._observations)
        following = np.concatenate([buffer.values[1:], last_values[None]])
        np.copyto(buffer.next_values, following, where=~buffer.truncated)
        return buffer, finished

    def _speak(
        self,
        policy: VLMPolicy,
        buffer: RolloutBuffer,
        step: int,
        group: np.ndarray,
        uniforms: np.ndarray,
    ) -> None:
        """Choose a group's words, let it move, and do not wait for it."""
        assert self._observations is not None
        seen = self._observations[group]
        said = self._timed(act, policy, seen, uniforms)
        self.pool.start_step(
            {int(i): int(action) for i, action in zip(group, said.actions, strict=True)},
            {int(i): self._next_record(i).episode for i in group},
        )
        buffer.observations.put((step, group), seen)
        buffer.actions[step, group] = said.actions
        buffer.log_probs[step, group] = said.log_probs
        buffer.values[step, group] = said.values
        if said.image_features is not None:
            buffer.features.put(step * self.pool.num_envs + group, said.image_features)

    def _hear(
        self, policy: VLMPolicy, buffer: RolloutBuffer, step: int, group: np.ndarray
    ) -> list[EpisodeRecord]:
        """Take in what a group's words led to; the episodes that ended."""
        assert self._observations is not None
        led_to = self.pool.finish_step()
        buffer.rewards[step, group] = led_to.rewards
        buffer.terminated[step, group] = led_to.terminated
        buffer.truncated[step, group] = led_to.truncated
        if led_to.truncated.any():
            # Where only the time is up, the last observation has a value of its own.
            final = self._timed(predict_values, policy, led_to.observations[led_to.truncated])
            buffer.next_values[step, group[led_to.truncated]] = final
        self._observations.put(group, led_to.next_observations)
        finished = []
        for n, i in enumerate(group):
            buffer.expert_actions[step, i] = led_to.infos[n].get("expert_action", -1)
            self.running[i].add(
                int(buffer.actions[step, i]), float(led_to.rewards[n]), led_to.infos[n]
            )
            if led_to.terminated[n] or led_to.truncated[n]:
                finished.append(self.running[i])
                self.running[i] = self._next_record(i)
                self.episodes_begun[i] += 1
        return finished

    def _timed(self, function: Callable[..., T], *arguments: Any) -> T:
        began = time.perf_counter()
        result = function(*arguments)
        self.model_seconds += time.perf_counter() - began
        return result

    def _next_record(self, env: int) -> EpisodeRecord:
        """The episode that an environment begins next."""
        place = self.rank, int(env), self.episodes_begun[env]
        if self.curriculum is not None:
            start = self.curriculum.start(*place)
            said = list(start.actions)
            return EpisodeRecord(start.seed, said, horizon=start.horizon, begun=len(said))
        return EpisodeRecord(episode_seed("train", self.seed, "rollout", *place))

    def seconds(self) -> dict[str, float]:
        """Time spent so far: the workers' on physics and rendering (summed), and this process's
        on the model and on waiting for workers.
        """
        return {**self.pool.seconds, "model": self.model_seconds}

    def shares(self, wall: float, since: dict[str, float]) -> dict[str, float]:
        """What the time went to, as shares of what all workers had, or this process.

        Args:
            wall: Seconds that went by.
            since: What :meth:`seconds` was at their beginning.
        """
        spent = {key: value - since[key] for key, value in self.seconds().items()}
        workers = wall * self.pool.num_workers
        return {
            "physics_share": spent["physics"] / workers,
            "rendering_share": spent["rendering"] / workers,
            "model_share": spent["model"] / wall,
            "waiting_share": spent["waiting"] / wall,
        }

    def state_dict(self) -> dict[str, Any]:
        """Where the episodes stand, as plain JSON values."""
        state = {
            "words_said": self.words_said,
            "episodes_begun": list(self.episodes_begun),
            "running": [vars(record) for record in self.running],
        }
        if self.curriculum is not None:
            state["curriculum"] = self.curriculum.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The opposite of :meth:`state_dict`; the next rollout goes on from there."""
        self.words_said = state["words_said"]
        self.episodes_begun = list(state["episodes_begun"])
        self.running = [EpisodeRecord(**record) for record in state["running"]]
        if self.curriculum is not None:
            self.curriculum.load_state_dict(state["curriculum"])
        self._observations, self._away = None, True
