"""What is trained and measured in the Gymnasium worlds."""

import json
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vlm_agent.recipe.command_line import load_recipe, override_env
from vlm_agent.studies.worlds import WORLDS, world_stages
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
