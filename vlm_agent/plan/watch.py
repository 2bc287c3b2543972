"""A command's time and memory, with all processes that it starts."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from vlm_agent.common.errors import UserError

EVERY = 0.5
"""Seconds between two looks."""


class Watched(NamedTuple):
    """What a command took.

    Attributes:
        seconds: From its beginning to its end.
        peak_bytes: The most that its processes had at once; what they share counts once.
    """

    seconds: float
    peak_bytes: int


def watch(command: Sequence[str], folder: Path, environ: Mapping[str, str]) -> Watched:
    """Run a command and look at its memory now and then.

    Args:
        command: The program and its words.
        folder: What it prints goes to ``watched.log`` there.
        environ: Its environment's variables.

    Raises:
        UserError: It failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log, peak, began = folder / "watched.log", 0, time.perf_counter()
    with log.open("w") as file:
        process = psutil.Popen(command, env=environ, stdout=file, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                peak = max(peak, memory_of_tree(process))
                time.sleep(EVERY)
        finally:
            if process.poll() is None:
                process.terminate()
    if process.returncode:
        *_, last = ["", *log.read_text().splitlines()]
        raise UserError(f"{' '.join(command)}: failed: {last}")
    return Watched(time.perf_counter() - began, peak)


def memory_of_tree(process: psutil.Process) -> int:
    """Bytes of a process and all that it started: of what several share, each has its part."""
    total = 0
    with contextlib.suppress(psutil.Error):
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                total += one.memory_full_info().pss
    return total
