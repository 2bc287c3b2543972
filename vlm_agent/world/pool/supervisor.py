"""``Supervisor``: the workers of a pool, restarted where they stood when they fail."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlm_agent.common.errors import UserError
from vlm_agent.world.episode import Episode
from vlm_agent.world.pool.handle import END_SECONDS, WorkerError, WorkerHandle
from vlm_agent.world.pool.worker import Lost, Report, Request, Step, Told, WorkerSettings

logger = logging.getLogger(__name__)


class Supervisor:
    """The workers of a pool, restarted where they stood when they fail.

    An episode is its seed and its words, so a worker that died, raised an exception or hung is
    replaced, its episodes are replayed, and the replay is checked. Where the worlds do not replay,
    its episodes are lost: the next word in each of them is answered with ``lost`` in its info, and
    the episode that was to follow begins.

    Args:
        settings: Of each worker.
        timeout: Seconds without an answer after which a worker counts as hung.
        max_restarts: How often each worker is restarted before the pool gives up.

    Attributes:
        seconds: Time spent so far, by activity.
        restarts: How often each worker has been restarted.
    """

    def __init__(
        self, settings: Sequence[WorkerSettings], timeout: float, max_restarts: int
    ) -> None:
        self.seconds = {"physics": 0.0, "rendering": 0.0, "waiting": 0.0}
        self.restarts = [0] * len(settings)
        self._max_restarts = max_restarts
        self._pictures = settings[0].frames.array()
        # Where each environment stands, for all that has been answered.
        self._episodes: dict[int, Episode] = {}
        self._digests: dict[int, bytes] = {}
        self._told: dict[int, Told | None] = {}
        self._row: dict[int, int] = {}  # of its last picture
        self._gone: set[int] = set()  # whose episode is lost, and nobody has been told
        self._has_warned = False
        self._workers = [WorkerHandle(one, timeout) for one in settings]

    def wait_until_ready(self) -> None:
        """Wait until all environments have been built.

        Raises:
            UserError: They cannot be, or a worker failed too often.
        """
        for index, worker in enumerate(self._workers):
            self._insist(index, worker.wait_until_ready)
        if not self.replays and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "these environments do not replay: the same seed and words led elsewhere. If a "
                "worker fails, and when a run is resumed, running episodes are lost; they are "
                "counted (lost_episodes) and left out"
            )

    @property
    def replays(self) -> bool:
        """Whether an episode is its seed and its words, as far as the workers have found out."""
        return all(worker.replays for worker in self._workers)

    def ask(self, requests: Mapping[int, Any]) -> None:
        """Send each worker its share of requests, environment index -> request."""
        for slot, what in requests.items():
            if slot in self._gone and isinstance(what, Step):
                requests = {**requests, slot: self._as_lost(slot, what)}
            self._gone.discard(slot)
        for worker in self._workers:
            share = {slot: requests[slot] for slot in worker.settings.slots if slot in requests}
            if share:
                worker.ask(share)

    def receive(self, slots: Iterable[int]) -> dict[int, Report]:
        """Each concerned worker's answer to its oldest request: environment index -> report."""
        began = time.perf_counter()
        wanted, reports = set(slots), {}
        for index, worker in enumerate(self._workers):
            if not wanted.isdisjoint(worker.settings.slots):
                reports.update(self._hear(index))
        self.seconds["waiting"] += time.perf_counter() - began
        return reports

    def drain(self) -> None:
        """Hear what was asked for and nobody has waited for."""
        for index, worker in enumerate(self._workers):
            while worker.unanswered:
                self._hear(index)

    def _hear(self, index: int) -> dict[int, Report]:
        """A worker's answer to its oldest request."""
        request, answer = self._insist(index, self._workers[index].receive)
        for activity, seconds in answer.seconds.items():
            self.seconds[activity] += seconds
        reports = {
            slot: report if report.told is not None else replace(report, told=self._told[slot])
            for slot, report in answer.reports.items()
        }
        self._note(request, reports)
        return reports

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
            report = reports[slot]
            self._digests[slot] = report.digest
            self._told[slot] = report.fresh or report.told
            self._row[slot] = 0 if report.fresh is None else 1
            if isinstance(what, Episode):
                self._episodes[slot] = what
            elif report.fresh is not None and what.following is not None:
                self._episodes[slot] = what.following
            elif isinstance(what, Step):
                before = self._episodes[slot]
                self._episodes[slot] = replace(before, actions=(*before.actions, what.action))
            else:
                self._episodes.pop(slot, None)

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
        if not self.replays:
            unanswered = self._give_up(standing, unanswered)
        while True:
            if self.restarts[index] >= self._max_restarts:
                raise UserError(
                    f"environment worker {index} failed again after {self._max_restarts} restarts "
                    f"(max_worker_restarts): it {failure}"
                )
            self.restarts[index] += 1
            times = f"{self.restarts[index]} of {self._max_restarts}"
            what = "replaying" if self.replays else "giving up"
            text = "environment worker %d %s\nrestarting it (%s) and %s its %d episodes"
            logger.warning(text, index, str(failure), times, what, len(standing))
            worker.kill()
            worker.start()
            try:
                if standing and self.replays:
                    worker.ask(standing)
                    self._check_replay(worker.receive()[1].reports)
                break
            except WorkerError as again:
                failure = again
        for request in unanswered:
            worker.ask(request)

    def _give_up(
        self, standing: Mapping[int, Episode], unanswered: Sequence[Request]
    ) -> list[Request]:
        """Have episodes that cannot be replayed be lost: what is to be asked instead."""
        asked: list[Request] = []
        for request in unanswered:
            asked.append(
                {
                    slot: self._as_lost(slot, what) if isinstance(what, Step) else what
                    for slot, what in request.items()
                }
            )
        known = {slot for request in asked for slot in request}
        self._gone.update(slot for slot in standing if slot not in known)
        return asked

    def _as_lost(self, slot: int, step: Step) -> Lost:
        """What is asked in place of a word in an episode that is lost.

        What is seen after that word is what was seen before it.
        """
        if self._row[slot]:
            self._pictures[0, slot] = self._pictures[1, slot]
        return Lost(step.following)

    def _check_replay(self, reports: Mapping[int, Report]) -> None:
        for slot, report in reports.items():
            if report.digest != self._digests[slot]:
                episode = self._episodes[slot]
                raise UserError(
                    f"environment {slot} did not replay: seed {episode.seed} and its "
                    f"{len(episode.actions)} words led to another state than the first time, so "
                    "the run cannot go on as if its worker had not failed"
                )

    def pids(self) -> list[int]:
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
