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
from pathlib import Path
from typing import Any

from vlm_agent.errors import UserError
from vlm_agent.robot.episode import Episode
from vlm_agent.robot.worker import Answer, Request, WorkerSettings, run_worker

START_SECONDS = 180.0
"""How long a worker may take to import robosuite and to build its environments."""

WORDS_PER_TIMEOUT = 100
"""How many words may be replayed in the time in which a single answer is due."""


class WorkerError(Exception):
    """A worker died, raised an exception, or gave no answer in time. The message says which."""


class WorkerHandle:
    """A worker process as its parent sees it.

    Args:
        settings: The environments it runs.
        timeout: Seconds without an answer after which it counts as hung.
    """

    def __init__(self, settings: WorkerSettings, timeout: float) -> None:
        self.settings = settings
        self.unanswered: deque[Request] = deque()
        self.is_ready = False
        self._timeout = timeout
        self.start()

    def start(self) -> None:
        """Start the process; what an earlier one was asked is forgotten."""
        self.unanswered.clear()
        self.is_ready = False
        context = mp.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._last_words, self._last_words_path = tempfile.mkstemp(prefix="vlm-agent-worker-")
        in_main_thread = threading.current_thread() is threading.main_thread()
        self.process = context.Process(
            target=run_worker,
            args=(theirs, self._last_words_path, in_main_thread, self.settings),
            daemon=True,
        )
        self.process.start()
        theirs.close()

    def ask(self, request: Request) -> None:
        """Send a request."""
        self.unanswered.append(request)
        with contextlib.suppress(OSError):  # the worker is gone; ``receive`` finds out why
            self._pipe.send(request)

    def receive(self) -> tuple[Request, Answer]:
        """The oldest unanswered request, and the answer to it.

        Raises:
            WorkerError: There will be no answer.
            UserError: The environments cannot be made or asked so.
        """
        if not self.is_ready:
            self._get(START_SECONDS)
            self.is_ready = True
        episodes = [what for what in self.unanswered[0].values() if isinstance(what, Episode)]
        replayed = sum(len(episode.actions) for episode in episodes)
        answer = self._get(self._timeout * (1 + replayed / WORDS_PER_TIMEOUT))
        return self.unanswered.popleft(), answer

    def _get(self, timeout: float) -> Any:
        try:
            if not self._pipe.poll(timeout):
                raise WorkerError(f"gave no answer for {timeout:.0f} s{self._stacks(hangs=True)}")
            answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join(5)
            raise WorkerError(f"died ({self._how_it_ended()}){self._stacks()}") from None
        if isinstance(answer, UserError):
            raise answer
        if isinstance(answer, str):
            raise WorkerError(f"raised an exception:\n{answer.rstrip()}")
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
        text = os.pread(self._last_words, 20_000, 0).decode(errors="replace").strip()
        return f":\n{text}" if text else ""

    def kill(self) -> None:
        """End the process at once. Safe to call twice."""
        self._pipe.close()
        self.process.kill()
        self.process.join()
        if self._last_words >= 0:
            os.close(self._last_words)
            self._last_words = -1
        Path(self._last_words_path).unlink(missing_ok=True)

    def close(self) -> None:
        """Let the process end in good order, if it can."""
        self._pipe.close()
        self.process.join(5)
        self.kill()
