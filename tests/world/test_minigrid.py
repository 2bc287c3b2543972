"""MiniGrid under words: by a recipe alone, and with a mission as the instruction."""

import numpy as np
import pytest

from tests.conftest import ROOT
from vlm_agent.recipe.command_line import load_recipe
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.env import LanguageActionEnv
from vlm_agent.world.registry import make_env

pytest.importorskip("minigrid", reason="needs the extra: pip install vlm-agent[minigrid]")


def recipe_env(name: str) -> EnvConfig:
    return load_recipe(["--config", str(ROOT / "recipes" / f"{name}.yaml")]).env


@pytest.fixture(scope="module")
def doors() -> LanguageActionEnv:
    return make_env(recipe_env("minigrid_goto"))


def say(env: LanguageActionEnv, *words: str) -> tuple[dict, float, bool, bool, dict]:
    for word in words:
        outcome = env.step(env.vocabulary.index(word))
    return outcome


def test_a_recipe_alone_makes_a_world_of_the_empty_room():
    env = make_env(recipe_env("minigrid"))
    observation, _ = env.reset(seed=3)
    assert observation["image"].shape == (28, 28, 3)
    _, reward, terminated, _, info = say(env, "forward", "forward", "right", "forward", "forward")
    assert terminated and info["is_success"]
    assert 0.9 < reward < 1


def test_the_mission_is_the_instruction_of_the_episode(doors):
    asked = set()
    for seed in range(12):
        observation, info = doors.reset(seed=seed)
        sentence = doors.world.spec.instructions.sentences[observation["instruction"]]
        assert sentence == doors.world.env.unwrapped.mission
        assert info["goal"] in sentence
        asked.add(info["goal"])
    assert len(asked) > 3


def test_the_expert_goes_the_shortest_way_to_the_door_that_is_asked_for(doors):
    for seed in range(10):
        doors.reset(seed=seed)
        expert, ended = doors.world.expert(), False
        while not ended:
            _, _, ended, truncated, info = doors.step(expert.act())
            assert not truncated
        assert info["is_success"]
        # At most two turns and three steps lead anywhere beside a door in a room of 3 by 3.
        assert doors.words_said <= 6


def test_done_beside_another_door_fails_the_episode(doors):
    failed = 0
    for seed in range(10):
        doors.reset(seed=seed)
        room = doors.world.env.unwrapped
        expert, (x, y) = doors.world.expert(), room.target_pos
        room.target_pos = (4 - x, 4 - y)  # lead the expert to the door that lies opposite
        words = []
        while (word := expert.act()) != doors.vocabulary.index("done"):
            words.append(word)
            doors.step(word)
        room.target_pos = (x, y)
        _, reward, terminated, _, info = say(doors, "done")
        assert terminated and not info["is_success"]
        assert reward == 0
        failed += len(words) > 0
    assert failed > 3


def test_an_episode_is_its_seed_and_its_words(doors):
    words = [doors.vocabulary.index(word) for word in ("left", "forward", "forward", "right")]
    doors.reset(seed=5)
    seen = [doors.step(word)[0]["image"] for word in words]
    doors.reset(seed=6)
    again, _ = doors.reset(seed=5, options={"actions": words})
    np.testing.assert_array_equal(again["image"], seen[-1])
    assert (seen[0] != seen[-1]).any()
