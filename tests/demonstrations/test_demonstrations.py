"""Demonstrations: collected by the command, read by the hub's library and by the trainer."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.worlds import known
from vlm_agent import Recipe
from vlm_agent.cli import main as cli
from vlm_agent.common.errors import UserError
from vlm_agent.common.seeding import episode_seed
from vlm_agent.demonstrations.dataset import collect_demonstrations
from vlm_agent.demonstrations.demonstrate import demonstrate
from vlm_agent.demonstrations.reading import Moments, read_demonstrations, read_episodes
from vlm_agent.recipe.command_line import load_recipe
from vlm_agent.world.actions import DEFAULT_WORDS
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.env import LanguageActionEnv

SETTINGS = [
    "--config", str(ROOT / "recipes" / "starter.yaml"),
    "--task", "Lift", "--frame_size", "56", "--horizon", "40",
    "--num_demo_episodes", "3", "--demo_noise", "0.2", "--seed", "4",
]  # fmt: skip


def recipe_for(folder: Path, *changes: str) -> Recipe:
    return load_recipe([*SETTINGS, "--output_dir", str(folder), *changes])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("demos")
    assert cli.main(["demos", *SETTINGS, "--output_dir", str(output)]) == 0
    return output / "demonstrations" / "starter"


def test_they_are_what_the_expert_plays(folder: Path):
    recipe = recipe_for(folder.parent.parent)
    read, episodes = read_demonstrations(recipe), read_episodes(recipe)
    env = LanguageActionEnv(EnvConfig(task="Lift", frame_size=56, horizon=40))
    played = [demonstrate(env, episode_seed("train", 4, "demo", n), 0.2) for n in range(3)]
    env.close()
    played = [one for one in played if one.episode.success]
    assert [(one.episode.seed, one.episode.actions) for one in played] == [
        (episode.seed, episode.actions) for episode in episodes
    ]
    facts = np.concatenate([one.observations.facts for one in played])
    labels = np.concatenate([one.expert_actions for one in played])
    assert np.array_equal(read.observations.facts, facts)
    assert np.array_equal(read.actions, labels)
    frames = np.concatenate([one.observations.frames for one in played])
    error = np.abs(read.observations.frames.astype(float) - frames)
    assert error.mean() < 2  # of 255: they are stored as JPEG


def test_the_hubs_library_reads_them(folder: Path, tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path))
    assert rows[0]["image"].size == (56, 56)
    assert rows.features["word"].names == list(DEFAULT_WORDS)
    assert {"gripper", "last_action", "episode", "seed", "said"} <= set(rows.features)
    assert rows["step"][:3] == [0, 1, 2]
    assert len({*rows["episode"]}) == len({*rows["seed"]})


def test_the_card_says_what_is_in_it(folder: Path):
    card = (folder / "README.md").read_text()
    assert "data_files: data/train-*.parquet" in card
    assert "of 3 episodes of robosuite's `Lift`" in card


def test_what_is_there_is_not_played_again(folder: Path):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    collect_demonstrations(recipe_for(folder.parent.parent))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--demo_noise", "0.1"], "were made with another demo_noise"),
        (["--task", "Stack"], "were made with another task"),
        (["--num_demo_episodes", "4"], "3 of num_demo_episodes \\(4\\)"),
        (["--run_name", "other"], "there are none"),
    ],
)
def test_other_or_missing_ones_are_refused(folder: Path, changes, message):
    with pytest.raises(UserError, match=message):
        read_demonstrations(recipe_for(folder.parent.parent, *changes))


def test_a_larger_collection_takes_the_place_of_a_smaller(folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "demonstrations" / "starter")
    recipe = recipe_for(tmp_path, "--num_demo_episodes", "4")
    collect_demonstrations(recipe)
    files = [path.name for path in tmp_path.rglob("*.parquet")]
    assert files == ["train-00000-00004.parquet"]
    whole = read_episodes(recipe)
    few = recipe_for(tmp_path)
    collect_demonstrations(few)
    assert [path.name for path in tmp_path.rglob("*.parquet")] == files
    assert read_episodes(few) == [e for e in whole if e in read_episodes(few)]
    assert len(whole) >= len(read_episodes(few))


def test_a_task_without_expert_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no way to solve 'Door'"):
        collect_demonstrations(recipe_for(tmp_path, "--task", "Door"))


def test_settings_are_kept_with_them(folder: Path):
    settings = json.loads((folder / "demonstrations.json").read_text())
    assert (settings["task"], settings["seed"], settings["demo_noise"]) == ("Lift", 4, 0.2)
    assert settings["format_version"] == 3


@pytest.fixture
def of_format_1(tmp_path: Path) -> Path:
    """Demonstrations as the first version wrote them."""
    return Path(shutil.copytree(Path(__file__).with_name("format_1"), tmp_path / "format_1"))


OLD = ["--frame_size", "28", "--demo_noise", "0.1"]


def test_what_the_first_version_wrote_is_read(of_format_1: Path, tmp_path: Path):
    settings = json.loads((of_format_1 / "demonstrations.json").read_text())
    del settings["camera_tilt"]  # as if that setting had come later: it takes its default
    (of_format_1 / "demonstrations.json").write_text(json.dumps(settings))
    recipe = recipe_for(tmp_path, *OLD, "--demonstrations", str(of_format_1))
    read = read_demonstrations(recipe)
    assert read.observations.facts.shape[1] == 4
    closed, last = read.observations.facts[:, :2].T
    close, open_ = DEFAULT_WORDS.index("close gripper"), DEFAULT_WORDS.index("open gripper")
    assert closed[last == close].all()
    assert not closed[last == open_].any()
    assert closed.any()
    with pytest.raises(UserError, match="made with another camera_tilt"):
        read_demonstrations(
            recipe_for(tmp_path, *OLD, "--demonstrations", str(of_format_1), "--camera_tilt", "1")
        )


def test_a_set_of_format_1_goes_on_in_its_own_columns(of_format_1: Path, tmp_path: Path):
    changes = [*OLD, "--demonstrations", str(of_format_1), "--num_demo_episodes", "4"]
    recipe = recipe_for(tmp_path, *changes)
    before = len(read_episodes(recipe_for(tmp_path, *OLD, "--demonstrations", str(of_format_1))))
    collect_demonstrations(recipe)
    assert len(read_episodes(recipe)) >= before
    assert len(read_demonstrations(recipe)) > 0


def test_what_a_later_version_wrote_is_refused(of_format_1: Path, tmp_path: Path):
    settings = json.loads((of_format_1 / "demonstrations.json").read_text())
    (of_format_1 / "demonstrations.json").write_text(json.dumps({"format_version": 4, **settings}))
    with pytest.raises(UserError, match="format version 4, and this vlm-agent reads up to 3"):
        read_demonstrations(recipe_for(tmp_path, *OLD, "--demonstrations", str(of_format_1)))


def test_moments_of_several_sources_are_one_behind_the_other():
    parts = [known(count) for count in (5, 3, 4)]
    together, index = Moments(*parts), np.array([11, 0, 5, 7, 8, 4])
    frames = np.concatenate([part.observations.frames for part in parts])
    facts = np.concatenate([part.observations.facts for part in parts])
    words = np.concatenate([part.actions for part in parts])
    assert len(together) == 12
    chosen = together[index]
    assert np.array_equal(chosen.observations.frames, frames[index])
    assert np.array_equal(chosen.observations.facts, facts[index])
    assert np.array_equal(chosen.actions, words[index])
