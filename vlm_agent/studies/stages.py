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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlm_agent.common.errors import UserError
from vlm_agent.common.strict_yaml import read_yaml
from vlm_agent.runs.folders import PARTIAL

HOURS_FILE = "hours.json"
RECORDS_FILE = "stages.json"
"""Stage -> digest of what began to make its product, and whether it came to its end."""


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: What it is for.
        command: Module and arguments, as behind ``python -m``.
        makes: A path that is there when it is done, and only then.
        needs: Names of the stages whose products it reads.
        settings: Those of its recipe that matter to it; ``None`` for all.
        folder: What to delete to have it made again, if that is not ``makes``.
        anew: Further arguments where it is begun.
        go_on: Further arguments where it was stopped on its way.
    """

    name: str
    command: tuple[str, ...]
    makes: Path
    needs: tuple[str, ...] = ()
    settings: frozenset[str] | None = None
    folder: Path | None = None
    anew: tuple[str, ...] = ()
    go_on: tuple[str, ...] = ()


def resumable(stage: Stage, folder: Path, run: str) -> Stage:
    """A training stage that goes on from the run's last checkpoint, where it was stopped."""
    steps = (folder / "checkpoints").glob(f"{run}_step*")
    is_saved = any(path.suffix != PARTIAL for path in steps)
    anew = ("--overwrite", "true")
    return replace(stage, anew=anew, go_on=("--resume_from", "latest") if is_saved else anew)


def run_stages(stages: Sequence[Stage], folder: Path) -> dict[str, float]:
    """Run what has not been done; what a stopped stage left is begun again or gone on with.

    Args:
        stages: In the order in which they need each other.
        folder: Where the hours that each took are kept, and what made what.

    Returns:
        Hours per stage.

    Raises:
        UserError: A stage failed, or what is there is not what it would make.
    """
    hours, records = read_hours(folder), _read(folder / RECORDS_FILE)
    digests = stage_digests(stages, folder)
    _check_current(stages, digests, records)
    for number, stage in enumerate(stages, 1):
        if stage.makes.exists():
            print(f"[{number}/{len(stages)}] {stage.name}: is there", flush=True)
            continue
        print(f"[{number}/{len(stages)}] {stage.name}", flush=True)
        begun = {"digest": digests[stage.name], "done": False}
        further = stage.go_on if records.get(stage.name) == begun else stage.anew
        records[stage.name] = begun
        _write(folder / RECORDS_FILE, records)
        began = time.perf_counter()
        command = [sys.executable, "-m", *stage.command, *further]
        ended = subprocess.run(command, check=False)
        hours[stage.name] = hours.get(stage.name, 0.0) + (time.perf_counter() - began) / 3600
        _write(folder / HOURS_FILE, hours)
        if ended.returncode != 0 or not stage.makes.exists():
            raise UserError(f"{stage.name} failed (exit code {ended.returncode})")
        records[stage.name] = begun | {"done": True}
        _write(folder / RECORDS_FILE, records)
    return hours


def read_hours(folder: Path) -> dict[str, float]:
    """The hours that each stage took so far."""
    return _read(folder / HOURS_FILE)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _write(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n")


def stage_digests(stages: Sequence[Stage], folder: Path) -> dict[str, str]:
    """Of what each stage does, and those before it that it needs, wherever the folder lies."""
    digests: dict[str, str] = {}
    for stage in stages:
        command = [word.removeprefix(str(folder)) for word in stage.command]
        recipes = [read_yaml(Path(word)) for word in stage.command if word.endswith(".yaml")]
        if stage.settings is not None:
            recipes = [{k: v for k, v in one.items() if k in stage.settings} for one in recipes]
        what = [command, recipes, [digests[name] for name in stage.needs]]
        digests[stage.name] = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    return digests


def _check_current(
    stages: Sequence[Stage], digests: dict[str, str], records: dict[str, dict[str, Any]]
) -> None:
    """Refuse to take for a stage's work what another command or recipe has made.

    Raises:
        UserError: Naming every path that would have to be made again.
    """
    found = []
    for stage in (stage for stage in stages if stage.makes.exists()):
        if stage.name not in records:
            found.append(f"{stage.folder or stage.makes}: nothing says what made it")
        elif records[stage.name]["digest"] != digests[stage.name]:
            found.append(
                f"{stage.folder or stage.makes}: its recipe, or one before it, was another"
            )
    if found:
        raise UserError("\n  ".join(["delete what is to be made again:", *found]))


def hardware() -> str:
    """What all of it ran on."""
    cores = len(os.sched_getaffinity(0))
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{cores} cores of {named[0] if named else platform.machine()}"
