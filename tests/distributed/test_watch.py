"""Where one process of a run fails, all end, soon, and the cause is shown once."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from tests.own_world import own_world

RECIPE = """
frame_size: 28
num_envs: 2
num_workers: 1
rollout_steps: 4
total_timesteps: 400
batch_size: 8
n_epochs: 1
num_eval_episodes: 0
save_freq: 1000
report_to: []
"""


@pytest.mark.parametrize(
    ("how", "rank", "cause"),
    [
        ("dies", 0, "rank 0 of 2"),  # at whose place they met
        pytest.param("freezes", 1, "has said nothing for 4 s", marks=pytest.mark.long),
        ("hangs", 1, "failing_rank.py"),
        pytest.param("raises", 1, "this process has had enough", marks=pytest.mark.long),
    ],
)
def test_all_processes_end_with_one(how: str, rank: int, cause: str, tmp_path: Path):
    """Without a launcher that would end them: on two machines, each has its own."""
    with own_world(tmp_path) as world:
        (tmp_path / "recipe.yaml").write_text(world.read_text() + RECIPE)
    marker, port = tmp_path / "failed", free_port()
    patience = "6" if how == "hangs" else "300"
    ranks = [start(tmp_path, number, port, patience, how, str(rank)) for number in (0, 1)]
    try:
        wait_for(lambda: marker.exists() or any(run.poll() is not None for run in ranks), 120)
        assert marker.exists(), said_by_all(tmp_path)
        failed = ranks[rank]
        survivor = ranks[1 - rank]
        children = psutil.Process(survivor.pid).children(recursive=True)
        if how != "dies":
            children += psutil.Process(failed.pid).children(recursive=True)
        assert survivor.wait(30) not in (0, None)
        if how == "freezes":
            failed.send_signal(signal.SIGKILL)
        assert failed.wait(30) not in (0, None)
        _, alive = psutil.wait_procs(children, timeout=5)
        assert not alive
        said = said_by_all(tmp_path)
        assert said.count("vlm-agent: ") == 1, said
        assert cause in said, said
        assert "Traceback" not in said, said
        assert said.count("scoring: phrase_word") == 1  # what all would say, one says
    finally:
        for run in ranks:
            run.kill()


def start(folder: Path, rank: int, port: int, patience: str, *words: str) -> subprocess.Popen:
    script = str(ROOT / "tests" / "distributed" / "failing_rank.py")
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    environ = {
        **os.environ, **meeting, "RANK": str(rank), "LOCAL_RANK": "0",
        "PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    recipe = str(folder / "recipe.yaml")
    command = [sys.executable, script, *words, str(folder), "--config", recipe]
    command += ["--rank_timeout", patience]
    with (folder / f"said{rank}").open("w") as said:
        return subprocess.Popen(command, env=environ, cwd=folder, stdout=said, stderr=said)


def said_by_all(folder: Path) -> str:
    return "".join((folder / f"said{rank}").read_text() for rank in (0, 1))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for(is_so, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.1)
