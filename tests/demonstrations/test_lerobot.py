"""Demonstrations as a LeRobotDataset: what its loader looks for, and LeRobot's loader itself.

LeRobot pins other packages, so that it is asked in an environment of its own: ``make interop``.
"""

import io
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
from PIL import Image

from tests.own_world import SMALL, own_world
from vlm_agent import Recipe
from vlm_agent.cli.main import main
from vlm_agent.demonstrations.reading import read_demonstrations, read_episodes

LOAD = """
import json, sys
from lerobot.datasets.lerobot_dataset import LeRobotDataset
found = LeRobotDataset("someone/corridor", root=sys.argv[1])
items = [found[i] for i in range(len(found))]
first = items[0]
print(json.dumps({
    "episodes": found.num_episodes, "frames": len(found),
    "shape": list(first["observation.images.hand"].shape),
    "mean": float(first["observation.images.hand"].mean()),
    "actions": [int(item["action"]) for item in items],
    "tasks": sorted({item["task"] for item in items}),
    "state": first["observation.state"].tolist(),
    "keys": sorted(found.meta.stats),
}))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Iterator[tuple[Recipe, Path]]:
    """A recipe's demonstrations, and the folder for LeRobot."""
    folder = tmp_path_factory.mktemp("lerobot")
    with own_world(folder) as world, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{folder}:{os.environ.get('PYTHONPATH', '')}")
        own = {**SMALL, "num_demo_episodes": 6, "demo_noise": 0.3, "output_dir": str(folder)}
        words = [str(word) for key, value in own.items() for word in (f"--{key}", value)]
        output = folder / "for_lerobot"
        assert main(["demos", "--config", str(world), *words, "--lerobot", str(output)]) == 0
        yield Recipe.load(world, **own), output


def test_it_holds_what_was_said_and_seen(exported):
    recipe, folder = exported
    labelled, episodes = read_demonstrations(recipe), read_episodes(recipe)
    about = json.loads((folder / "meta/info.json").read_text())
    assert about["codebase_version"] == "v3.0" and about["words"] == list(recipe.template.words)
    assert (about["total_frames"], about["total_episodes"]) == (len(labelled), len(episodes))
    rows = datasets.load_dataset("parquet", data_files=str(folder / "data/*/*.parquet"))["train"]
    assert {*rows.column_names} == {*about["features"]}
    assert rows["action"][:] == labelled.actions.tolist()
    assert rows["said"][:] == [word for episode in episodes for word in episode.actions]
    assert np.array_equal(rows["observation.state"][:], labelled.observations.facts)
    frame = Image.open(io.BytesIO(rows[3]["observation.images.hand"]["bytes"]))
    assert np.array_equal(np.asarray(frame), labelled.observations.frames[3])
    lengths = [episode.length for episode in episodes]
    assert rows["frame_index"][:] == [step for length in lengths for step in range(length)]
    assert rows["next.done"][:] == [s == n - 1 for n in lengths for s in range(n)]
    assert rows["index"][:] == list(range(len(labelled)))


def test_episodes_tasks_and_statistics_lie_where_they_are_looked_for(exported):
    recipe, folder = exported
    episodes = pandas.read_parquet(folder / "meta/episodes/chunk-000/file-000.parquet")
    assert episodes["length"].sum() == episodes["dataset_to_index"].iloc[-1]
    assert episodes["dataset_from_index"].tolist()[1:] == episodes["dataset_to_index"].tolist()[:-1]
    tasks = pandas.read_parquet(folder / "meta/tasks.parquet")
    assert tasks.index.tolist() == ["Go to red.", "Find the red pad.", "Go to blue."]
    stats = json.loads((folder / "meta/stats.json").read_text())
    assert np.shape(stats["observation.images.hand"]["mean"]) == (3, 1, 1)
    labelled = read_demonstrations(recipe)
    facts = labelled.observations.facts
    assert stats["observation.state"]["mean"] == pytest.approx(facts.mean(0).tolist())
    shares = labelled.observations.frames.reshape(-1, 3).mean(0) / 255
    assert np.ravel(stats["observation.images.hand"]["mean"]) == pytest.approx(shares, abs=1e-6)


@pytest.mark.skipif("LEROBOT" not in os.environ, reason="make interop names LeRobot's Python")
def test_lerobots_own_loader_reads_it(exported):
    recipe, folder = exported
    labelled = read_demonstrations(recipe)
    python = os.environ["LEROBOT"]
    asked = [python, "-c", LOAD, str(folder)]
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(asked, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["frames"] == len(labelled) and found["episodes"] == len(read_episodes(recipe))
    assert found["shape"] == [3, 28, 28] and found["actions"] == labelled.actions.tolist()
    assert found["mean"] == pytest.approx(labelled.observations.frames[0].mean() / 255, abs=1e-4)
    assert set(found["tasks"]) <= {"Go to red.", "Find the red pad.", "Go to blue."}
    assert found["state"] == labelled.observations.facts[0].tolist()
    assert "observation.images.hand" in found["keys"]
