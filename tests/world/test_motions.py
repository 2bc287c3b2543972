"""Words that turn the hand, and words of different length."""

import numpy as np
import pytest

from vlm_agent.world.actions import EIGHT, ActionVocabulary, Motion
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.robosuite.scene import RobotScene
from vlm_agent.world.robosuite.words import SCALED, TURNING, WordChoice

STEP, CONTROL_STEPS = EnvConfig().step_size, EnvConfig().control_steps


@pytest.fixture(scope="module")
def scene():
    scene = RobotScene("Lift")
    yield scene
    scene.close()


def say(scene: RobotScene, *motions: Motion) -> None:
    for motion in motions:
        scene.move(motion, STEP, CONTROL_STEPS)


def lag(scene: RobotScene) -> float:
    return float(np.linalg.norm(scene.target_position - scene.gripper_position))


def test_the_tables_hold_the_eight_words_as_they_are():
    for table in (TURNING, SCALED):
        assert {word: table[word] for word in EIGHT} == EIGHT


@pytest.mark.parametrize(("word", "sign"), [("turn left", 1), ("turn right", -1)])
def test_turning_words_turn_the_hand_where_it_is(scene, word, sign):
    scene.reset(3)
    say(scene, *[Motion(gripper="open")] * 2)
    place, before = scene.gripper_position, scene.hand.matrix
    say(scene, *[TURNING[word]] * 4, Motion())
    rotation = scene.hand.matrix @ before.T
    upwards = 0.5 * (rotation[1, 0] - rotation[0, 1])  # the sine of the angle, seen from above
    assert np.degrees(np.arcsin(upwards)) == pytest.approx(sign * 60, abs=4)
    # About the hand's own axis: the fingers point where they pointed.
    assert before[:, 2] @ scene.hand.matrix[:, 2] > np.cos(np.radians(3))
    assert np.linalg.norm(scene.gripper_position - place) < 0.015


def test_turning_to_and_fro_drifts_by_nothing(scene):
    scene.reset(3)
    start = scene.target_rotvec
    say(scene, *[TURNING["turn left"], TURNING["turn right"]] * 8)
    np.testing.assert_allclose(scene.target_rotvec, start, atol=1e-9)


def test_turns_that_the_hand_cannot_follow_do_not_pile_up(scene):
    """Half a turn ahead, the hand would come round from the other side."""
    scene.reset(3)
    for _ in range(4):
        scene.move(Motion(turn=(0, 0, -60)), STEP, control_steps=1)
    assert scene.turned() == pytest.approx(-120)


@pytest.mark.parametrize("word", ["left", "up", "backward"])
def test_a_long_word_gets_there_and_settles_like_a_short_one(scene, word):
    far = SCALED[f"far {word}"]
    scene.reset(3)
    say(scene, Motion(), SCALED[word])
    short_lag = lag(scene)
    scene.reset(3)
    say(scene, Motion(), Motion())
    start = scene.gripper_position
    say(scene, far)
    assert lag(scene) < short_lag + 0.005
    say(scene, Motion())
    moved = scene.base_rotation.T @ (scene.gripper_position - start)
    assert moved @ far.direction == pytest.approx(4 * STEP, abs=0.01)


def test_lengths_are_steps_or_metres(scene):
    states = []
    for motion in (Motion((0, 1, 0)), Motion((0, 1, 0), distance=STEP)):
        scene.reset(3)
        say(scene, motion)
        states.append(np.concatenate(scene.physics_state()))
    assert np.array_equal(*states)


def test_a_turned_hand_is_restored_bit_for_bit(scene):
    scene.reset(3)
    say(scene, TURNING["turn left"], TURNING["down"])
    snapshot = scene.snapshot()
    say(scene, TURNING["turn left"], TURNING["up"])
    expected = np.concatenate(scene.physics_state())
    scene.reset(3)
    scene.restore(snapshot)
    say(scene, TURNING["turn left"], TURNING["up"])
    assert np.array_equal(np.concatenate(scene.physics_state()), expected)


@pytest.mark.parametrize(
    ("distance", "word"),
    [
        (0.3, "far left"),
        (0.115, "left"),
        (0.04, "left"),
        (0.02, "a little left"),
        (0.001, "a little left"),
    ],
)
def test_the_longest_word_that_does_not_go_too_far_is_chosen(distance, word):
    vocabulary = ActionVocabulary(SCALED)
    index = WordChoice(vocabulary, 0.03).along(np.array([0.0, 1.0, 0.0]), distance)
    assert vocabulary.word(index) == word
