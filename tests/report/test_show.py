"""Films and pictures of episodes, of any file that holds some."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.own_world import SMALL, own_world
from vlm_agent import Recipe
from vlm_agent.cli.main import main
from vlm_agent.common.errors import UserError
from vlm_agent.ppo.run import run_training
from vlm_agent.report.played import read_played

SETTINGS = {**SMALL, "num_eval_episodes": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where a run has been, and a file of ``eval --json``."""
    folder = tmp_path_factory.mktemp("run")
    with own_world(folder) as world, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{folder}:{os.environ.get('PYTHONPATH', '')}")
        words = ["walk west", "walk east", "run west", "run east", "wait"]
        own = {"output_dir": str(folder), "action_words": words}
        run_training(Recipe.load(world, **SETTINGS, **own))
        policy = ["--policy", str(folder / "checkpoints" / "corridor_best")]
        file = ["--json", str(folder / "result.json"), "--num_eval_episodes", "8"]
        assert main(["eval", *policy, *file, "--trust_modules", "--greedy", "false"]) == 0
        yield folder


def show(folder: Path, *words: str) -> Path:
    output = folder / f"shown.{words[-1]}"
    arguments = ["show", *words[:-1], "--trust_modules", "true", "--output", str(output)]
    assert main([*arguments, "--size", "56"]) == 0
    return output


@pytest.mark.parametrize("name", ["result.json", "runs/corridor/evaluations/16.json"])
def test_episodes_of_results(folder: Path, name: str, capsys):
    episodes = json.loads((folder / name).read_text())["episodes"]
    played = read_played(folder / name, trust_modules=True)
    for mine, theirs in zip(played.episodes, episodes, strict=True):
        assert [played.words[action] for action in mine.actions] == theirs["words"]
        assert (mine.seed, mine.success, mine.stage) == (
            theirs["seed"], theirs["success"], theirs["stage"]
        )  # fmt: skip
    failed = [episode for episode in episodes if not episode["success"]]
    output = show(folder, "--episode", str(folder / name), "--failed", "--number", "1", "gif")
    film = Image.open(output)
    assert film.n_frames == len(failed[1]["words"]) + 1
    assert film.size == (2 * 56, 56 + 40) and film.info["duration"] == 200
    assert f"seed {failed[1]['seed']}, not solved" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--number 99: there are \d+ failed episodes"):
        show(folder, "--episode", str(folder / name), "--failed", "--number", "99", "gif")


def test_a_policy_plays_with_its_probabilities_beside(folder: Path, capsys):
    policy = str(folder / "checkpoints" / "corridor_best")
    output = show(folder, "--policy", policy, "--number", "2", "--fps", "10", "gif")
    film = Image.open(output)
    evaluation = ["eval", "--policy", policy, "--num_eval_episodes", "3", "--trust_modules"]
    assert main([*evaluation, "--json", str(folder / "three.json")]) == 0
    third = json.loads((folder / "three.json").read_text())["episodes"][2]
    assert film.n_frames == len(third["words"]) + 1
    assert film.size == (2 * 56 + 300, 56 + 40) and film.info["duration"] == 100
    # The bars are those of the words: beside the picture there is something to see, and it changes.
    frames = []
    for number in (0, film.n_frames - 1):
        film.seek(number)
        frames.append(np.asarray(film.convert("RGB"))[:, 2 * 56 :])
    assert frames[0].max() > 150 and (frames[0] != frames[1]).any()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--episode", "RESULT", "--camera", "front", "gif"], "this world has no cameras by name"),
        (["--episode", "RESULT", "--horizon", "3", "gif"], "go with --policy alone"),
        (["--episode", "pyproject.toml", "gif"], "no episode in 'pyproject.toml'"),
        (["--episode", "RECIPE", "gif"], "does not say in which scene"),
    ],
)
def test_what_cannot_be_shown_is_a_sentence(folder: Path, words, problem, tmp_path):
    (tmp_path / "x.json").write_text('{"episodes": [{}], "env": {}}')
    places = {"RESULT": str(folder / "result.json"), "RECIPE": str(tmp_path / "x.json")}
    with pytest.raises(UserError, match=problem):
        show(folder, *[places.get(word, word) for word in words])


def test_a_strangers_results_run_no_code(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\nf = None\n")
    for env in ({"task": "Lift", "reward": "evil:f"}, {"env": "evil:Evil-v0"}):
        result = tmp_path / "result.json"
        result.write_text(json.dumps({"episodes": [], "env": env}))
        with pytest.raises(UserError, match="names code of its own .*evil"):
            main(["show", "--episode", str(result), "--output", str(tmp_path / "a.gif")])
    assert not (tmp_path / "canary").exists()
