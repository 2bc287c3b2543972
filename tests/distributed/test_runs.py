"""Whole runs of two processes: what one kind of launch wrote, each other kind goes on from."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.own_world import own_world

RECIPE = """
frame_size: 28
freeze_vision: true
num_envs: 2
num_workers: 1
rollout_steps: 8
total_timesteps: 64
batch_size: 8
micro_batch_size: 3
n_epochs: 2
learning_rate: 1e-3
critic_warmup_updates: 1
value_input: state
value_epochs: 1
num_eval_episodes: 3
save_freq: 32
"""

PPO = """
async_rollout: 1
kl_coef: 0.1
eval_freq: 32
"""

IMITATION = """
num_demo_episodes: 8
sft_epochs: 2
sft_batch_size: 4
dagger_rounds: 1
dagger_words: 32
dagger_epochs: 1
"""

FILES = ("model", "critic", "value_head", "optimizer")


def launch(config: str, module: str, recipe: Path, folder: Path, *words: str) -> None:
    run([*launcher(config), "-m", module], recipe, folder, *words)


def launcher(config: str) -> list[str]:
    port = ["--num_processes", "2", "--main_process_port", "0"]
    file = str(ROOT / "accelerate_configs" / f"{config}.yaml")
    return ["-m", "accelerate.commands.launch", *port, "--config_file", file]


def run(command: list[str], recipe: Path, folder: Path, *words: str) -> None:
    began = begin(command, recipe, folder, *words)
    said = said_at_the_end(began)
    assert began.returncode == 0, said[-6000:]


def said_at_the_end(began: subprocess.Popen) -> str:
    """What was written to stderr; of what does not end, too."""
    try:
        return began.communicate(timeout=300)[1]
    except subprocess.TimeoutExpired:
        began.terminate()
        return f"not ended:\n{began.communicate(timeout=60)[1]}"


def begin(command: list[str], recipe: Path, folder: Path, *words: str) -> subprocess.Popen:
    words = ("--config", str(recipe), "--output_dir", str(folder), *words)
    return begin_apart([sys.executable, *command], recipe, *words)


def begin_apart(command: list[str], recipe: Path, *words: str) -> subprocess.Popen:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environ = {**os.environ, "PYTHONPATH": f"{recipe.parent}:{ROOT}", "PATH": path}
    environ |= {"OMP_NUM_THREADS": "1", "PROCESSES_PER_NODE": "2"}
    environ.pop("WORLD_SIZE", None)
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, *words], env=environ, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    with own_world(folder) as world:
        (folder / "ppo.yaml").write_text(world.read_text() + RECIPE + PPO)
        (folder / "imitation.yaml").write_text(world.read_text() + RECIPE + IMITATION)
    return folder / "ppo.yaml"


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    """The folder of a run under DDP."""
    folder = recipe.parent / "ddp"
    launch("cpu_2proc", "vlm_agent.train", recipe, folder)
    return folder


def checkpoint(folder: Path, steps: int) -> dict:
    path = folder / "checkpoints" / f"corridor_step{steps}"
    return {name: load_file(path / f"{name}.safetensors") for name in FILES}


@pytest.mark.long
@pytest.mark.parametrize("config", ["fsdp2"])
def test_a_run_of_ddp_is_gone_on_with(config: str, recipe: Path, whole: Path):
    folder = whole.parent / config
    shutil.copytree(whole, folder)
    for path in (folder / "checkpoints").glob("*_step64"):
        shutil.rmtree(path)
    launch(config, "vlm_agent.train", recipe, folder, "--resume_from", "latest")
    assert distance(folder, whole) < 1e-5
    before, after = checkpoint(whole, 32)["model"], checkpoint(folder, 64)["model"]
    assert any((value != before[name]).any() for name, value in after.items())


def test_a_run_one_of_whose_processes_is_killed_is_that_of_one_that_is_left_alone(
    recipe: Path, whole: Path
):
    """By docs/clusters/elastic.sh, which begins it again from its last checkpoint.

    The other process has seen the first end and said so; that is of the first start alone.
    """
    folder = whole.parent / "elastic"
    script = ["bash", str(ROOT / "docs" / "clusters" / "elastic.sh")]
    agent = begin_apart([*script, str(recipe)], recipe, "--output_dir", str(folder))
    kill_after_the_first_checkpoint(agent, folder, only_one=True)
    said = said_at_the_end(agent)
    assert agent.returncode == 0, said[-6000:]
    assert distance(folder, whole) == 0


@pytest.mark.long
def test_a_run_with_divided_weights_that_was_killed_is_gone_on_with(recipe: Path, whole: Path):
    undisturbed, folder = whole.parent / "zero3", whole.parent / "zero3_killed"
    launch("zero3", "vlm_agent.train", recipe, undisturbed)
    assert distance(undisturbed, whole) < 1e-5
    killed = begin([*launcher("zero3"), "-m", "vlm_agent.train"], recipe, folder)
    kill_after_the_first_checkpoint(killed, folder)
    killed.communicate()
    launch("zero3", "vlm_agent.train", recipe, folder, "--resume_from", "latest")
    assert distance(folder, undisturbed) < 1e-6


def kill_after_the_first_checkpoint(
    launcher: subprocess.Popen, folder: Path, only_one: bool = False
) -> None:
    """All processes at once, as where a machine is lost, or one of the two."""
    first = folder / "checkpoints" / "corridor_step32"
    deadline = time.monotonic() + 300
    while not first.is_dir() and time.monotonic() < deadline and launcher.poll() is None:
        time.sleep(0.02)
    started = psutil.Process(launcher.pid)
    ranks = [p for p in started.children() if "vlm_agent.train" in p.cmdline()]
    everyone = [started, *started.children(recursive=True)]
    for process in ranks[-1:] if only_one else everyone:
        process.kill()
    assert first.is_dir()
    assert not first.with_name("corridor_step64").exists()


def distance(one: Path, other: Path) -> float:
    """The largest between what two runs ended with: weights, heads, and the optimiser's state."""
    ours, theirs = checkpoint(one, 64), checkpoint(other, 64)
    assert all(ours[file].keys() == theirs[file].keys() for file in FILES)
    pairs = [(ours[file][name], value) for file in FILES for name, value in theirs[file].items()]
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.long
def test_a_warm_start_with_divided_weights_is_that_of_ddp(recipe: Path):
    recipe = recipe.with_name("imitation.yaml")
    learnt = []
    for config in ("cpu_2proc", "zero3"):
        folder = recipe.parent / f"{config}_imitation"
        run(["-m", "vlm_agent.cli", "demos"], recipe, folder)
        launch(config, "vlm_agent.sft", recipe, folder)
        learnt.append(load_file(folder / "checkpoints" / "corridor_final" / "model.safetensors"))
    ddp, zero = learnt
    assert max(float((zero[name] - value).abs().max()) for name, value in ddp.items()) < 1e-5
