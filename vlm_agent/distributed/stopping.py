"""``Stopping``: a run that is asked to end does so where it can be gone on from."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

from vlm_agent.common.errors import Stopped
from vlm_agent.common.lifetime import end_at_once

SAME_EVENT_S = 1.0
"""A launcher that has heard a signal passes it on to what has heard it, too: one event."""

TIME_IS_UP = 75
"""The exit code of a run that ``max_hours`` ended: EX_TEMPFAIL, to be tried again."""


class Stopping(AbstractContextManager["Stopping"]):
    """Whether somebody wants a run to end: by a signal, or by the clock.

    As a context manager it listens to SIGTERM and SIGINT, in the main thread. The first one is
    kept until the run comes to a place where it can write a checkpoint; the same one again ends the
    process at once, and what was written before is as it was.

    Args:
        max_hours: After how many hours; ``None`` for no limit.
    """

    def __init__(self, max_hours: float | None = None) -> None:
        self._reason: str | None = None
        self._heard: dict[int, float] = {}  # and when first
        self._hours = max_hours
        self._ends_at = None if max_hours is None else time.monotonic() + 3600 * max_hours
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        first = self._heard.setdefault(number, now)
        if self._reason is None:
            self.ask(signal.Signals(number).name)
        if now - first > SAME_EVENT_S:
            end_at_once(128 + number)  # workers end with this process

    @property
    def reason(self) -> str | None:
        """Why the run is to end, if it is."""
        if self._reason is None and self._ends_at is not None and time.monotonic() > self._ends_at:
            self.ask("max_hours")
        return self._reason

    def ask(self, reason: str) -> None:
        """Have the run end: the name of a signal, or of a setting."""
        self._reason = reason

    def check(self) -> None:
        """Leave here, if the run is to end.

        Raises:
            Stopped: It is.
        """
        if self.reason is not None:
            raise Stopped(self.reason)

    def then(self, also: Callable[[], object]) -> Callable[[], None]:
        """:meth:`check`, and something else if there is no reason to leave."""

        def both() -> None:
            self.check()
            also()

        return both


def exit_code(reason: str) -> int:
    """Of a process that ended for a reason, as shells count: 143 for SIGTERM, 130 for SIGINT."""
    if reason in signal.Signals.__members__:
        return 128 + int(signal.Signals[reason])
    return TIME_IS_UP
