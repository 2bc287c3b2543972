"""What a pool holds of each worker: the process, the pipe, and what is still to be answered."""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
import tempfile
import threading
import time
from collections import deque
from multiprocessing.connection import Connection
from typing import IO, Any

from vlm_agent.common.errors import UserError
from vlm_agent.world.episode import Episode
from vlm_agent.world.pool.worker import Answer, Request, WorkerSettings, run_worker

START_SECONDS = 120.0
"""How long a worker may take to import robosuite."""

BUILD_SECONDS = 10.0
"""How long it may take to build each environment."""

END_SECONDS = 5.0
"""How long a process may take to end when it is told to."""

WORDS_PER_TIMEOUT = 100
"""How many words may be replayed in the time in which a single answer is due."""


class WorkerError(Exception):
    """A worker died, raised an exception, or gave no answer in time. The message says which.

    Attributes:
        raised: Whether it was an exception.
    """

    def __init__(self, message: str, raised: bool = False) -> None:
        super().__init__(message)
        self.raised = raised


class WorkerHandle:
    """A worker process as its parent sees it.

    Args:
        settings: The environments it runs.
        timeout: Seconds without an answer after which it counts as hung.

    Attributes:
        unanswered: What it was asked and has not answered, oldest first.
        is_ready: Whether its environments are built.
        replays: Whether they were found to replay; known when it is ready.
    """

    def __init__(self, settings: WorkerSettings, timeout: float) -> None:
        self.settings = settings
        self.unanswered: deque[Request] = deque()
        self.is_ready = False
        self.replays = True
        self._timeout = timeout
        self.start()

    def start(self) -> None:
        """Start the process; what an earlier one was asked is forgotten."""
        self.unanswered.clear()
        self.is_ready = False
        context = mp.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._last_words = tempfile.TemporaryFile()  # noqa: SIM115 (kept)
        in_main_thread = threading.current_thread() is threading.main_thread()
        self.process = context.Process(
            target=run_worker,
            args=(theirs, _inheritable(self._last_words), in_main_thread, self.settings),
            daemon=True,
        )
        self.process.start()
        theirs.close()

    def ask(self, request: Request) -> None:
        """Send a request, or keep it until the worker can take it."""
        self.unanswered.append(request)
        if self.is_ready:
            self._send(request)

    def _send(self, request: Request) -> None:
        with contextlib.suppress(OSError):  # the worker is gone; ``receive`` finds out why
            self._pipe.send(request)

    def wait_until_ready(self) -> None:
        """Wait for the environments to be built; then send what has been kept.

        Raises:
            WorkerError: The process ended, or built them for too long.
            UserError: They cannot be made so, or the pool is closed.
        """
        if self._pipe.closed:
            raise UserError("the pool is closed: use it inside its 'with' block, or make another")
        if not self.is_ready:
            self.replays = self._get(START_SECONDS + BUILD_SECONDS * len(self.settings.slots))
            self.is_ready = True
            for request in self.unanswered:
                self._send(request)

    def receive(self) -> tuple[Request, Answer]:
        """The oldest unanswered request, and the answer to it.

        Raises:
            WorkerError: There will be no answer.
            UserError: The environments cannot be made or asked so.
        """
        self.wait_until_ready()
        answer = self._get(
            self._timeout * (1 + words_to_replay(self.unanswered[0]) / WORDS_PER_TIMEOUT)
        )
        return self.unanswered.popleft(), answer

    def _get(self, timeout: float) -> Any:
        try:
            if not self._pipe.poll(timeout):
                raise WorkerError(f"gave no answer for {timeout:.0f} s{self._stacks(hangs=True)}")
            answer = self._pipe.recv()
        except (EOFError, OSError):
            self.process.join(END_SECONDS)
            raise WorkerError(f"died ({self._how_it_ended()}){self._stacks()}") from None
        if isinstance(answer, UserError):
            raise answer
        if isinstance(answer, str):
            raise WorkerError(f"raised an exception:\n{answer.rstrip()}", raised=True)
        return answer

    def _how_it_ended(self) -> str:
        code = self.process.exitcode
        if code is None:
            return "it closed its pipe"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def _stacks(self, hangs: bool = False) -> str:
        """Where the worker was when it crashed or hung, as far as it could write that down."""
        if hangs and self.process.pid is not None:
            os.kill(self.process.pid, signal.SIGUSR1)
            time.sleep(0.5)
        text = os.pread(self._last_words.fileno(), 20_000, 0).decode(errors="replace").strip()
        return f":\n{text}" if text else ""

    def kill(self) -> None:
        """End the process at once. Safe to call twice."""
        self.let_go()
        self.process.kill()
        self.process.join(END_SECONDS)
        self._last_words.close()

    def let_go(self) -> None:
        """Close the pipe, upon which the process ends when it has done what it is doing."""
        self._pipe.close()


def words_to_replay(request: Request) -> int:
    """How many words of earlier episodes the worker may have to say before it can answer."""
    asked = [what if isinstance(what, Episode) else what.following for what in request.values()]
    return sum(len(episode.actions) for episode in asked if episode is not None)


def _inheritable(file: IO[bytes]) -> Connection:
    """A file as something that travels to a spawned process."""
    return Connection(os.dup(file.fileno()))
