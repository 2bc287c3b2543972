"""The Fetch tasks of gymnasium-robotics under eight words."""

from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest

from vlm_agent.world.actions import DEFAULT_WORDS
from vlm_agent.world.env import LanguageActionEnv
from vlm_agent.world.registry import make_env

pytestmark = pytest.mark.skipif(
    find_spec("gymnasium_robotics") is None, reason="needs the extra: pip install vlm-agent[fetch]"
)

TASKS = ("Reach", "Push", "PickAndPlace")


@pytest.fixture(scope="module", params=TASKS)
def env(request: pytest.FixtureRequest) -> Iterator[LanguageActionEnv]:
    made = make_env(f"vlm_agent.world.gym.fetch:{request.param}-v0", horizon=60)
    yield made
    made.close()


def hand(env: LanguageActionEnv) -> np.ndarray:
    return env.world.env.unwrapped._get_obs()["observation"][:3]


def test_the_words_are_the_eight_and_move_the_gripper_where_they_say(env):
    assert env.vocabulary.words == DEFAULT_WORDS
    ways = {"forward": (0, 1), "left": (1, 1), "up": (2, 1), "down": (2, -1), "right": (1, -1)}
    env.reset(seed=2)
    for word, (axis, sign) in ways.items():
        before = hand(env)
        env.step(env.vocabulary.index(word))
        moved = (hand(env) - before) * sign
        assert int(np.argmax(abs(moved))) == axis
        assert 0.02 < moved[axis] < 0.05


def test_the_expert_solves_the_task(env):
    for seed in (1, 2, 3):
        env.reset(seed=seed)
        expert, ended = env.world.expert(), False
        while not ended:
            _, _, ended, truncated, info = env.step(expert.act())
            assert not truncated
        assert info["is_success"]


def test_pictures_do_not_change_what_words_do(env):
    """Fetch's own rendering does: it computes forces anew, from which the next step begins."""
    words = [env.vocabulary.index(word) for word in ("left", "forward", "down", "open gripper")] * 2
    env.reset(seed=9)
    seen = [env.step(word)[0]["image"] for word in words]
    state = b"".join(env.world.state_bytes())
    env.reset(seed=8)
    again, _ = env.reset(seed=9, options={"actions": words})
    assert b"".join(env.world.state_bytes()) == state
    np.testing.assert_array_equal(again["image"], seen[-1])


def test_the_goal_is_seen_from_behind_and_from_above(env):
    """Columns are the same from both sides: left is left; rows tell height and distance."""
    for seed in (1, 2):
        image = env.reset(seed=seed)[0]["image"].astype(int)
        is_red = (image[..., 0] > 120) & (image[..., 1:].max(axis=-1) < 90)
        (rows, columns), (rows_above, columns_above) = (
            (np.mean(found) for found in np.nonzero(is_red[:, half]))
            for half in (slice(0, 56), slice(56, 112))
        )
        assert abs(columns - columns_above) < 1.5
        pixels = 112 / 0.9  # per metre
        x, _, z = env.world.env.unwrapped.goal
        assert rows == pytest.approx(56 - pixels * (z - 0.7), abs=1.5)
        assert rows_above == pytest.approx(56 - pixels * (x - 1.34), abs=1.5)


def test_the_gripper_is_open_after_it_was_opened():
    env = make_env("vlm_agent.world.gym.fetch:PickAndPlace-v0")
    facts = {fact.name: fact for fact in env.facts}
    told = []
    env.reset(seed=0)
    for word in ("up", "open gripper", "up", "close gripper"):
        observation = env.step(env.vocabulary.index(word))[0]
        told.append(facts["gripper"].show(observation["gripper"]))
    assert told == ["closed", "open", "open", "closed"]
    assert facts["gripper"].show(env.reset(seed=0)[0]["gripper"]) == "closed"
    env.close()
