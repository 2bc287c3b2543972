"""``RankWatch``: where one process of a run has died, hangs or failed, all of them end."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import traceback
import uuid
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import broadcast_object_list

from vlm_agent.common.errors import Stopped, TrainingError
from vlm_agent.common.lifetime import end_at_once
from vlm_agent.distributed.reductions import rank_and_size
from vlm_agent.distributed.stopping import Stopping, exit_code

BEAT_S = 1.0
"""How often a process says that it is there, and looks at the others."""

LOST_AFTER_S = 20.0
"""A process that says nothing for so long is lost: killed, frozen, or its machine is."""

GRACE_S = 5.0
"""How long a process may take to end by itself once the run is over."""

PACKAGE = Path(__file__).parents[1]


@dataclass
class Beat:
    """What a process says of itself."""

    number: int
    """Counts; a process that stands still says the same again."""

    collectives: int
    """How many calls that all processes have to join it has joined."""

    stands_at: str
    host: str
    pid: int
    has_finished: bool = False


class RankWatch(AbstractContextManager["RankWatch"]):
    """Around the work of one process; a thread looks at the others of its run.

    A process that waits for another one in a collective call waits as long as the group's timeout,
    half an hour, and cannot be told of anything meanwhile. The thread can: processes say once per
    second what they do, through the store at which they met, and the first one to see a cause
    shows it. In one process nothing happens.

    Args:
        timeout: How many seconds others wait for a process in a collective call that it does not
            join. One that does not even say that it is there is given up after
            :data:`LOST_AFTER_S`.
        stopping: Whether this process has been asked to end; then all are.

    Raises:
        TrainingError: On leaving, where the connection to another process broke, and nobody has
            said why.
        SystemExit: On leaving with an error, where another process has shown the cause; on leaving
            by :class:`Stopped`, in all processes but the main one.
    """

    def __init__(self, timeout: float, stopping: Stopping) -> None:
        self.timeout, self.stopping = timeout, stopping
        self.rank, self.ranks = rank_and_size()
        self._leave = threading.Event()
        self._began = time.monotonic()
        self._mine = Beat(0, 0, "", socket.gethostname(), os.getpid())
        self._heard: dict[int, tuple[Beat, float]] = {}  # and since when it has been so
        self._joined: tuple[int, float] = (0, self._began)
        self._store: Any = None
        self._watched = 0

    def __enter__(self) -> RankWatch:
        if self.ranks > 1:
            # A connection of its own: the main thread's is taken while that waits.
            store: Any = dist.distributed_c10d._get_default_store()
            # Of this start alone: an agent that begins the processes again keeps its store.
            (start,) = broadcast_object_list([uuid.uuid4().hex])
            self._store = dist.distributed_c10d.PrefixStore(f"watch/{start}", store.clone())
            self._watched = threading.get_ident()
            threading.Thread(target=self._watch, name="rank-watch", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave.set()
        if self.ranks == 1:
            return
        if error is None or isinstance(error, Stopped):  # which leaves all processes
            self._mine.has_finished = True
            self._say()
            if error is not None and self.rank > 0:
                raise SystemExit(exit_code(error.reason)) from error
            return
        _end_after(GRACE_S)  # interpreters that end may wait for other processes, too
        if not self._is_first():
            raise SystemExit(1) from error
        if _is_of_a_connection(error):
            raise TrainingError(self._who_is_gone(str(error))) from error

    def _watch(self) -> None:
        while not self._leave.wait(BEAT_S):
            unanswered = _end_after(3 * LOST_AFTER_S)  # the store may not answer, without an error
            try:
                self._say()
                self._pass_on()
                cause = self._look()
                is_over = cause is not None or self._store.add("failures", 0) > 0
                is_first = cause is not None and self._is_first()
            except RuntimeError:  # the store: who started the processes has ended
                cause, is_over = "the place where its processes met is gone", True
                is_first = os.environ.get("LOCAL_RANK", "0") == "0"
            unanswered.cancel()
            if is_over and not self._leave.is_set():
                if is_first:
                    print(f"\nvlm-agent: the run stopped: {cause}", file=sys.stderr, flush=True)
                _end_after(GRACE_S)
                return

    def _say(self) -> None:
        group: Any = dist.distributed_c10d._get_default_group()
        mine = self._mine
        mine.number += 1
        mine.collectives = group._get_sequence_number_for_group()
        mine.stands_at = _where(self._watched)
        self._store.set(f"beat/{self.rank}", json.dumps(asdict(mine)))
        if mine.collectives != self._joined[0]:
            self._joined = mine.collectives, time.monotonic()

    def _pass_on(self) -> None:
        """What one process was asked, all are."""
        if reason := self.stopping.reason:
            self._store.set("stop", reason)
        elif self._store.check(["stop"]):
            self.stopping.ask(self._store.get("stop").decode())

    def _look(self) -> str | None:
        """What is wrong with another process, if anything."""
        now = time.monotonic()
        for rank in range(self.ranks):
            if rank == self.rank:
                continue
            if not self._store.check([f"beat/{rank}"]):
                if now - self._began > self.timeout:
                    return f"{self._name(rank)} has not begun"
                continue
            beat = Beat(**json.loads(self._store.get(f"beat/{rank}")))
            before, since = self._heard.get(rank, (None, now))
            if before is None or beat.number != before.number:
                self._heard[rank] = beat, now
            elif not beat.has_finished and now - since > LOST_AFTER_S:
                return f"{self._name(rank)} has said nothing for {LOST_AFTER_S:.0f} s"
        return self._who_keeps_waiting(now)

    def _who_keeps_waiting(self, now: float) -> str | None:
        waited = now - self._joined[1]
        if waited <= self.timeout:
            return None
        for rank, (beat, _) in self._heard.items():
            if not beat.has_finished and beat.collectives < self._mine.collectives:
                return (
                    f"{self._name(rank)} stands at {beat.stands_at}, and others have waited for it "
                    f"for {waited:.0f} s (rank_timeout)"
                )
        return None

    def _who_is_gone(self, broke: str) -> str:
        """Whom the connection broke to, where one can see that from here."""
        for rank, (beat, _) in self._heard.items():
            if beat.host == self._mine.host and not _is_alive(beat.pid):
                return f"{self._name(rank)} has ended without a word: killed, or out of memory?"
        return f"the connection to another process broke: {broke.splitlines()[0]}"

    def _name(self, rank: int) -> str:
        name = f"rank {rank} of {self.ranks}"
        if rank in self._heard:
            beat = self._heard[rank][0]
            name += f" (pid {beat.pid} on {beat.host})"
        return name

    def _is_first(self) -> bool:
        """Whether nobody has shown a cause yet; nobody else will, then."""
        try:
            return self._store.add("failures", 1) == 1
        except RuntimeError:
            return True


def _end_after(seconds: float) -> threading.Timer:
    """End this process then, whatever it waits for; its workers end with it."""
    timer = threading.Timer(seconds, end_at_once, (1,))
    timer.daemon = True
    timer.start()
    return timer


def _where(thread: int) -> str:
    """Which line a thread is at, and from which one of this package it got there."""
    stack = traceback.extract_stack(sys._current_frames().get(thread))
    here = f"{stack[-1].filename}:{stack[-1].lineno}, in {stack[-1].name}"
    ours = [line for line in stack if Path(line.filename).is_relative_to(PACKAGE)]
    if not ours or ours[-1] is stack[-1]:
        return here
    return f"{here}, called from {Path(ours[-1].filename).name}:{ours[-1].lineno}"


def _is_of_a_connection(error: BaseException) -> bool:
    """Whether a collective call failed because of another process; gloo's errors have no class."""
    is_gloos = isinstance(error, RuntimeError) and "gloo" in str(error)
    return is_gloos or isinstance(error, torch.distributed.DistError)


def _is_alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that its parent has not looked after does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
