"""The scripted expert, and what it is asked for when others speak."""

import numpy as np
import pytest

from vlm_agent.common.errors import UserError
from vlm_agent.demonstrations.demonstrate import LONGEST_BURST, demonstrate
from vlm_agent.world.actions import DEFAULT_WORDS, EIGHT, MOTIONS
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.env import ExpertEnv, LanguageActionEnv
from vlm_agent.world.robosuite.expert import ScriptedExpert
from vlm_agent.world.robosuite.scene import RobotScene

WORD = {word: index for index, word in enumerate(DEFAULT_WORDS)}


class BlindEnv(LanguageActionEnv):
    """Draws no pictures, which is faster."""

    def _observe(self):
        return {}


def finishes(env: LanguageActionEnv, expert: ScriptedExpert) -> bool:
    """Whether the expert brings the present episode to its end."""
    terminated = truncated = False
    while not (terminated or truncated):
        *_, terminated, truncated, _ = env.step(expert.act())
    return terminated


@pytest.fixture(scope="module")
def env():
    env = BlindEnv(EnvConfig(frame_size=28))
    yield env
    env.close()


@pytest.mark.parametrize(
    ("task", "seeds"),
    [
        ("Lift", (1, 2, 3)),
        ("Stack", (1, 2, 3)),
        ("PickPlaceMilk", (1, 2, 6)),
        ("PickPlaceBread", (1, 2, 3)),
        # The boxes that stand with the narrow side across the fingers; none of these words turns.
        ("PickPlaceCereal", (3, 4, 7)),
    ],
)
def test_it_solves_the_tasks_that_words_can_solve(task, seeds):
    env = BlindEnv(EnvConfig(task=task, frame_size=28))
    solved = []
    for seed in seeds:
        env.reset(seed=seed)
        solved.append(finishes(env, ScriptedExpert(env.world)))
    env.close()
    assert solved == [True] * 3


def test_it_closes_fingers_that_swing_and_tremble_only_until_they_hold():
    env = BlindEnv(EnvConfig(robot="UR5e", frame_size=28))
    solved = []
    for seed in (0, 4, 11):
        env.reset(seed=seed)
        solved.append(finishes(env, ScriptedExpert(env.world)))
    env.close()
    assert solved == [True] * 3


def test_it_turns_the_hand_to_an_objects_narrow_side():
    env = BlindEnv(EnvConfig(task="PickPlaceCereal", frame_size=28, words="turning"))
    for seed in (0, 2, 5):  # too wide for fingers that cannot turn
        env.reset(seed=seed)
        assert finishes(env, ScriptedExpert(env.world)), seed
    env.close()


def test_it_picks_the_named_object_from_among_the_others():
    tasks = [f"PickPlace/{name}" for name in ("can", "milk", "bread", "cereal")]
    env = BlindEnv(EnvConfig(tasks=tasks, frame_size=28, horizon=150, words="turning"))
    asked = {}
    for seed in range(20):
        if len(asked) < 4:
            _, info = env.reset(seed=seed)
            if info["goal"] not in asked:
                asked[info["goal"]] = finishes(env, ScriptedExpert(env.world))
    env.close()
    assert asked == dict.fromkeys(tasks, True)


def test_it_says_long_words_on_the_way_and_short_ones_near():
    env = BlindEnv(EnvConfig(frame_size=28, words="scaled"))
    vocabulary, expert = env.vocabulary, ScriptedExpert(env.world)
    for seed in (1, 2, 3):
        env.reset(seed=seed)
        said, terminated = [], False
        while not terminated:
            said.append(vocabulary.word(expert.act()))
            *_, terminated, truncated, _ = env.step(vocabulary.index(said[-1]))
            assert not truncated
        assert len(said) < 30  # about 47 of the eight words
        assert said.count("far left") >= 3
    env.close()


@pytest.mark.parametrize(
    ("missing", "problem"),
    [("close gripper", "a word that will close the gripper"), ("up", "both ways along each axis")],
)
def test_it_says_so_where_words_are_missing(missing, problem):
    words = {word: meaning for word, meaning in EIGHT.items() if word != missing}
    env = BlindEnv(EnvConfig(frame_size=28, words=words))
    with pytest.raises(UserError, match=f"words: .*{problem}"):
        env.world.expert()
    env.close()


def test_it_says_so_where_it_knows_no_way():
    env = BlindEnv(EnvConfig(task="Door", frame_size=28))
    with pytest.raises(UserError, match="task: the scripted expert knows no way to solve 'Door'"):
        env.world.expert()
    env.close()


@pytest.mark.parametrize(
    "words",
    [["close gripper"] * 3, ["down"] * 8, ["right", "down", "forward"] * 6],
    ids=["gripper closed", "onto the table", "wrong approach"],
)
def test_it_recovers_from_what_others_said(env, words):
    env.reset(seed=4, options={"actions": [WORD[word] for word in words]})
    assert finishes(env, ScriptedExpert(env.world))


def test_it_fetches_what_was_dropped(env):
    env.reset(seed=5)
    expert = ScriptedExpert(env.world)
    carried = env.world.scene.resting_height + 0.08
    while env.world.scene.object_position()[2] < carried:
        env.step(expert.act())
    for _ in range(3):
        env.step(WORD["open gripper"])
    assert env.world.scene.object_position()[2] < carried
    assert finishes(env, expert)


def test_it_leaves_what_lies_where_it_belongs(env):
    env.reset(seed=7)
    expert = ScriptedExpert(env.world)
    assert finishes(env, expert)
    env.world.scene.move(MOTIONS[WORD["up"]], env.config.step_size, env.config.control_steps)
    assert expert.act() == WORD["up"]


def test_it_reckons_with_where_the_next_word_moves_on_from(env):
    """The hand lags behind the target; where something holds it back, the target is given up."""
    env.reset(seed=4)
    scene, expert = env.world.scene, ScriptedExpert(env.world)
    while (word := expert.act()) != WORD["down"]:  # until the hand is above the can
        env.step(word)
    hand = scene.gripper_position
    for to_the_left, expected in (
        (0.02, "right"),
        (-0.02, "left"),
        (0.05, "down"),
        (-0.05, "down"),
    ):
        scene.target_position = hand + scene.base_rotation @ np.array([0.0, to_the_left, 0.0])
        assert DEFAULT_WORDS[expert.act()] == expected, to_the_left


class TurnedScene(RobotScene):
    """As if the base were turned to its left; the arm is where it was."""

    base_rotation = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


def test_it_speaks_in_the_frame_of_the_robots_base():
    env = BlindEnv(EnvConfig(task="Lift", frame_size=28))
    env.world.scene.__class__ = TurnedScene
    env.reset(seed=1)
    assert finishes(env, ScriptedExpert(env.world))
    env.close()


def test_its_word_follows_from_the_state_alone(env):
    """DAgger asks about states that somebody else led to."""
    env.reset(seed=6)
    knows_all, terminated = ScriptedExpert(env.world), False
    while not terminated:
        word = knows_all.act()
        assert ScriptedExpert(env.world).act() == word
        *_, terminated, truncated, _ = env.step(word)
        assert not truncated


def test_a_word_is_never_in_two_minds(env):
    """Left and right come before forward and backward, so that like pictures have like words."""
    env.reset(seed=7)
    expert = ScriptedExpert(env.world)
    said = []
    while not said or said[-1] != WORD["down"]:
        said.append(expert.act())
        env.step(said[-1])
    sideways = [word in (WORD["left"], WORD["right"]) for word in said[:-1]]
    assert sideways == sorted(sideways, reverse=True)


def test_expert_env_tells_the_word_for_the_state_before():
    env = ExpertEnv(EnvConfig(task="Lift", frame_size=28))
    env.reset(seed=3)
    for word in (0, 5, 5, 2):
        expected = ScriptedExpert(env.world).act()
        observation, *_, info = env.step(word)
        assert info["expert_action"] == expected
        assert "expert_action" not in observation
    env.close()


def test_demonstrations_without_noise_say_what_the_expert_says(can_env):
    played = demonstrate(can_env, seed=8)
    assert played.episode.success
    assert played.episode.stage == "placed"
    assert list(played.episode.actions) == played.expert_actions.tolist()
    assert len(played.observations) == len(played.episode.actions)
    assert played.observations.frames.shape[1:] == (56, 56, 3)
    # What was seen before the second word is what the first word led to.
    observation, _ = can_env.reset(seed=8, options={"actions": played.episode.actions[:1]})
    assert np.array_equal(played.observations.frames[1], observation["image"])


def test_noise_comes_in_bursts_and_the_expert_labels_all_of_it(can_env):
    played = demonstrate(can_env, seed=9, noise=0.3)
    again = demonstrate(can_env, seed=9, noise=0.3)
    assert played.episode == again.episode
    said = np.array(played.episode.actions)
    differs = said != played.expert_actions
    assert 0.2 < differs.mean() < 0.95
    # Each label is what the expert says there, whatever was said.
    for step in np.flatnonzero(differs)[:3]:
        can_env.reset(seed=9, options={"actions": said[:step]})
        assert ScriptedExpert(can_env.world).act() == played.expert_actions[step]
    assert LONGEST_BURST == 4
