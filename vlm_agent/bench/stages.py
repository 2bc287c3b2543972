"""Stages of a study: commands that are run once each, one behind the other."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_agent.errors import UserError
from vlm_agent.strict_yaml import read_yaml

HOURS_FILE = "hours.json"
MADE_BY_FILE = "made_by.json"
"""Stage -> digest of the command and the recipe that made what is there."""


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: What it is for.
        command: Module and arguments, as behind ``python -m``.
        makes: A path that is there when it is done, and only then.
        needs: Paths that it reads; what it makes is younger.
        begin: Further arguments, for a stage that begins anew or goes on; they change no result.
    """

    name: str
    command: tuple[str, ...]
    makes: Path
    needs: tuple[Path, ...] = ()
    begin: tuple[str, ...] = ()


def run_stages(stages: Sequence[Stage], folder: Path) -> dict[str, float]:
    """Run what has not been done; what a stopped stage left is begun again or gone on with.

    Args:
        stages: In the order in which they need each other.
        folder: Where the hours that each took are kept.

    Returns:
        Hours per stage.

    Raises:
        UserError: A stage failed, or what is there is not what it would make.
    """
    path, hours = folder / HOURS_FILE, read_hours(folder)
    _check_current(stages, folder)
    for number, stage in enumerate(stages, 1):
        if stage.makes.exists():
            _check_current([stage], folder)
            print(f"[{number}/{len(stages)}] {stage.name}: is there", flush=True)
            continue
        print(f"[{number}/{len(stages)}] {stage.name}", flush=True)
        began = time.perf_counter()
        command = [sys.executable, "-m", *stage.command, *stage.begin]
        ended = subprocess.run(command, check=False)
        hours[stage.name] = hours.get(stage.name, 0.0) + (time.perf_counter() - began) / 3600
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(hours, indent=1) + "\n")
        if ended.returncode != 0 or not stage.makes.exists():
            raise UserError(f"{stage.name} failed (exit code {ended.returncode})")
        made_by = _read(folder / MADE_BY_FILE) | {stage.name: _digest(stage, folder)}
        (folder / MADE_BY_FILE).write_text(json.dumps(made_by, indent=1) + "\n")
    return hours


def read_hours(folder: Path) -> dict[str, float]:
    """The hours that each stage took so far."""
    return _read(folder / HOURS_FILE)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _digest(stage: Stage, folder: Path) -> str:
    """Of what a stage does, wherever the folder lies; comments in the recipe do not count."""
    command = [word.removeprefix(str(folder)) for word in stage.command]
    recipes = [Path(word) for word in stage.command if word.endswith(".yaml")]
    what = json.dumps([command, *(read_yaml(path) for path in recipes)], sort_keys=True)
    return hashlib.sha256(what.encode()).hexdigest()


def _check_current(stages: Sequence[Stage], folder: Path) -> None:
    """Refuse to take for a stage's work what another command or recipe has made.

    Raises:
        UserError: Naming every path that would have to be made again.
    """
    made_by, found = _read(folder / MADE_BY_FILE), []
    for stage in stages:
        if not stage.makes.exists():
            continue
        made = stage.makes.stat().st_mtime
        younger = [
            str(path) for path in stage.needs if path.exists() and path.stat().st_mtime > made
        ]
        if made_by.get(stage.name) != _digest(stage, folder):
            found.append(f"{stage.makes}: not made by the command and recipe of today")
        elif younger:
            found.append(f"{stage.makes}: older than {' and '.join(younger)}")
    if found:
        raise UserError("\n  ".join(["delete what is to be made again:", *found]))


def hardware() -> str:
    """What all of it ran on."""
    cores = len(os.sched_getaffinity(0))
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{cores} cores of {named[0] if named else platform.machine()}"
