"""``EnvPool``: environments in worker processes that may die without anyone noticing."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np

from vlm_agent.common.errors import UserError
from vlm_agent.world.actions import ActionVocabulary
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.episode import Episode
from vlm_agent.world.facts import FACTS, facts_named
from vlm_agent.world.observations import Observations
from vlm_agent.world.pool.batch import StepBatch
from vlm_agent.world.pool.handle import END_SECONDS, WorkerError, WorkerHandle
from vlm_agent.world.pool.worker import (
    Frames,
    MakeEnv,
    Report,
    Request,
    Step,
    Told,
    WorkerSettings,
    state_size,
)
from vlm_agent.world.robosuite.env import LanguageActionEnv

logger = logging.getLogger(__name__)


class EnvPool(AbstractContextManager["EnvPool"]):
    """``num_envs`` copies of a :class:`LanguageActionEnv` in spawned worker processes.

    Each worker runs several environments and answers one message per step; frames come through
    shared memory. Results depend on seeds and words only, never on timing, on the number of
    workers, or on whether one of them had to be restarted: an episode is its seed and its words,
    so a worker that died, raised an exception or hung is replaced and its episodes are replayed,
    and the replay is checked. Workers end with their parent, however it ends. Use it as a context
    manager.

    Args:
        config: The scene of every environment.
        num_envs: Number of environments N.
        num_workers: Worker processes; 0 means one per core, at most one per environment.
        gamma: Discount for the progress reward.
        gpu: Index of the GPU to draw on; ``None`` leaves that to EGL.
        timeout: Seconds without an answer after which a worker counts as hung.
        max_restarts: How often each worker is restarted before the pool gives up.
        make_env: Makes one from ``config``, ``gamma`` and ``facts``; the workers import it.
        facts: Names of the facts that observations tell; all by default.
        privileged_state: Whether observations have ``states``, for a critic that reads them;
            ``make_env`` then has ``privileged_names``, as the environments' classes do.

    Raises:
        UserError: There is no such fact, or nothing says what the privileged state is.

    Attributes:
        requests: How many resets and steps have been asked for, by anyone: who keeps episodes
            running in the pool sees by it whether somebody else has used it.
        state_size: S, how many numbers the privileged state has; ``None`` where nobody asked.
        seconds: Time spent so far: on ``physics`` and ``rendering``, summed over the workers, and
            ``waiting`` for them.
        restarts: How often each worker has been restarted.
    """

    def __init__(  # noqa: PLR0913 (each with a default that suits a notebook)
        self,
        config: EnvConfig,
        num_envs: int,
        num_workers: int = 0,
        gamma: float = 0.99,
        gpu: int | None = None,
        timeout: float = 60.0,
        max_restarts: int = 3,
        make_env: MakeEnv = LanguageActionEnv,
        facts: Sequence[str] | None = None,
        privileged_state: bool = False,
    ) -> None:
        self.config = config
        self.num_envs = num_envs
        self.facts = tuple(FACTS if facts is None else facts)
        self.tells_state = privileged_state
        self.state_size = state_size(make_env) if privileged_state else None
        self.requests = 0
        self.num_workers = min(num_envs, num_workers or len(os.sched_getaffinity(0)))
        self.seconds = {"physics": 0.0, "rendering": 0.0, "waiting": 0.0}
        self.restarts = [0] * self.num_workers
        self._max_restarts = max_restarts
        self._vocabulary = ActionVocabulary()
        self._begun: deque[list[int]] = deque()  # the slots of each step that is under way
        # Where each environment stands, for all that has been answered.
        self._episodes: dict[int, Episode] = {}
        self._digests: dict[int, bytes] = {}
        frames = Frames.allocate(num_envs, config.frame_size)
        told = facts_named(self.facts)
        self._pictures = frames.array()
        self._workers = []
        for first in range(self.num_workers):
            slots = tuple(range(first, num_envs, self.num_workers))
            settings = WorkerSettings(
                slots, config, gamma, frames, gpu, make_env, told, privileged_state
            )
            self._workers.append(WorkerHandle(settings, timeout))

    def wait_until_ready(self) -> None:
        """Wait until all environments have been built.

        Raises:
            UserError: They cannot be, or a worker failed too often.
        """
        for index, worker in enumerate(self._workers):
            self._insist(index, worker.wait_until_ready)

    def reset(self, episodes: Mapping[int, Episode]) -> Observations:
        """Start episodes, or take them up after the words they have; the observations to act on.

        Args:
            episodes: Environment index -> episode; the observations are in their order.

        Raises:
            UserError: The environments cannot be built, or a worker failed too often.
        """
        if self._begun:
            raise RuntimeError("a step is under way: finish it before a reset")
        for index, worker in enumerate(self._workers):
            while worker.unanswered:  # whoever asked was interrupted, or has abandoned it
                self._hear(index)
        self.requests += 1
        self._ask(episodes)
        reports = self._receive(episodes)
        return self._stack(list(episodes), 0, [reports[slot].told for slot in episodes])

    def step(
        self, actions: Mapping[int, int], following: Mapping[int, Episode] | None = None
    ) -> StepBatch:
        """:meth:`start_step` and :meth:`finish_step` in one."""
        self.start_step(actions, following)
        return self.finish_step()

    def start_step(
        self, actions: Mapping[int, int], following: Mapping[int, Episode] | None = None
    ) -> None:
        """Say one word in each named environment, and do not wait for what comes of it.

        Args:
            actions: Environment index -> action.
            following: Environment index -> the episode to begin there if this word ends the
                present one.

        Raises:
            UserError: There is no word with that index.
        """
        for action in actions.values():
            self._vocabulary.word(action)
        if not actions.keys().isdisjoint(slot for begun in self._begun for slot in begun):
            raise RuntimeError("a step is under way in one of these environments: finish it first")
        following = following or {}
        self.requests += 1
        self._begun.append(list(actions))
        self._ask({slot: Step(action, following.get(slot)) for slot, action in actions.items()})

    def finish_step(self) -> StepBatch:
        """What the oldest step that is under way led to, in the order its actions were given."""
        slots = self._begun.popleft()
        reports = self._receive(slots)
        chosen = [reports[slot] for slot in slots]
        rewards, terminated, truncated, infos = zip(
            *(report.outcome for report in chosen if report.outcome), strict=True
        )
        observations = following = self._stack(slots, 0, [report.told for report in chosen])
        begun = {i: report.fresh for i, report in enumerate(chosen) if report.fresh is not None}
        if begun:
            following = observations.copy()
            fresh = self._stack([slots[i] for i in begun], 1, list(begun.values()))
            following.put(list(begun), fresh)
        ends = np.array(terminated), np.array(truncated)
        return StepBatch(observations, following, np.array(rewards), *ends, list(infos))

    def abandon_steps(self) -> None:
        """Nobody will finish the steps under way; the next reset passes over what they led to."""
        self._begun.clear()

    def _stack(self, slots: list[int], which: int, told: Sequence[Told]) -> Observations:
        """Pictures in shared memory, with the facts and the states that came with them."""
        facts, states = zip(*told, strict=True)
        known = np.stack(states) if self.tells_state else None
        return Observations(self._pictures[which, slots], np.stack(facts), known)

    def _ask(self, requests: Mapping[int, Any]) -> None:
        """Send each worker its share."""
        for worker in self._workers:
            share = {slot: requests[slot] for slot in worker.settings.slots if slot in requests}
            if share:
                worker.ask(share)

    def _receive(self, slots: Iterable[int]) -> dict[int, Report]:
        """Each concerned worker's answer to its oldest request: environment index -> report."""
        began = time.perf_counter()
        wanted, reports = set(slots), {}
        for index, worker in enumerate(self._workers):
            if not wanted.isdisjoint(worker.settings.slots):
                reports.update(self._hear(index))
        self.seconds["waiting"] += time.perf_counter() - began
        return reports

    def _hear(self, index: int) -> dict[int, Report]:
        """A worker's answer to its oldest request."""
        request, answer = self._insist(index, self._workers[index].receive)
        for activity, seconds in answer.seconds.items():
            self.seconds[activity] += seconds
        self._note(request, answer.reports)
        return answer.reports

    def _insist(self, index: int, ask: Callable[[], Any]) -> Any:
        """What a worker answers, restarted as often as it takes and is allowed."""
        while True:
            try:
                return ask()
            except WorkerError as failure:
                self._revive(index, failure)

    def _note(self, request: Request, reports: Mapping[int, Report]) -> None:
        """Remember where the environments stand now."""
        for slot, what in request.items():
            self._digests[slot] = reports[slot].digest
            if isinstance(what, Episode):
                self._episodes[slot] = what
            elif reports[slot].fresh is not None and what.following is not None:
                self._episodes[slot] = what.following
            else:
                before = self._episodes[slot]
                self._episodes[slot] = replace(before, actions=(*before.actions, what.action))

    def _revive(self, index: int, failure: WorkerError) -> None:
        """Restart a worker, put its environments where they stood, and ask it again.

        Raises:
            UserError: It failed too often, or a replay led elsewhere than the first play.
        """
        worker = self._workers[index]
        unanswered = list(worker.unanswered)
        if failure.raised and not worker.is_ready:
            raise UserError(f"environment worker {index} could not start: it {failure}")
        slots = worker.settings.slots
        standing = {slot: self._episodes[slot] for slot in slots if slot in self._episodes}
        while True:
            if self.restarts[index] >= self._max_restarts:
                raise UserError(
                    f"environment worker {index} failed again after {self._max_restarts} restarts "
                    f"(max_worker_restarts): it {failure}"
                )
            self.restarts[index] += 1
            times = f"{self.restarts[index]} of {self._max_restarts}"
            text = "environment worker %d %s\nrestarting it (%s) and replaying its %d episodes"
            logger.warning(text, index, str(failure), times, len(standing))
            worker.kill()
            worker.start()
            try:
                if standing:
                    worker.ask(standing)
                    self._check_replay(worker.receive()[1].reports)
                break
            except WorkerError as again:
                failure = again
        for request in unanswered:
            worker.ask(request)

    def _check_replay(self, reports: Mapping[int, Report]) -> None:
        for slot, report in reports.items():
            if report.digest != self._digests[slot]:
                episode = self._episodes[slot]
                raise UserError(
                    f"environment {slot} did not replay: seed {episode.seed} and its "
                    f"{len(episode.actions)} words led to another state than the first time, so "
                    "the run cannot go on as if its worker had not failed"
                )

    def worker_pids(self) -> list[int]:
        """The workers' process ids; a restarted one has another."""
        return [worker.process.pid for worker in self._workers if worker.process.pid is not None]

    def close(self) -> None:
        """End all workers. Safe to call twice."""
        for worker in self._workers:
            worker.let_go()
        deadline = time.monotonic() + END_SECONDS
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            worker.kill()

    def __exit__(self, *exception: object) -> None:
        self.close()
