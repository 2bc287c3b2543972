"""A run that is asked to end writes a checkpoint, and from there comes to the same end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.conftest import ROOT
from tests.own_world import own_world
from tests.short_runs import metrics_of, trainer_for, without_times
from tests.worlds import ColourPool
from vlm_agent import Callback, PPOTrainer, VLMPolicy
from vlm_agent.common.errors import Stopped
from vlm_agent.distributed.stopping import Stopping, exit_code
from vlm_agent.runs.folders import RunFolders, settled

SETTINGS = {
    "num_envs": 4,
    "rollout_steps": 8,
    "total_timesteps": 128,
    "batch_size": 16,
    "n_epochs": 2,
    "learning_rate": 1e-3,
    "num_eval_episodes": 6,
    "eval_freq": 64,
    "save_freq": 10**6,
    "use_peft": True,
}


class Asks(Callback):
    """Asks a run to end at the n-th of all its words, minibatches and evaluated episodes."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.where = ""

    def on_train_begin(self, trainer: PPOTrainer) -> None:
        stopping, check, then = trainer.run.stopping, trainer.run.stopping.check, Stopping.then

        def count(where: str) -> None:
            self.left -= 1
            if self.left == 0:
                self.where = where
                stopping.ask("SIGTERM")

        def checked() -> None:
            count("word or minibatch")
            check()

        def counted(also):
            def both() -> None:
                count("evaluated episode")
                then(stopping, also)()

            return both

        stopping.check, stopping.then = checked, counted


def weights_of(trainer: PPOTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.actor_critic.named_parameters()}


@pytest.mark.parametrize("ahead", [pytest.param(0, marks=pytest.mark.long), 1])
def test_wherever_it_is_left_it_ends_where_it_would_have(recipe_for, tmp_path, ahead: int):
    settings = {**SETTINGS, "async_rollout": ahead}
    whole = recipe_for(output_dir=str(tmp_path / "whole"), **settings)
    straight = trainer_for(whole)
    straight.train()
    asked = 0
    for number in (3, 14, 40, 63):
        folder = str(tmp_path / str(number))
        asks = Asks(number)
        recipe = recipe_for(output_dir=folder, **settings)
        try:
            trainer_for(recipe, None, asks).train()
            continue  # asked too late
        except Stopped as stopped:
            reason, left = stopped.reason, stopped.folder
        asked += 1
        again = settled(recipe_for(output_dir=folder, resume_from="auto", **settings))
        kept = RunFolders(again).resume_folder(again)
        assert reason == "SIGTERM" and kept == left is not None
        trainer = trainer_for(again, VLMPolicy.from_pretrained(kept))
        trainer.resume(kept)
        trainer.train()
        mine, theirs = weights_of(trainer), weights_of(straight)
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs), (number, asks.where)
        assert without_times(metrics_of(again)) == without_times(metrics_of(whole)), number
        rates = [[e | {"policy": ""} for e in t.evaluations] for t in (trainer, straight)]
        assert rates[0] == rates[1], number
    assert asked >= 3


def test_a_limit_of_hours_is_a_reason_to_end(recipe_for, tmp_path):
    recipe = recipe_for(**SETTINGS, max_hours=1e-9)
    with pytest.raises(Stopped) as stopped:
        trainer_for(recipe, pool=ColourPool(4)).train()
    assert stopped.value.reason == "max_hours"
    assert exit_code("max_hours") == 75
    assert (exit_code("SIGTERM"), exit_code("SIGINT")) == (143, 130)


@pytest.mark.parametrize("asked_before", [False, True])
def test_a_second_signal_ends_at_once(asked_before: bool):
    """The same one, and not the first after another reason to end."""
    ask = "stopping.ask('max_hours'); " if asked_before else ""
    script = (
        "import time; from vlm_agent.distributed.stopping import Stopping\n"
        "with Stopping() as stopping:\n"
        f"    {ask}print('listening', flush=True); time.sleep(60)"
    )
    run = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert run.stdout.readline() == b"listening\n"
        for _ in range(2):  # a launcher passes on what it has heard: this is one event
            run.send_signal(signal.SIGTERM)
        time.sleep(1.5)
        run.send_signal(signal.SIGINT)  # a launcher that ends sends another
        time.sleep(0.2)
        assert run.poll() is None
        run.send_signal(signal.SIGTERM)
        assert run.wait(5) == 143
    finally:
        run.kill()


RECIPE = """
frame_size: 28
num_envs: 2
num_workers: 1
rollout_steps: 16
total_timesteps: 100000
batch_size: 8
n_epochs: 2
num_eval_episodes: 4
save_freq: 100000
"""


def start(folder: Path, *words: str) -> subprocess.Popen:
    environ = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words, "--config", str(folder / "recipe.yaml")]
    with (folder / "said").open("w") as said:
        return subprocess.Popen(command, env=environ, cwd=folder, stdout=said, stderr=said)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with own_world(tmp_path) as world:
        (tmp_path / "recipe.yaml").write_text(world.read_text() + RECIPE)
    return tmp_path


def wait_for_words(folder: Path) -> None:
    metrics, deadline = folder / "runs" / "corridor" / "metrics.jsonl", time.monotonic() + 180
    while not metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert metrics.exists(), (folder / "said").read_text()


LONG = pytest.mark.long


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=LONG)])
def test_a_signal_to_a_command(folder: Path, number: signal.Signals):
    run = start(folder, "-m", "vlm_agent.train")
    try:
        wait_for_words(folder)
        children = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(number)
        assert run.wait(30) == 128 + number
        assert not psutil.wait_procs(children, timeout=5)[1]
        said = (folder / "said").read_text()
        assert f"stopped by {number.name} at checkpoints/corridor_step" in said
        assert "--resume_from auto" in said and "Traceback" not in said
        assert list((folder / "checkpoints").glob("corridor_step*"))
    finally:
        run.kill()


def test_a_signal_to_the_launcher_or_one_process_of_two_ends_all(folder: Path):
    config = str(ROOT / "accelerate_configs" / "cpu_2proc.yaml")
    launch = ["-m", "accelerate.commands.launch", "--main_process_port", "0"]
    run = start(folder, *launch, "--config_file", config, "-m", "vlm_agent.train")
    try:
        wait_for_words(folder)
        started = psutil.Process(run.pid).children(recursive=True)
        ranks = [p for p in psutil.Process(run.pid).children() if "vlm_agent.train" in p.cmdline()]
        assert len(ranks) == 2
        ranks[1].send_signal(signal.SIGTERM)
        assert run.wait(40) != 0
        assert not psutil.wait_procs(started, timeout=5)[1]
        assert list((folder / "checkpoints").glob("corridor_step*"))
        assert (folder / "said").read_text().count("stopped by SIGTERM") == 1
    finally:
        run.kill()
