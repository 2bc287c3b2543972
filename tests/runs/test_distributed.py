"""Two processes on the CPU, talking through gloo, with real robots."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from accelerate.commands.config.config_args import load_config_from_file

from tests.conftest import ROOT
from vlm_agent.common.errors import UserError
from vlm_agent.distributed.launch import check_launch
from vlm_agent.world.pool.placement import rendering_gpu

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]
CONFIGS = ROOT / "accelerate_configs"
TWO = ["--config_file", str(CONFIGS / "cpu_2proc.yaml"), "--main_process_port", "0"]


def launch(arguments: list[str], folder: Path) -> subprocess.CompletedProcess:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    environ.pop("WORLD_SIZE", None)
    return subprocess.run(
        [*LAUNCH, *arguments], cwd=folder, env=environ, capture_output=True, text=True, timeout=300
    )


FORMS = {
    "full": "",
    "lora": "use_peft: true\nscoring: phrase_mean\nkl_coef: 0.1\nrecompute_log_probs: true\n"
    "value_input: state\nvalue_epochs: 2\n",
}


@pytest.fixture(scope="module", params=[pytest.param("full", marks=pytest.mark.long), "lora"])
def reports(request, tmp_path_factory) -> tuple[dict, dict, Path]:
    folder = tmp_path_factory.mktemp("two_ranks")
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"task: Lift\nframe_size: 56\nhorizon: 5\nprompt_template: {ROOT}/prompts/minimal.jinja\n"
        "num_envs: 2\nrollout_steps: 8\ntotal_timesteps: 64\nbatch_size: 8\nn_epochs: 2\n"
        "learning_rate: 1e-3\nnum_eval_episodes: 3\nsave_freq: 64\neval_freq: 32\n"
        + FORMS[request.param]
    )
    script = str(ROOT / "tests" / "runs" / "two_ranks.py")
    result = launch([*TWO, script, str(folder), "--config", str(recipe)], folder)
    assert result.returncode == 0, result.stderr
    first, second = (json.loads((folder / f"rank{r}.json").read_text()) for r in (0, 1))
    return first, second, folder


@pytest.mark.long
def test_a_warm_start_ends_with_one_policy_in_both_ranks(tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"prompt_template: {ROOT}/prompts/minimal.jinja\nnum_envs: 2\nbatch_size: 8\n"
        "rollout_groups: 1\nsft_epochs: 2\nsft_batch_size: 8\ndagger_rounds: 1\n"
        "dagger_words: 16\ndagger_epochs: 1\nnum_eval_episodes: 3\nhorizon: 4\n"
    )
    script = str(ROOT / "tests" / "runs" / "two_ranks_imitate.py")
    result = launch([*TWO, script, str(tmp_path), "--config", str(recipe)], tmp_path)
    assert result.returncode == 0, result.stderr
    first, second = (json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1))
    assert first == second
    assert all(
        before != after for before, after in zip(first["before"], first["after"], strict=True)
    )
    # 20 demonstrations each are two batches, twice; with 8 words of DAgger three, once.
    assert first["words_learnt"] == 2 * 8 * (2 * 2 + 3)


@pytest.mark.long
def test_ranks_whose_episodes_differ_in_length_learn_from_every_word_alike(tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"prompt_template: {ROOT}/prompts/minimal.jinja\nadvantage: group\ngroup_size: 2\n"
        "num_envs: 4\ntotal_timesteps: 90\nbatch_size: 5\nn_epochs: 2\nlearning_rate: 1e-3\n"
        "entropy_coef: 0\nnum_eval_episodes: 0\nsave_freq: 1000\n"
    )
    script = str(ROOT / "tests" / "runs" / "two_ranks_groups.py")
    result = launch([*TWO, script, str(tmp_path), "--config", str(recipe)], tmp_path)
    assert result.returncode == 0, result.stderr
    first, second = (json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1))
    assert first["weights"] == second["weights"]
    assert first["timesteps"] == second["timesteps"] >= 90
    assert first["words"] != second["words"]
    assert max(first["error"], second["error"]) < 1e-4
    metrics = (tmp_path / "runs" / "vlm-agent" / "metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line)["first_ratio_error"] for line in metrics) < 1e-5


def test_parameters_stay_bit_identical_and_do_change(reports):
    first, second, _ = reports
    assert first["before"] == second["before"]
    assert first["after"] == second["after"]
    assert first["after"] != first["before"]


def test_each_rank_has_its_own_episodes_and_words(reports):
    first, second, _ = reports
    assert set(first["seeds"]).isdisjoint(second["seeds"])
    assert first["words"] != second["words"]
    assert first["timesteps"] == second["timesteps"] == 64


def test_advantages_are_normalised_over_all_ranks(reports):
    assert max(report["normal_error"] for report in reports[:2]) < 1e-6


def test_both_ranks_know_all_episodes_of_an_evaluation(reports):
    first, second, _ = reports
    assert first["evaluated"] == second["evaluated"]
    assert len({episode["seed"] for episode in first["evaluated"]}) == 3
    # Each plays its share: at once, in its two environments, with one reset and five words.
    assert (first["asked"], second["asked"]) == (6, 6)


def test_a_critics_own_passes_end_with_the_same_critic_in_both_ranks(reports):
    first, second, _ = reports
    assert first["critic"] == second["critic"]
    assert any(first["critic"])


def test_micro_batches_give_the_gradient_of_both_ranks_minibatches(reports):
    assert max(report["micro_error"] for report in reports[:2]) < 1e-6


def test_rank_0_alone_writes_and_counts_everyone(reports):
    folder = reports[2]
    metrics = [
        json.loads(line)
        for line in (folder / "runs" / "vlm-agent" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["timesteps"] for row in metrics] == [32, 64]
    assert max(row["first_ratio_error"] for row in metrics) < 1e-5
    state = json.loads((folder / "checkpoints/vlm-agent_step64/trainer_state.json").read_text())
    assert len(state["collectors"]) == 2
    assert [e["num_eval_episodes"] for e in state["evaluations"]] == [3, 3, 3]


def test_two_processes_that_silently_became_one_are_an_error(tmp_path):
    small = (
        "--total_timesteps 2 --rollout_steps 2 --num_envs 1 --batch_size 2 --num_eval_episodes 0"
    )
    arguments = ["--cpu", "--num_processes", "2", "-m", "vlm_agent.train", *small.split()]
    result = launch([*arguments, "--output_dir", str(tmp_path)], ROOT)
    assert result.returncode != 0
    assert "asked for several processes, but accelerate runs 1" in result.stderr
    assert "cpu_2proc.yaml" in result.stderr
    assert not (tmp_path / "runs").exists()


ALONE = ("cpu", "single_gpu")


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_launch_configurations_are_read_by_accelerate_and_say_their_command(name: str):
    path = ROOT / "accelerate_configs" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert (config.num_processes == 1) == (name in ALONE)
    assert f"--config_file accelerate_configs/{name}.yaml" in path.read_text()


@pytest.mark.parametrize(
    ("num_processes", "environ"),
    [
        (1, {"WORLD_SIZE": "2"}),
        (1, {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}),
    ],
)
def test_launch_guard_refuses(num_processes, environ):
    with pytest.raises(UserError, match="the launcher was asked for"):
        check_launch(num_processes, environ)


@pytest.mark.parametrize(
    ("num_processes", "environ"),
    [
        (1, {}),
        (1, {"ACCELERATE_MIXED_PRECISION": "no"}),
        (2, {"WORLD_SIZE": "2", "MASTER_PORT": "29500", "ACCELERATE_MIXED_PRECISION": "no"}),
        (1, {"MASTER_PORT": "29500"}),
    ],
)
def test_launch_guard_lets_honest_launches_pass(num_processes, environ):
    check_launch(num_processes, environ)


@pytest.mark.parametrize(
    ("environ", "gpus", "index"),
    [
        ({}, 0, None),
        ({"LOCAL_RANK": "1"}, 0, None),
        ({}, 1, 0),
        ({"LOCAL_RANK": "1"}, 2, 1),
        ({"LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "4,6"}, 2, 6),
        ({"LOCAL_RANK": "3"}, 2, 1),  # more processes than GPUs
        ({"LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "GPU-5ad,GPU-77b"}, 2, None),
    ],
)
def test_each_process_draws_on_its_own_gpu(environ: dict, gpus: int, index: int | None):
    assert rendering_gpu(environ, gpus) == index


def test_the_trainer_ends_with_its_launcher(tmp_path):
    """Also where the launcher could not tell it: killed by SIGKILL."""
    command = [*LAUNCH, "--config_file", str(ROOT / "accelerate_configs" / "cpu.yaml")]
    recipe = ["--config", str(ROOT / "recipes" / "quick.yaml"), "--output_dir", str(tmp_path)]
    launcher = subprocess.Popen(
        [*command, "-m", "vlm_agent.train", *recipe, "--task", "Lift", "--report_to", "none"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    started = psutil.Process(launcher.pid)
    deadline = time.monotonic() + 120
    while len(started.children(recursive=True)) < 3 and time.monotonic() < deadline:
        time.sleep(0.2)  # the trainer and two workers
    children = started.children(recursive=True)
    assert len(children) >= 3
    launcher.kill()
    launcher.wait()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
