"""``RolloutCollector``: the policy speaks, the pool moves, the buffer keeps what learning needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from vlm_agent.common.errors import NotFiniteError, UserError
from vlm_agent.common.seeding import derive_rng
from vlm_agent.policy.decisions import act
from vlm_agent.rollout.buffer import RolloutBuffer
from vlm_agent.rollout.sources import EpisodeSource
from vlm_agent.world.episode import Episode
from vlm_agent.world.observations import Observations
from vlm_agent.world.pool.batch import StepBatch
from vlm_agent.world.pool.pool import EnvPool

T = TypeVar("T")


class Actor(Protocol):
    """What speaks in a rollout: a ``VLMPolicy``, or one with a critic of its own."""

    def encode(self, observations: Observations) -> dict[str, torch.Tensor]:
        """Model inputs of B observations."""

    def __call__(self, **inputs: torch.Tensor) -> Any:
        """Scores (B, A), values (B,) and what can be kept of encoded observations."""


class RolloutCollector:
    """Keeps N episodes running in a pool and collects rollouts from them.

    The environments are in groups: while those of one group move, the policy scores the next
    group's observations. Everything random is derived from the run's seed, the rank, and where in
    the run it is used, so the result does not depend on which of them is faster. Others may use
    the pool between two rollouts: the next one takes the episodes up where they stood.

    Args:
        pool: The environments.
        source: Says which episode an environment begins next.
        seed: The run's seed.
        rank: This process's index; every rank has its own episodes.
        groups: How many groups.
        feature_bytes: How much memory what frozen parts made may take, rollout by rollout.

    Attributes:
        running: The episode of each environment.
        model_seconds: Time spent in the policy so far.
        given_up: How many running episodes could not be taken up, since the run began.
    """

    def __init__(
        self,
        pool: EnvPool,
        source: EpisodeSource,
        seed: int,
        rank: int = 0,
        groups: int = 1,
        feature_bytes: float = 0.0,
    ) -> None:
        self.pool = pool
        self.source = source
        self.seed = seed
        self.rank = rank
        self.feature_bytes = feature_bytes
        self.groups = np.array_split(np.arange(pool.num_envs), min(groups, pool.num_envs))
        self.words_said = 0  # steps since the run began, of a word per environment
        self.episodes_begun = [0] * pool.num_envs
        self.running: list[Episode] = []
        self.model_seconds = 0.0
        self.given_up = 0
        self._observations: Observations | None = None  # to act on next
        self._pool_stood_at = -1  # its count of requests after the last one of this collector

    def take_up(self) -> None:
        """Make the pool stand where these episodes stand, by playing them from seeds and words.

        Where the worlds do not replay, those that have begun are given up, and others begin.

        Raises:
            RuntimeError: The replay gave another picture than the first time.
        """
        if not self.running:
            self.running = [self._next_episode(i) for i in range(self.pool.num_envs)]
            self.episodes_begun = [number + 1 for number in self.episodes_begun]
        elif not self.pool.replays:
            self._give_up()
        again = self.pool.reset(dict(enumerate(self.running)))
        before = self._observations
        if before is not None and not np.array_equal(before.frames, again.frames):
            raise RuntimeError("a replayed episode differs from its first play")
        self._observations, self._pool_stood_at = again, self.pool.requests

    def _give_up(self) -> None:
        """Begin anew where episodes cannot be taken up, since nothing replays."""
        for env, episode in enumerate(self.running):
            if episode.actions:
                self._begin_next(env)
                self.given_up += 1
        self._observations = None

    def collect_rollout(
        self, actor: Actor, steps: int, on_step: Callable[[], object] = lambda: None
    ) -> tuple[RolloutBuffer, list[Episode]]:
        """Say ``steps`` words in each environment.

        Args:
            actor: Speaks; in evaluation mode and without gradients.
            steps: T.
            on_step: Called after each step, for progress bars.

        Returns:
            The buffer, and the episodes that ended on the way, without those that were lost.
        """
        if self._pool_stood_at != self.pool.requests:
            self.take_up()  # somebody else has used the pool
        try:
            return self._collect(actor, steps, on_step)
        except BaseException:  # Ctrl-C in a notebook too: the pool must not wait for this rollout
            self.pool.abandon_steps()
            self._observations = None
            raise

    def _collect(
        self, actor: Actor, steps: int, on_step: Callable[[], object]
    ) -> tuple[RolloutBuffer, list[Episode]]:
        assert self._observations is not None
        buffer = RolloutBuffer.empty(steps, self._observations, self.feature_bytes)
        finished: list[Episode] = []
        for step in range(steps):
            uniforms = self._uniforms(self.words_said)
            for group in self.groups:
                if step > 0:
                    finished += self._hear(actor, buffer, step - 1, group)
                self._speak(actor, buffer, step, group, uniforms[group])
            self.words_said += 1
            on_step()
        for group in self.groups:
            finished += self._hear(actor, buffer, steps - 1, group)
        self._pool_stood_at = self.pool.requests
        # What step t led to is what step t + 1 acted on, unless the episode was cut off there.
        last_values = self._timed(_predict_values, actor, self._observations)
        following = np.concatenate([buffer.values[1:], last_values[None]])
        np.copyto(buffer.next_values, following, where=~buffer.truncated)
        return buffer, finished

    def _speak(
        self,
        actor: Actor,
        buffer: RolloutBuffer,
        step: int,
        group: np.ndarray,
        uniforms: np.ndarray,
    ) -> None:
        """Choose a group's words, let it move, and do not wait for it."""
        assert self._observations is not None
        seen = self._observations[group]
        try:
            said = self._timed(act, actor, seen, uniforms)
        except NotFiniteError as error:
            where = "; ".join(self.running[env].coordinates for env in group[error.rows])
            raise NotFiniteError(f"{error}: {where}", error.rows) from None
        self.pool.start_step(
            {int(i): int(action) for i, action in zip(group, said.actions, strict=True)},
            self._following(group),
        )
        buffer.observations.put((step, group), seen)
        buffer.episodes[step, group] = [self.running[env] for env in group]
        buffer.actions[step, group] = said.actions
        buffer.log_probs[step, group] = said.log_probs
        buffer.values[step, group] = said.values
        if said.kept is not None:
            buffer.features.put(step * self.pool.num_envs + group, said.kept)

    def _hear(
        self, actor: Actor, buffer: RolloutBuffer, step: int, group: np.ndarray
    ) -> list[Episode]:
        """Take in what a group's words led to; the episodes that ended."""
        assert self._observations is not None
        led_to = self.pool.finish_step()
        buffer.rewards[step, group] = led_to.rewards
        buffer.terminated[step, group] = led_to.terminated
        buffer.truncated[step, group] = led_to.truncated
        if led_to.truncated.any():
            self._value_cut_off(actor, buffer, step, group, led_to)
        self._observations.put(group, led_to.next_observations)
        finished = []
        for n, i in enumerate(group):
            info = led_to.infos[n]
            buffer.expert_actions[step, i] = info.get("expert_action", -1)
            if info.get("lost"):
                self._lose(buffer, step, i)
                self._begin_next(i)
                continue
            self.running[i] = self.running[i].after(
                buffer.actions[step, i], led_to.rewards[n], info
            )
            if led_to.terminated[n] or led_to.truncated[n]:
                finished.append(self.running[i])
                self._begin_next(i)
        return finished

    def _value_cut_off(
        self,
        actor: Actor,
        buffer: RolloutBuffer,
        step: int,
        group: np.ndarray,
        led_to: StepBatch,
    ) -> None:
        """Where only the time is up, the last observation has a value of its own."""
        final = self._timed(_predict_values, actor, led_to.observations[led_to.truncated])
        buffer.next_values[step, group[led_to.truncated]] = final

    def _lose(self, buffer: RolloutBuffer, step: int, env: int) -> None:
        """An environment's episode is lost: nobody knows what its last word led to."""
        buffer.lost[step, env] = True

    def _timed(self, function: Callable[..., T], *arguments: Any) -> T:
        began = time.perf_counter()
        result = function(*arguments)
        self.model_seconds += time.perf_counter() - began
        return result

    def _uniforms(self, step: int) -> np.ndarray:
        """What the words of a step are drawn with, (N,)."""
        return derive_rng(self.seed, "sample", self.rank, step).random(self.pool.num_envs)

    def _next_episode(self, env: int) -> Episode:
        """The episode that an environment begins next."""
        return self.source.next_episode(self.rank, int(env), self.episodes_begun[env])

    def _following(self, group: np.ndarray) -> dict[int, Episode]:
        """What the environments of a group begin if their episodes end."""
        return {int(i): self._next_episode(i) for i in group}

    def _begin_next(self, env: int) -> None:
        """An environment has begun its next episode."""
        self.running[env] = self._next_episode(env)
        self.episodes_begun[env] += 1

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
        return {
            "words_said": self.words_said,
            "episodes_begun": list(self.episodes_begun),
            "running": [asdict(episode) for episode in self.running],
            "source": self.source.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The opposite of :meth:`state_dict`; the next rollout goes on from there.

        Raises:
            UserError: It is of another number of environments.
        """
        if (count := len(state["episodes_begun"])) != self.pool.num_envs:
            raise UserError(
                f"the checkpoint is of {count} environments per process, and the pool has "
                f"{self.pool.num_envs}: make it with recipe.make_pool()"
            )
        self.words_said = state["words_said"]
        self.episodes_begun = list(state["episodes_begun"])
        self.running = [Episode.from_json(episode) for episode in state["running"]]
        self.source.load_state_dict(state["source"])
        self._observations, self._pool_stood_at = None, -1


@torch.no_grad()
def _predict_values(actor: Actor, observations: Observations) -> np.ndarray:
    """State values, float32 (B,)."""
    return actor(**actor.encode(observations)).values.cpu().numpy()
