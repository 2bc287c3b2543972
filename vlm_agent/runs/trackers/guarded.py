"""``GuardedTracker``: a tracker that cannot stop a run, whatever it does."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

from accelerate.tracking import GeneralTracker

from vlm_agent.common.errors import UserError

PATIENCE_S = 10.0
"""How long a run waits for a tracker to start, and to end."""

logger = logging.getLogger(__name__)


class GuardedTracker(GeneralTracker):
    """Does what a tracker is told in a thread of its own.

    The run goes on meanwhile. What the tracker raises is a warning, and it is told no more then; it
    is waited for when it starts and when it ends, for so long each time.

    Args:
        name: The tracker's.
        make: Makes it.
        seconds: How long it is waited for.
    """

    requires_logging_directory = False
    main_process_only = True

    def __init__(
        self, name: str, make: Callable[[], GeneralTracker], seconds: float = PATIENCE_S
    ) -> None:
        self.name = name
        self._make, self._seconds = make, seconds
        self._made: GeneralTracker | None = None
        self._tasks: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._problem: UserError | None = None
        self._is_silent = False
        super().__init__()

    @property
    def tracker(self) -> Any:
        """What the tracker itself calls so: wandb's run, TensorBoard's writer."""
        return None if self._made is None else self._made.tracker

    def start(self) -> None:
        """Make and start it.

        Raises:
            UserError: Its settings are wrong.
        """
        Thread(target=self._work, name=f"tracker {self.name}", daemon=True).start()
        self._tasks.put(self._start)
        self._wait()
        if self._problem is not None:
            raise self._problem

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Tell it of the run's settings."""
        self._tell("store_init_configuration", values)

    def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
        """Tell it of some numbers."""
        self._tell("log", values, step=step, **options)

    def finish(self) -> None:
        """End it; what it has not written by then is lost."""
        self._tell("finish")
        self._wait()
        self._tasks.put(None)

    def tell(self, do: Callable[[GeneralTracker], Any]) -> None:
        """Do something else with the tracker itself, in its thread."""
        if not self._is_silent:
            self._tasks.put(lambda: do(self._made))  # type: ignore[arg-type]

    def _start(self) -> None:
        self._made = self._make()
        self._made.start()

    def _tell(self, method: str, *what: Any, **options: Any) -> None:
        self.tell(lambda made: getattr(made, method)(*what, **options))

    def _work(self) -> None:
        """Do what there is to be done, in order, until something fails."""
        while task := self._tasks.get():
            try:
                task()
            except UserError as error:
                self._problem, self._is_silent = error, True
            except Exception as error:  # of whatever kind: the tracker is somebody else's
                self._give_up(f"{type(error).__name__}: {error}")
            if self._is_silent:
                return

    def _wait(self) -> None:
        """Until all it was told is done, or it has failed, or there is no patience left."""
        is_done, began = Event(), time.monotonic()
        self._tasks.put(is_done.set)
        while not is_done.wait(0.02) and not self._is_silent:
            if time.monotonic() - began > self._seconds:
                self._give_up("it does not answer")

    def _give_up(self, why: str) -> None:
        self._is_silent = True
        first = (why.splitlines() or [""])[0]
        logger.warning("report_to: %s is told no more of this run: %s", self.name, first)
