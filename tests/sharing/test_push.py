"""A policy on the hub: with a card that is true, and nothing of this machine."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from tests.conftest import ROOT
from tests.own_world import SMALL, own_world
from tests.sharing.hub import TOKEN, stand_in
from vlm_agent import Recipe, VLMPolicy
from vlm_agent.cli.main import main
from vlm_agent.common.errors import UserError
from vlm_agent.policy.decisions import act
from vlm_agent.ppo.run import run_training
from vlm_agent.world.observations import Observations

SETTINGS = {**SMALL, "num_eval_episodes": 4, "learning_rate": 2e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The policy of a run."""
    folder = tmp_path_factory.mktemp("run")
    with own_world(folder) as world, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{folder}:{os.environ.get('PYTHONPATH', '')}")
        run_training(Recipe.load(world, **SETTINGS, output_dir=str(folder)))
        yield folder / "checkpoints" / "corridor_step16"


def pushed(folder: Path, url: str, *words: str, token: str = TOKEN) -> subprocess.CompletedProcess:
    """The command in a process of its own, which asks that hub."""
    environ = {**os.environ, "HF_ENDPOINT": url, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0"}
    environ |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environ["PYTHONPATH"] = f"{folder.parents[1]}:{ROOT}"
    command = [sys.executable, "-m", "vlm_agent.cli", "push", str(folder), "someone/corridor"]
    return subprocess.run([*command, *words], env=environ, capture_output=True, text=True)


def test_a_policy_is_pushed_with_all_that_others_need(folder: Path, tmp_path: Path):
    with stand_in() as (url, hub):
        done = pushed(folder, url, "--private")
        assert done.returncode == 0, done.stderr
        assert f"pushed to {url}/someone/corridor" in done.stdout
        assert pushed(folder, url).returncode == 0  # once more
    assert hub.private == {"someone/corridor": True}
    files = hub.files["someone/corridor"]
    assert {"model.safetensors", "policy.json", "evaluation.json", "curves.png", "film.mp4"} <= set(
        files
    )
    place = str(folder.parents[1])
    for name, data in files.items():
        assert place.encode() not in data, name
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    mine, theirs = VLMPolicy.from_pretrained(folder), VLMPolicy.from_pretrained(tmp_path)
    seen = Observations(
        np.zeros((2, 28, 28, 3), np.uint8), np.zeros((2, len(mine.facts)), np.int32)
    )
    assert np.array_equal(act(mine, seen).probs, act(theirs, seen).probs)


def test_the_card_is_true_and_valid(folder: Path, tmp_path: Path):
    output = tmp_path / "public"
    assert main(["push", str(folder), "someone/corridor", "--output", str(output)]) == 0
    shown = ["show", "--episode", str(output / "evaluation.json"), "--trust_modules"]
    assert main([*shown, "--output", str(tmp_path / "one.png"), "--size", "56"]) == 0
    card = ModelCard.load(output / "README.md")
    measured = json.loads((folder.parents[1] / "runs/corridor/evaluations/16.json").read_text())
    (result,) = card.data.eval_results
    assert result.metric_value == pytest.approx(measured["success_rate"], abs=1e-4)
    assert result.dataset_name == "corridor:Corridor-v0, 4 validation episodes"
    assert card.data.license == "apache-2.0" and card.data.base_model is None
    text = card.text
    low, high = 100 * measured["ci95_low"], 100 * measured["ci95_high"]
    assert f"{low:.1f} to {high:.1f} %" in text
    assert "It was trained for 16 words." in text and "`far left`" in text
    assert (output / "prompt.jinja").read_text().strip() in text
    told = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    assert told["learning_rate"] == 2e-3 and "output_dir" not in told and "gamma" not in told
    assert "--trust_modules true" in text  # its world is a module
    with stand_in() as (url, hub):
        environ = {**os.environ, "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0"}
        check = "import sys, huggingface_hub as h; h.ModelCard.load(sys.argv[1]).validate()"
        card_file = str(output / "README.md")
        subprocess.run([sys.executable, "-c", check, card_file], env=environ, check=True)
        assert hub.validated[0]["model-index"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["corridor"], "'corridor': expected USER/NAME"),
        (["some one/corridor"], "repository: .*some one"),
        (["someone/corridor", "--evaluation", "pyproject.toml"], "no evaluation in"),
    ],
)
def test_what_cannot_be_pushed_is_a_sentence(folder, tmp_path, words, problem):
    with pytest.raises(UserError, match=problem):
        main(["push", str(folder), *words, "--output", str(tmp_path / "public")])
    assert not list(tmp_path.iterdir())


def test_no_hub_and_one_that_is_public_are_sentences(folder: Path):
    done = pushed(folder, "http://127.0.0.1:9")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "can http://127.0.0.1:9 be reached?" in done.stderr
    with stand_in() as (url, hub):
        hub.files["someone/corridor"], hub.private["someone/corridor"] = {}, False
        done = pushed(folder, url, "--private")
    assert done.returncode == 2 and "is there, and public" in done.stderr
    assert not hub.files["someone/corridor"]


def test_a_hub_that_refuses_is_a_sentence(folder: Path):
    with stand_in() as (url, hub):
        done = pushed(folder, url, token="hf_" + "b" * 34)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "are you logged in (hf auth login)" in done.stderr
    assert not hub.files


def test_a_run_may_push_what_it_leaves(tmp_path: Path):
    """Whether that can be is found out before it begins; a refusal afterwards loses nothing."""
    with own_world(tmp_path) as world, stand_in() as (url, hub):
        environ = {**os.environ, "HF_ENDPOINT": url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
        environ |= {"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": f"{tmp_path}:{ROOT}"}
        settings = {**SMALL, "output_dir": str(tmp_path), "push_to_hub": "someone/corridor"}
        settings |= {"num_eval_episodes": 0, "report_episodes": 0}
        words = [str(word) for key, value in settings.items() for word in (f"--{key}", value)]
        command = [sys.executable, "-m", "vlm_agent.cli", "train", "--config", str(world), *words]

        def run(*more: str, token: str = TOKEN) -> subprocess.CompletedProcess:
            asked = environ | {"HF_TOKEN": token}
            return subprocess.run([*command, *more], env=asked, capture_output=True, text=True)

        stranger = run(token="hf_stranger")
        assert stranger.returncode == 2
        assert "push_to_hub: " in stranger.stderr and "hf auth login" in stranger.stderr
        assert not (tmp_path / "runs").exists()
        done = run("--hub_private_repo", "true")
        assert done.returncode == 0, done.stderr
        assert f"pushed to {url}/someone/corridor" in done.stdout
        assert hub.private == {"someone/corridor": True}
        assert "model.safetensors" in hub.files["someone/corridor"]
        refused = run("--run_name", "other", "--push_to_hub", "nobody/corridor")
        assert refused.returncode == 2
        again = re.search(r"another try: vlm-agent push (\S+) nobody/corridor", refused.stderr)
        assert (Path(again[1]) / "model.safetensors").is_file()
