"""The commands as a user types them, on a real robot, from training to evaluation."""

import json
import re
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest
from PIL import Image

import vlm_agent.train
from tests.conftest import ROOT
from vlm_agent.cli import main as cli
from vlm_agent.cli.machine import doctor
from vlm_agent.common.errors import UserError
from vlm_agent.policy.building import build_policy
from vlm_agent.policy.config import ModelConfig
from vlm_agent.world.render import doctor as rendering
from vlm_agent.world.render.doctor import Finding

RUN = [
    "--config", str(ROOT / "recipes" / "quick.yaml"),
    "--task", "Lift", "--frame_size", "56", "--horizon", "12",
    "--num_envs", "2", "--rollout_steps", "16", "--total_timesteps", "64", "--batch_size", "16",
    "--num_eval_episodes", "2", "--eval_freq", "64", "--save_freq", "32",
    "--report_to", "tensorboard", "--seed", "3",
]  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert vlm_agent.train.main([*RUN, "--output_dir", str(folder)]) == 0
    return folder


def test_a_run_leaves_all_it_promises(run_folder: Path):
    run, checkpoints = run_folder / "runs" / "quick", run_folder / "checkpoints"
    for name in (
        "recipe.yaml",
        "metrics.jsonl",
        "summary.json",
        "curves.png",
        "before.json",
        "after.json",
        "before.mp4",
        "after.mp4",
    ):
        assert (run / name).stat().st_size > 0
    assert list(run.rglob("events.out.tfevents*"))
    assert sorted(p.name for p in checkpoints.iterdir()) == [
        "quick_best", "quick_step32", "quick_step64",
    ]  # fmt: skip
    for name in (
        "model.safetensors", "value_head.safetensors", "tokenizer.json", "processor_config.json",
        "prompt.jinja", "policy.json", "recipe.json", "README.md",
    ):  # fmt: skip
        assert (checkpoints / "quick_best" / name).is_file()
    assert Image.open(run / "curves.png").size[0] > 1000
    assert (run / "after.mp4").read_bytes()[4:8] == b"ftyp"


def test_frames_of_a_real_run_give_ratio_one(run_folder: Path):
    rows = (run_folder / "runs" / "quick" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2
    assert max(json.loads(row)["first_ratio_error"] for row in rows) < 1e-5


def evaluate(folder: Path, output: Path, *flags: str) -> dict:
    policy = str(folder / "checkpoints" / "quick_step64")
    arguments = ["eval", "--policy", policy, "--num_eval_episodes", "3", "--json", str(output)]
    assert cli.main([*arguments, *flags]) == 0
    return json.loads(output.read_text())


SAMPLED = ("--seed", "5", "--greedy", "false")


@pytest.fixture(scope="module")
def sampled(run_folder: Path, tmp_path_factory) -> dict:
    return evaluate(run_folder, tmp_path_factory.mktemp("sampled") / "a.json", *SAMPLED)


def test_evaluation_says_what_was_played(run_folder: Path, sampled: dict, tmp_path: Path, capsys):
    other = evaluate(run_folder, tmp_path / "other.json", "--seed", "6", "--greedy", "false")
    assert other["episodes"] != sampled["episodes"]
    assert sampled["num_eval_episodes"] == len(sampled["episodes"]) == 3
    assert (sampled["greedy"], sampled["split"], sampled["task"]) == (False, "validation", "Lift")
    assert 0 <= sampled["ci95_low"] <= sampled["success_rate"] <= sampled["ci95_high"] <= 1
    assert all(len(e["words"]) == e["length"] <= 12 for e in sampled["episodes"])
    assert "success_rate" in capsys.readouterr().out


def test_greedy_evaluation_of_test_episodes(run_folder: Path, sampled: dict, tmp_path: Path):
    flags = ("--seed", "5", "--split", "test", "--horizon", "6")
    greedy = evaluate(run_folder, tmp_path / "greedy.json", *flags)
    assert greedy["greedy"] is True
    seeds = [{e["seed"] for e in result["episodes"]} for result in (greedy, sampled)]
    assert seeds[0].isdisjoint(seeds[1])
    assert [e["length"] for e in greedy["episodes"]] == [6, 6, 6]


def test_the_evaluated_folder_needs_nothing_else(run_folder: Path, sampled: dict, tmp_path: Path):
    """Moved elsewhere and used from elsewhere, a checkpoint gives the same numbers."""
    moved = tmp_path / "moved" / "checkpoints"
    moved.mkdir(parents=True)
    source = run_folder / "checkpoints" / "quick_step64"
    target = moved / "quick_step64"
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    with chdir(tmp_path):
        again = evaluate(tmp_path / "moved", tmp_path / "there.json", *SAMPLED)
    assert again | {"policy": ""} == sampled | {"policy": ""}


def test_policies_are_compared_by_name_and_by_file(tmp_path: Path, capsys):
    scene = ["--task", "Lift", "--frame_size", "28", "--horizon", "30", "--num_eval_episodes", "2"]
    expert = str(tmp_path / "expert.json")
    # By the name that it had before.
    assert cli.main(["eval", "--policy", "oracle", *scene, "--json", expert]) == 0
    output = tmp_path / "rows.json"
    arguments = ["compare", "random", expert, *scene, "--json", str(output)]
    assert cli.main(arguments) == 0
    first, second = json.loads(output.read_text())
    assert (first["policy"], first["success_rate"], first["greedy"]) == ("random", 0.0, False)
    assert (second["policy"], second["success_rate"]) == ("expert", 1.0)
    assert (second["difference"], second["only_this"], second["p_value"]) == (1.0, 2, 0.5)
    assert "+1.000" in capsys.readouterr().out


def test_show_writes_a_picture_of_a_run(run_folder: Path, tmp_path: Path):
    episode = run_folder / "runs" / "quick" / "after.json"
    output = tmp_path / "strip.png"
    assert cli.main(["show", "--episode", str(episode), "--output", str(output)]) == 0
    picture = Image.open(output)
    assert picture.size == (2 * 672 + 8, 3 * 376 + 16)
    assert len(picture.resize((64, 64)).getcolors(4096)) > 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "--policy", "random", "--task", "Lft"], "task: unknown.*did you mean 'Lift'"),
        (["eval", "--policy", "random", "--horizn", "3"], "did you mean '--horizon'"),
        (["eval", "--policy", "random", "--horizon", "0"], "horizon: 0: .*greater than or equal"),
        (["eval", "--policy", "random", "--horizon"], "--horizon: expected --key value"),
        (["eval", "--policy", "random", "--controller_hz", "300"], "300: it should divide the 500"),
        (["eval", "--policy", "random", "--ablate", "image"], "'random' reads neither picture"),
        (["eval", "--policy", "oracle", "--ablate", "prompt"], "'expert' reads neither picture"),
        (["eval", "--policy", "random", "--json", "tests"], "--json tests: is a folder"),
        (["show", "--expert", "1", "--output", "README.md/a.png"], "--output .*cannot be written"),
        (["compare", "random", "/nowhere.json", "--horizon", "x"], "horizon: 'x'"),
        (["compare", "/nowhere.json"], "no evaluation in '/nowhere.json'"),
        (["eval", "--policy", "/nowhere"], "no policy in the folder '/nowhere'"),
        (
            ["show", "--episode", "/nowhere.json", "--output", "a.png"],
            "'/nowhere.json'.*No such file",
        ),
        (["show", "--episode", "README.md", "--output", "a.png"], "no episode in 'README.md'"),
        (
            ["eval", "--policy", "a", "--json", "/proc/x/y"],
            "--json .*cannot be written",
        ),
        (["show", "--expert", "1", "--output", "a.bmp"], "ending in .mp4 or .gif or .png"),
        (["train"], "no recipe: name one by --config"),
        (["train", "recipes/quick.yaml"], "named by --config recipes/quick.yaml"),
        (["sft", "starter"], "named by --config starter"),
        (
            ["eval", "--policy", "vlm_agent/shipped/policies/startr"],
            "did you mean 'vlm_agent/shipped/policies/starter'",
        ),
        (["eval", "--policy", "checkpoints/lift_best"], "made by: vlm-agent train .*/lift.yaml"),
        (
            ["train", "--config", "best", "--init_from", "checkpoints/warm_start_final"],
            "init_from: .*the hub was not asked.*made by: vlm-agent sft .*/warm_start.yaml",
        ),
        (["keys", "lerning_rate"], "did you mean 'learning_rate'"),
        (["prompt", "--config", "recipes/quik.yaml"], "'recipes/quick.yaml'"),
        (
            ["prompt", "--action_words", *["a", "b", "c", "d", "e", "f", "g", "a"]],
            "'a' stands there twice",
        ),
    ],
)
def test_mistakes_get_a_sentence(arguments: list[str], message: str):
    with chdir(ROOT), pytest.raises(UserError, match=message):
        cli.main(arguments)


def test_keys_are_shown_with_what_they_take(capsys):
    assert cli.main(["keys", "clip"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "ppo: An update" in said
    assert "clip_range: 0.2" in said
    assert "takes a number > 0" in said
    assert "learning_rate" not in said


def test_prompt_shows_text_count_and_tokens(capsys):
    assert cli.main(["prompt", "--config", str(ROOT / "recipes" / "quick.yaml")]) == 0
    out = capsys.readouterr().out
    assert "open, none<|im_end|>" in out
    assert "tokens: 32, of which 16 are the picture's" in out
    assert "close gripper" in out
    assert "Ġgripper" in out


def test_console_script_and_help():
    script = Path(sys.executable).with_name("vlm-agent")
    result = subprocess.run([script, "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    for command in ("eval", "merge", "prompt", "show", "bench", "doctor"):
        assert command in result.stdout
    unwritable = ["--policy", "starter", "--json", "/proc/x/y"]
    bad = subprocess.run([script, "eval", *unwritable], capture_output=True, text=True)
    assert bad.returncode == 2
    assert "Traceback" not in bad.stderr


def test_seeds_are_whole_numbers(capsys):
    for arguments in (["show", "--expert", "-1", "--output", "a.png"], ["eval", "--seed", "-1"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 2
        assert "expected a whole number of at least 0, got '-1'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--words", "0", "--words 0: expected 1 or more"),
        ("--frame_size", "1000", "--frame_size 1000: expected 28 to 640"),
        ("--task", "PickPlaceCam", "did you mean 'PickPlaceCan'"),
    ],
)
def test_a_benchmark_says_what_it_cannot_measure(option: str, value: str, message: str):
    with pytest.raises(UserError, match=message):
        cli.main(["bench", "camera", option, value])


class TestDoctor:
    def test_rendering_works_here_and_says_with_what(self, capsys):
        assert cli.main(["doctor"]) == 0
        out = capsys.readouterr().out
        assert re.search(r"egl +works on (the CPU|a GPU): \w+", out)
        assert re.search(r"osmesa +(works|does not work)", out)
        assert "drawn with egl" in out

    def test_a_broken_backend_is_found_though_the_child_crashes(self):
        assert rendering.probe("egl", "import os; os.abort()").problem == "it ended with -6"

    def test_without_any_backend_the_install_command_is_named(self):
        def examine() -> list[Finding]:
            return [rendering.probe(name, "raise OSError('no GL')") for name in ("egl", "osmesa")]

        with pytest.raises(UserError, match="egl: on Debian.*apt-get install -y libegl1 libgl1"):
            doctor(install=False, examine=examine)

    def test_the_backend_that_works_is_named(self):
        findings = [Finding("egl", None, "no device"), Finding("osmesa", "llvmpipe")]
        assert rendering.advice(findings) == "use the one that works: export MUJOCO_GL=osmesa"
        assert rendering.advice(findings[1:]) is None

    @pytest.mark.parametrize("install", [True, False])
    def test_installs_what_is_missing_if_asked_to(self, install: bool, capsys):
        installed: list[bool] = []

        def examine() -> list[Finding]:
            return [Finding("egl", "llvmpipe") if installed else Finding("egl", None, "no libEGL")]

        if install:
            doctor(install, examine, lambda: installed.append(True))
        else:
            with pytest.raises(UserError, match="cannot render with egl"):
                doctor(install, examine, lambda: installed.append(True))
        assert "no libEGL" in capsys.readouterr().out
        assert installed == [True] * install


def test_merge_writes_a_policy_and_never_over_anything(template, tmp_path):
    lora = build_policy(ModelConfig(use_peft=True), template, 0)
    lora.save_pretrained(tmp_path / "lora")
    arguments = ["merge", "--policy", str(tmp_path / "lora"), "--output"]
    assert cli.main([*arguments, str(tmp_path / "new" / "merged")]) == 0
    assert (tmp_path / "new" / "merged" / "model.safetensors").is_file()
    assert not (tmp_path / "new" / "merged" / "adapter_model.safetensors").exists()
    with pytest.raises(UserError, match="--output .*: is there already"):
        cli.main([*arguments, str(tmp_path / "new" / "merged")])
    with pytest.raises(UserError, match="--output .*: cannot be written"):
        cli.main([*arguments, str(tmp_path / "lora" / "policy.json" / "x")])
    with pytest.raises(UserError, match="no policy in the folder"):
        cli.main(["merge", "--policy", "/nowhere", "--output", str(tmp_path / "other")])
    assert not (tmp_path / "other").exists()
