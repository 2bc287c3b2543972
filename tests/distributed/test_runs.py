"""Whole runs of two processes: what one kind of launch wrote, each other kind goes on from."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

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
    launcher = ["-m", "accelerate.commands.launch", "--num_processes", "2"]
    launcher += ["--main_process_port", "0"]
    launcher += ["--config_file", str(ROOT / "accelerate_configs" / f"{config}.yaml")]
    run([*launcher, "-m", module], recipe, folder, *words)


def run(command: list[str], recipe: Path, folder: Path, *words: str) -> None:
    python_path = f"{recipe.parent}:{ROOT}"
    environ = {**os.environ, "PYTHONPATH": python_path, "OMP_NUM_THREADS": "1"}
    environ.pop("WORLD_SIZE", None)
    words = ("--config", str(recipe), "--output_dir", str(folder), *words)
    command = [sys.executable, *command, *words]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-6000:]


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


@pytest.mark.parametrize("config", ["zero2", "zero3", "fsdp2"])
def test_a_run_of_ddp_is_gone_on_with(config: str, recipe: Path, whole: Path):
    folder = whole.parent / config
    shutil.copytree(whole, folder)
    for path in (folder / "checkpoints").glob("*_step64"):
        shutil.rmtree(path)
    launch(config, "vlm_agent.train", recipe, folder, "--resume_from", "latest")
    ours, theirs = checkpoint(folder, 64), checkpoint(whole, 64)
    for file in FILES:
        assert ours[file].keys() == theirs[file].keys()
        for name, value in theirs[file].items():
            assert (ours[file][name] - value).abs().max() < 1e-5, (file, name)
    before = checkpoint(whole, 32)["model"]
    assert any((value != before[name]).any() for name, value in ours["model"].items())


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
