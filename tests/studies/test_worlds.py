"""What is trained and measured in the Gymnasium worlds."""

import json
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vlm_agent.recipe.command_line import load_recipe, override_env
from vlm_agent.studies.stages import stage_digests
from vlm_agent.studies.worlds import WORLDS, run_worlds, world_stages
from vlm_agent.world.config import EnvConfig

ALL = [world for worlds in WORLDS.values() for world in worlds]


@pytest.mark.parametrize("world", ALL, ids=lambda world: world.recipe)
def test_every_stage_is_a_command_and_makes_something_of_its_own(world, tmp_path: Path):
    stages = list(world_stages(world, tmp_path))
    assert len({stage.makes for stage in stages}) == len(stages)
    known = [stage.name for one in ALL for stage in world_stages(one, tmp_path)]
    for stage in stages:
        assert all(tmp_path in (path, *path.parents) for path in (stage.makes,))
        assert set(stage.needs) <= set(known[: known.index(stage.name)])
        words = stage.command[1:] if stage.command[0] != "vlm_agent.cli" else stage.command[2:]
        if "--config" in words:
            assert load_recipe(list(words)).run.run_name == world.recipe


def test_the_expert_plays_in_the_world_that_the_policy_learns_in(tmp_path: Path):
    for world in ALL:
        recipe = load_recipe(["--config", f"recipes/{world.recipe}.yaml"])
        for one in world.measured:
            if one.policy == "expert":
                env = override_env(EnvConfig(), list(one.options))
                assert env.env == recipe.env.env


@pytest.mark.parametrize("name", WORLDS)
def test_the_results_are_those_of_the_study(name: str):
    written = json.loads((ROOT / "recipes" / "results" / f"{name}.json").read_text())
    rows = [(row["policy"], row["episodes"]) for row in written["rows"]]
    planned = [(one.policy, one.episodes) for world in WORLDS[name] for one in world.measured]
    assert rows == planned
    assert all(row["split"] == "test" for row in written["rows"])


@pytest.mark.parametrize("file", WORLDS)
def test_a_recipe_that_is_made_again_leaves_the_others_rows(file: str, tmp_path: Path):
    """Also one that begins from another one's policy, which is made already."""
    folder, results = tmp_path / "out", tmp_path / "results"
    *others, made = WORLDS[file]
    kept = others[-1]
    result = {"policy": "x", "task": "t", "split": "test", "ablate": "none", "greedy": True}
    result |= {"num_eval_episodes": 4, "success_rate": 0.5, "ci95_low": 0.2, "ci95_high": 0.8}
    stages = list(world_stages(made, folder))
    for stage in stages:
        stage.makes.parent.mkdir(parents=True, exist_ok=True)
        stage.makes.write_text(json.dumps(result | {"mean_length": 3.0, "episodes": []}))
    earlier = [stage for world in others for stage in world_stages(world, folder)]
    digests = stage_digests([*earlier, *stages], folder)
    records = {name: {"digest": digest, "done": True} for name, digest in digests.items()}
    (folder / "stages.json").write_text(json.dumps(records))
    (folder / "hours.json").write_text(json.dumps({stage.name: 0.5 for stage in stages}))
    old = [{"recipe": world.recipe, "success_rate": 0.1} for world in (kept, made)]
    hours = {f"training: {kept.recipe}": 2.0, "training: nobody's": 9.0}
    results.mkdir()
    (results / f"{file}.json").write_text(json.dumps({"rows": old, "hours": hours}))
    (path,) = run_worlds(folder, results, [made.recipe])
    written = json.loads(path.read_text())
    assert written["rows"][0] == old[0]
    assert [row["recipe"] for row in written["rows"][1:]] == [made.recipe] * len(made.measured)
    assert all(row["success_rate"] == 0.5 for row in written["rows"][1:])
    assert written["hours"] == {
        f"training: {kept.recipe}": 2.0,
        **{stage.name: 0.5 for stage in stages},
    }
