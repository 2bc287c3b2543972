"""What earlier versions wrote is read, and what later ones wrote is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlm_agent.common.errors import UserError
from vlm_agent.common.shipped import SHIPPED
from vlm_agent.policy.config import ModelConfig
from vlm_agent.policy.decisions import act
from vlm_agent.policy.heads import ValueHead
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.runs.checkpoints import load_policy
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.observations import Observations

FORMAT_1 = Path(__file__).parent / "format_1"
"""What stood beside the weights of the starter policy before there were format versions."""


@pytest.fixture
def folder(policy, tmp_path) -> Path:
    """A saved policy of the present format."""
    policy.recipe = {"task": "Lift", "gamma": 0.9, "frame_size": 56}
    policy.save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


@pytest.fixture
def older(folder: Path) -> Path:
    """The same, as format 1 had it."""
    for path in FORMAT_1.iterdir():
        shutil.copy(path, folder)
    (folder / "manifest.json").unlink()
    return folder


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_a_policy_says_its_format_and_which_facts_it_reads(folder: Path):
    about = json.loads((folder / "policy.json").read_text())
    assert about["format_version"] == 3
    assert [fact["name"] for fact in about["facts"]] == [
        "gripper",
        "last_action",
        "step",
        "words_left",
    ]
    assert about["facts"][0]["values"] == ["open", "closed"]


def test_what_a_later_version_wrote_is_refused(folder: Path):
    edit(folder / "policy.json", lambda about: about.update(format_version=99))
    with pytest.raises(UserError, match="format version 99, and this vlm-agent reads up to 3"):
        VLMPolicy.from_pretrained(folder)


def test_settings_that_are_missing_take_their_defaults(folder: Path):
    (folder / "manifest.json").unlink()
    edit(folder / "policy.json", lambda about: about.update(format_version=2))
    edit(folder / "policy.json", lambda about: about["model"].pop("temperature"))
    edit(folder / "policy.json", lambda about: about["model"].update(of_another_version=1))
    edit(folder / "recipe.json", lambda recipe: recipe.pop("gamma"))
    policy, env, gamma = load_policy(folder)
    assert policy.config.temperature == ModelConfig().temperature
    assert env == EnvConfig(task="Lift", frame_size=56)
    assert gamma == 0.99


def test_a_policy_of_the_first_format_loads(older: Path, policy, make_observations):
    assert "format_version" not in json.loads((older / "policy.json").read_text())
    loaded, env, gamma = load_policy(older)
    assert loaded.facts == ("gripper", "last_action", "step", "words_left")
    assert env == EnvConfig()
    assert gamma == 0.99
    observations = make_observations(3)
    assert np.array_equal(act(loaded, observations).probs, act(policy, observations).probs)


def test_a_first_formats_critic_of_the_state_is_no_value_head(older: Path, make_observations):
    """It stood in the value head's file, and the policy has a value head of its own again."""
    edit(older / "policy.json", lambda about: about["model"].update(value_input="state"))
    (older / "value_head.safetensors").unlink()
    loaded = VLMPolicy.from_pretrained(older)
    assert isinstance(loaded.value_head, ValueHead)
    assert not act(loaded, make_observations(2)).values.any()


@pytest.mark.parametrize("name", ["starter", "beginner", "warm_start"])
def test_policies_that_ship_load_whatever_their_format(name: str):
    policy, env, _ = load_policy(name)
    about = json.loads((SHIPPED / "policies" / name / "policy.json").read_text())
    assert about.get("format_version", 1) in (1, 2, 3)
    made_by = Recipe.load(name)
    assert env == made_by.env
    assert policy.words == made_by.template.words


@torch.no_grad()
def test_the_starters_scores_are_those_of_the_version_that_made_it():
    """Measured at the last commit that had no format versions."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3), dtype=np.uint8)
    facts = np.array([[0, 8, 0, 120], [1, 6, 30, 90]], np.int32)
    said = act(VLMPolicy.from_pretrained("starter").eval(), Observations(frames, facts))
    assert said.probs[0, :4] == pytest.approx([0.59553, 0.00481, 0.22337, 0.13492], abs=1e-4)
    assert said.probs[1, 4:] == pytest.approx([0.43803, 0.00449, 0.16359, 0.21277], abs=1e-4)
    assert said.values == pytest.approx([0.18929, -0.21260], abs=1e-4)
