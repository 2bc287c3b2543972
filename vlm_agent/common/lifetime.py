"""Processes that end with the one that started them, however that one ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""The option of Linux's ``prctl`` that chooses a signal for when the parent is gone."""

SHOW_CURSOR = b"\x1b[?25h"
"""What a terminal is told; a live panel hides it."""


def end_with_parent(number: signal.Signals, parent: int | None = None) -> None:
    """Have the kernel send this process a signal when its parent ends; Linux only.

    Strictly, when the parent's thread ends that started this process.

    Args:
        number: The signal.
        parent: The parent's process id, if known. If that is gone already, the signal is sent at
            once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number))
        if parent is not None and os.getppid() != parent:
            os.kill(os.getpid(), number)


def end_at_once(code: int) -> None:
    """End this process now, without what it would do at its end; only a cursor is shown again.

    Args:
        code: Its exit code.
    """
    if os.isatty(2):
        os.write(2, SHOW_CURSOR)
    os._exit(code)


def end_with_launcher() -> None:
    """End this process when ``accelerate launch`` ends, if that has started it."""
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        end_with_parent(signal.SIGTERM)
