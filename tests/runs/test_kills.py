"""Runs that are killed, and begun again by ``resume_from: auto``, end as one that was left alone.

A save of one command is tried here; ``--long`` tries twenty instants of each, see ``make faults``.
"""

import functools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.conftest import ROOT
from tests.own_world import own_world
from tests.short_runs import without_times
from vlm_agent.common.whole import MANIFEST, check_whole

RECIPE = """
frame_size: 28
num_envs: 2
num_workers: 1
rollout_steps: 8
batch_size: 8
learning_rate: 1e-3
num_eval_episodes: 3
save_freq: 16
"""
RECIPES = {
    "train": "total_timesteps: 160\neval_freq: 48\nn_epochs: 2\nasync_rollout: 1\n",
    "sft": "num_demo_episodes: 6\nsft_epochs: 2\nsft_batch_size: 4\n"
    "dagger_rounds: 1\ndagger_words: 32\ndagger_epochs: 1\n",
}
INSTANTS = {"between": 14, "in a save": 6}
"""How many of each kind: at a random word or minibatch, and while a checkpoint is written."""


def instants() -> list:
    """Command, kind and number."""
    numbers = [(kind, number) for kind, count in INSTANTS.items() for number in range(count)]
    quick = "train", "in a save", 0
    return [
        pytest.param(command, *one, marks=[pytest.mark.long] * ((command, *one) != quick))
        for command in RECIPES
        for one in numbers
    ]


class Command:
    """One of the two commands, and what it comes to when it is left alone."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        folder.mkdir()
        with own_world(folder) as world:
            (folder / "recipe.yaml").write_text(world.read_text() + RECIPE + RECIPES[name])
        if name == "sft":
            self.run("vlm_agent.cli", "demos")
        self.run(f"vlm_agent.{name}")
        self.left = what_is_left(folder)
        self.words = recorded(folder)

    def begin(self, folder: Path, *words: str) -> subprocess.Popen:
        environ = {**os.environ, "PYTHONPATH": f"{self.folder}:{ROOT}", "OMP_NUM_THREADS": "1"}
        recipe = ["--config", str(self.folder / "recipe.yaml")]
        if self.name == "sft":
            recipe += ["--demonstrations", str(self.folder / "demonstrations" / "corridor")]
        with (folder / "said").open("a") as said:
            command = [sys.executable, "-m", *words, *recipe]
            return subprocess.Popen(command, cwd=folder, env=environ, stdout=said, stderr=said)

    def run(self, *words: str) -> None:
        assert self.begin(self.folder, *words).wait(300) == 0, (self.folder / "said").read_text()


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    return functools.cache(lambda name: Command(name, tmp_path_factory.mktemp("runs") / name))


def what_is_left(folder: Path) -> dict[str, object]:
    """The hashes of all tensors in a run's checkpoints, what else they hold, and its metrics."""
    left: dict[str, object] = {}
    for path in (folder / "checkpoints").glob("corridor_*"):
        check_whole(path)
        files = json.loads((path / MANIFEST).read_text())["files"]
        for name in files:
            if name.endswith(".safetensors"):
                left[f"{path.name}/{name}"] = files[name]["sha256"]
        state = json.loads((path / "trainer_state.json").read_text())
        left |= {f"{path.name}, {k}": value for k, value in state.items() if k != "seconds"}
    lines = (folder / "runs" / "corridor" / "metrics.jsonl").read_text().splitlines()
    return left | {"metrics": without_times([json.loads(line) for line in lines])}


def recorded(folder: Path) -> int:
    """The timesteps of the last whole line of the metrics; 0 without any."""
    metrics = folder / "runs" / "corridor" / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    whole = [line for line in lines[-2:] if line.endswith("}")]
    return json.loads(whole[-1])["timesteps"] if whole else 0


def words_of(path: Path) -> int:
    return int(re.sub(r"\D", "", path.name) or 0)


def kill(run: subprocess.Popen) -> None:
    """As a machine that is lost: with all that it has started."""
    started = psutil.Process(run.pid).children(recursive=True)
    for process in (run, *started):
        process.kill()
    run.wait()
    psutil.wait_procs(started, timeout=10)


@pytest.mark.parametrize(("name", "kind", "number"), instants())
def test_a_run_that_is_killed_ends_as_it_would_have(
    command, tmp_path: Path, name: str, kind: str, number: int, record_property
):
    whole, checkpoints = command(name), tmp_path / "checkpoints"
    rng = np.random.default_rng([number, kind == "in a save"])
    share = 0.8 * rng.random()

    def is_time() -> bool:
        is_saving = bool(list(checkpoints.glob(".*.partial")))
        return recorded(tmp_path) > share * whole.words and (kind == "between" or is_saving)

    def newest() -> Path:
        found = [path for path in checkpoints.glob("corridor_step*") if "." not in path.name]
        return max(found, key=words_of, default=Path("0"))

    run = whole.begin(tmp_path, f"vlm_agent.{name}")
    while run.poll() is None and not is_time():
        time.sleep(0.0005)
    if kind == "between":
        time.sleep(0.1 * rng.random())
    assert run.poll() is None, (tmp_path / "said").read_text()
    kill(run)
    is_inside = bool(list(checkpoints.glob(".*.partial")))
    record_property("inside a save" if is_inside else "between saves", 1)
    assert (
        recorded(tmp_path) - words_of(newest()) <= 16 + 16
    )  # an interval, and the words that end it
    again = whole.begin(tmp_path, f"vlm_agent.{name}", "--resume_from", "auto")
    assert again.wait(300) == 0, (tmp_path / "said").read_text()
    left = what_is_left(tmp_path)
    assert left.keys() == whole.left.keys()
    assert not [key for key, value in whole.left.items() if left[key] != value]
    assert not list(tmp_path.rglob(".*.partial"))
