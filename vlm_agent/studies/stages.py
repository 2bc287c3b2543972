"""Stages of a study: commands that are run once each, one behind the other."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlm_agent.common.errors import UserError, unknown_name
from vlm_agent.common.lifetime import end_with_parent
from vlm_agent.common.locks import locked
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
        saved: Paths in the study's folder, as a pattern, without any of which it begins anew.
        launcher: Module and arguments that start the command, if not Python itself; with others
            it makes the same.
    """

    name: str
    command: tuple[str, ...]
    makes: Path
    needs: tuple[str, ...] = ()
    settings: frozenset[str] | None = None
    folder: Path | None = None
    anew: tuple[str, ...] = ()
    go_on: tuple[str, ...] = ()
    saved: str = ""
    launcher: tuple[str, ...] = ()

    def further(self, folder: Path, is_begun: bool) -> tuple[str, ...]:
        """What is added to its command now."""
        found = folder.glob(self.saved) if self.saved else ()
        is_saved = not self.saved or any(path.suffix != PARTIAL for path in found)
        return self.go_on if is_begun and is_saved else self.anew


def resumable(stage: Stage, run: str) -> Stage:
    """A training stage that goes on from the run's last checkpoint, where it was stopped."""
    return replace(
        stage,
        anew=("--overwrite", "true"),
        go_on=("--resume_from", "latest"),
        saved=f"checkpoints/{run}_step*",
    )


def run_stages(stages: Sequence[Stage], folder: Path, only: Sequence[str] = ()) -> dict[str, float]:
    """Run what has not been done; what a stopped stage left is begun again or gone on with.

    Args:
        stages: In the order in which they need each other.
        folder: Where the hours that each took are kept, and what made what.
        only: Names of the stages to run; other commands may run others meanwhile.

    Returns:
        Hours per stage.

    Raises:
        UserError: A stage failed, what is there is not what it would make, there is none of a
            name, what one needs is not there, or another command is running one.
    """
    by_name = {stage.name: stage for stage in stages}
    if unknown := [name for name in only if name not in by_name]:
        raise UserError(unknown_name("stage", unknown[0], by_name))
    digests = stage_digests(stages, folder)
    _check_current(stages, digests, _read(folder / RECORDS_FILE))
    for number, stage in enumerate(stages, 1):
        if only and stage.name not in only:
            continue
        if stage.makes.exists():
            print(f"[{number}/{len(stages)}] {stage.name}: is there", flush=True)
            continue
        if missing := [name for name in stage.needs if not by_name[name].makes.exists()]:
            raise UserError(f"{stage.name} needs {missing[0]!r}, which has not been run")
        print(f"[{number}/{len(stages)}] {stage.name}", flush=True)
        taken = f"{stage.name} is being run by another command"
        with locked(folder / "locks" / digests[stage.name][:16], taken):
            _run(stage, digests[stage.name], folder)
    return read_hours(folder)


def _run(stage: Stage, digest: str, folder: Path) -> None:
    """Begin one, or go on with it; keep how long it took.

    Raises:
        UserError: It failed.
    """
    begun = {"digest": digest, "done": False}
    is_begun = _read(folder / RECORDS_FILE).get(stage.name) == begun
    _note(folder / RECORDS_FILE, stage.name, begun)
    began = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        *stage.launcher,
        *stage.command,
        *stage.further(folder, is_begun),
    ]
    # Or, were this process killed, a second one would run the stage beside what is left of it.
    end_too = functools.partial(end_with_parent, signal.SIGTERM, os.getpid())
    ended = subprocess.run(command, check=False, preexec_fn=end_too)
    hours = read_hours(folder).get(stage.name, 0.0) + (time.perf_counter() - began) / 3600
    _note(folder / HOURS_FILE, stage.name, hours)
    if ended.returncode != 0 or not stage.makes.exists():
        raise UserError(f"{stage.name} failed (exit code {ended.returncode})")
    _note(folder / RECORDS_FILE, stage.name, begun | {"done": True})


def is_recorded(folder: Path, name: str) -> bool:
    """Whether a stage of that name was run, or begun, in this folder."""
    return name in _read(folder / RECORDS_FILE)


def begun_otherwise(stages: Sequence[Stage], folder: Path) -> list[Stage]:
    """Those that have saved something, but not as these stages would."""
    digests, records = stage_digests(stages, folder), _read(folder / RECORDS_FILE)
    return [
        stage
        for stage in stages
        if stage.saved
        and any(folder.glob(stage.saved))
        and records.get(stage.name, {}).get("digest") != digests[stage.name]
    ]


def read_hours(folder: Path) -> dict[str, float]:
    """The hours that each stage took so far."""
    return _read(folder / HOURS_FILE)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _note(path: Path, name: str, value: Any) -> None:
    """Keep one value; those that other processes have written meanwhile stay."""
    with locked(path.parent / "locks" / path.name):
        mine = path.with_suffix(PARTIAL)
        mine.write_text(json.dumps(_read(path) | {name: value}, indent=1) + "\n")
        mine.replace(path)


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
