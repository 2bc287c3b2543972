"""Facts that prompts tell: the package's own, and one of somebody else's."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from vlm_agent.common.errors import UserError
from vlm_agent.policy.inputs.prompts import PromptTemplate
from vlm_agent.world.actions import DEFAULT_WORDS
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.env import LanguageActionEnv
from vlm_agent.world.episode import Episode
from vlm_agent.world.facts import REGISTERED, Fact, all_facts, facts_named, register_fact
from vlm_agent.world.pool.pool import EnvPool

SOURCE = "{{ image }} The hand is {{ hand }}."
UP, DOWN = DEFAULT_WORDS.index("up"), DEFAULT_WORDS.index("down")


def read_hand(env: Any) -> int:
    """Whether the hand is more than 15 cm above where the cube rests."""
    height = env.world.scene.gripper_position[2] - env.world.scene.resting_height
    return int(height > 0.15)


HAND = Fact("hand", "'low' or 'high'", read_hand, values=("low", "high"))


@pytest.fixture
def hand() -> Iterator[None]:
    register_fact(HAND)
    yield
    del REGISTERED["hand"]


def test_a_fact_is_added_from_outside_and_told_by_worker_processes(hand):
    template = PromptTemplate(SOURCE, "Lift the cube.")
    assert template.fact_names == ("gripper", "last_action", "step", "words_left", "hand")
    with EnvPool(EnvConfig(task="Lift", frame_size=28), 1, 1, facts=template.fact_names) as pool:
        below = pool.reset({0: Episode(0, (DOWN,) * 6)})
        above = pool.reset({0: Episode(0, (UP,) * 6)})
        after = pool.step({0: UP}).observations
    for observations, place in ((below, "low"), (above, "high"), (after, "high")):
        assert template.render(observations.facts[0]) == ("", f" The hand is {place}.")


@pytest.mark.parametrize("task", ["Lift", "PickPlaceCan"])
def test_a_robot_tells_where_its_hand_is(task: str):
    """From the arm's foot, which stands elsewhere in the two scenes; a word moves it by 3 cm."""
    names = ("hand_forward", "hand_left", "hand_up", "hand_turn", "hand_gap")
    told = facts_named(names, all_facts())
    env = LanguageActionEnv(task=task, frame_size=28, words="turning", facts=told)

    def hand(after: Sequence[str] = ()) -> np.ndarray:
        actions = [env.vocabulary.index(word) for word in after]
        observation, _ = env.reset(seed=4, options={"actions": actions})
        foot = env.world.env.robots[0].base_pos
        told = np.array([observation[name] for name in names])
        assert np.abs(told[:3] - 100 * (env.world.scene.gripper_position - foot)).max() <= 0.51
        return told

    begun = hand()
    for words, moved in (
        (["forward"] * 4, (12, 0, 0, 0)),
        (["left"] * 4, (0, 12, 0, 0)),
        (["up"] * 4, (0, 0, 12, 0)),
        (["down", "turn left", "turn left", "turn left"], (0, 0, -3, 45)),
        (["turn right"], (0, 0, 0, -15)),
    ):
        assert np.abs((hand(words) - begun)[:4] - moved).max() <= 3

    def fingers() -> float:
        """Millimetres that both have slid apart, by their joints."""
        data = env.world.env.sim.data
        left, right = (data.get_joint_qpos(f"gripper0_right_finger_joint{n}") for n in (1, 2))
        return 1000 * float(left - right)

    told_open, is_open = hand(["open gripper"] * 3)[4], fingers()
    told_shut, is_shut = hand(["close gripper"] * 4)[4], fingers()
    assert is_open - is_shut > 70  # of 80
    assert abs((told_open - told_shut) - (is_open - is_shut)) <= 1
    env.close()


@pytest.mark.parametrize(("task", "robot"), [("Lift", "XArm7"), ("Wipe", "Panda")])
def test_a_hand_of_which_no_pads_are_known_tells_its_place_and_a_gap(task: str, robot: str):
    told = facts_named(("hand_forward", "hand_gap"), all_facts())
    env = LanguageActionEnv(task=task, robot=robot, frame_size=28, facts=told)
    observation, _ = env.reset(seed=0)
    assert observation["hand_forward"] > 20
    gaps = [observation["hand_gap"]]
    for _ in range(4):
        gaps.append(env.step(env.vocabulary.index("close gripper"))[0]["hand_gap"])
    assert (len(set(gaps)) > 1) == (task == "Lift")  # a sponge has no fingers
    env.close()


def test_an_environment_tells_what_it_is_asked_for(hand):
    told = facts_named(["hand", "step"], all_facts())
    env = LanguageActionEnv(task="Lift", frame_size=28, facts=told)
    observation, _ = env.reset(seed=0)
    env.close()
    assert set(observation) == {"image", "hand", "step"}
    assert observation in env.observation_space


def test_a_fact_that_nobody_can_tell_is_refused(hand):
    with pytest.raises(UserError, match="there is a fact 'hand' already"):
        register_fact(HAND)
    with pytest.raises(UserError, match="'nothing' needs .* a way to read it"):
        register_fact(Fact("nothing", "cannot be read"))
    with pytest.raises(UserError, match="'two words' needs a name for a prompt"):
        register_fact(Fact("two words", "is no name", read_hand))
    with pytest.raises(UserError, match="unknown fact 'hnd'; did you mean 'hand'"):
        EnvPool(EnvConfig(), 1, facts=["hnd"])


def test_a_prompt_knows_no_fact_that_is_not_there():
    with pytest.raises(UserError, match="unknown variable 'hand'"):
        PromptTemplate(SOURCE, "Lift the cube.")
