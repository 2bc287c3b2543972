"""Stages of a study: commands that are run once each, one behind the other."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vlm_agent.errors import UserError

HOURS_FILE = "hours.json"


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: What it is for.
        command: Module and arguments, as behind ``python -m``.
        makes: A path that is there when it is done, and only then.
    """

    name: str
    command: tuple[str, ...]
    makes: Path


def run_stages(stages: Sequence[Stage], folder: Path) -> dict[str, float]:
    """Run what has not been done; what a stopped stage left is begun again or gone on with.

    Args:
        stages: In the order in which they need each other.
        folder: Where the hours that each took are kept.

    Returns:
        Hours per stage.

    Raises:
        UserError: A stage failed.
    """
    path, hours = folder / HOURS_FILE, read_hours(folder)
    for number, stage in enumerate(stages, 1):
        if stage.makes.exists():
            print(f"[{number}/{len(stages)}] {stage.name}: is there", flush=True)
            continue
        print(f"[{number}/{len(stages)}] {stage.name}", flush=True)
        began = time.perf_counter()
        ended = subprocess.run([sys.executable, "-m", *stage.command], check=False)
        hours[stage.name] = hours.get(stage.name, 0.0) + (time.perf_counter() - began) / 3600
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(hours, indent=1) + "\n")
        if ended.returncode != 0 or not stage.makes.exists():
            raise UserError(f"{stage.name} failed (exit code {ended.returncode})")
    return hours


def read_hours(folder: Path) -> dict[str, float]:
    """The hours that each stage took so far."""
    path = folder / HOURS_FILE
    return json.loads(path.read_text()) if path.is_file() else {}


def hardware() -> str:
    """What all of it ran on."""
    cores = len(os.sched_getaffinity(0))
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{cores} cores of {named[0] if named else platform.machine()}"
