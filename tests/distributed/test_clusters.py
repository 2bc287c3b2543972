"""The scripts for clusters start what they say, with stand-ins for the clusters' own commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser

from tests.conftest import ROOT
from tests.own_world import own_world
from vlm_agent.common.errors import UserError
from vlm_agent.distributed.launch import start_accelerator

CLUSTERS = ROOT / "docs" / "clusters"

RECIPE = """
frame_size: 28
freeze_vision: true
num_envs: 2
num_workers: 1
rollout_steps: 4
total_timesteps: 16
batch_size: 8
n_epochs: 1
num_eval_episodes: 0
report_to: []
"""

# Runs what it is given on two "nodes", as srun does on those of a job.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
SLURM_NODEID=0 "$@" & first=$!
SLURM_NODEID=1 "$@" || failed=1
wait $first || failed=1
exit ${failed:-0}
"""

SCONTROL = """#!/bin/bash
[[ $* == "show hostnames here,there" ]] && echo 127.0.0.1 && echo 127.0.0.2
"""

# Tells its arguments.
LAUNCHER = """#!/bin/bash
printf '%s\\n' "$@" > "$TOLD"
"""


def commands(folder: Path, **scripts: str) -> dict[str, str]:
    """An environment in which commands are these scripts."""
    for name, script in scripts.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path, "PYTHONPATH": f"{folder}:{ROOT}"}
    environ.pop("WORLD_SIZE", None)
    return {**environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.long
def test_a_slurm_job_of_two_nodes_is_one_run(tmp_path: Path):
    with own_world(tmp_path) as world:
        (tmp_path / "recipe.yaml").write_text(world.read_text() + RECIPE)
    environ = commands(tmp_path, srun=SRUN, scontrol=SCONTROL) | {
        "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "here,there",
        "SLURM_JOB_ID": str(os.getpid()),
        "PROCESSES_PER_NODE": "1",
        "CONFIG": str(ROOT / "accelerate_configs" / "cpu_2proc.yaml"),
    }
    script = [str(CLUSTERS / "slurm.sh"), "recipe.yaml", "--entropy_coef", "0.02"]
    run = subprocess.run(
        ["bash", *script], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-4000:]
    summary = json.loads((tmp_path / "runs" / "corridor" / "summary.json").read_text())
    assert (summary["num_processes"], summary["timesteps"]) == (2, 16)
    recipe = yaml.safe_load((tmp_path / "runs" / "corridor" / "recipe.yaml").read_text())
    assert recipe["entropy_coef"] == 0.02


@pytest.mark.parametrize("rank", [0, 1])
def test_a_task_of_skypilot_starts_its_part_of_the_run(rank: int, tmp_path: Path):
    task = yaml.safe_load((CLUSTERS / "skypilot.yaml").read_text())
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    environ = commands(tmp_path, accelerate=LAUNCHER) | task["envs"] | {
        "TOLD": str(tmp_path / "told"),
        "SKYPILOT_NUM_NODES": str(task["num_nodes"]),
        "SKYPILOT_NODE_RANK": str(rank),
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_GPUS_PER_NODE": task["resources"]["accelerators"].split(":")[1],
    }  # fmt: skip
    subprocess.run(["bash", "-euc", task["run"]], cwd=tmp_path, env=environ, check=True)
    command, *words = (tmp_path / "told").read_text().splitlines()
    assert command == "launch"
    told = launch_command_parser().parse_args(words)
    assert (told.num_machines, told.machine_rank, told.num_processes) == (2, rank, 16)
    assert (told.main_process_ip, told.module) == ("10.0.0.1", True)
    assert told.training_script == "vlm_agent.train"
    assert told.training_script_args[-2:] == ["--resume_from", "auto"]
    # What has to outlive the machines is written to the bucket.
    output = told.training_script_args[told.training_script_args.index("--output_dir") + 1]
    assert output in task["file_mounts"]


def test_restarts_that_would_wait_for_those_of_before_are_refused(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(UserError, match="export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        start_accelerator([], "")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert start_accelerator([], "").num_processes == 1
