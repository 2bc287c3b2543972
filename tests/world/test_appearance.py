"""Another look for the same scene."""

import numpy as np
import pytest

from vlm_agent.world.config import EnvConfig
from vlm_agent.world.env import LanguageActionEnv


def frame(**settings) -> np.ndarray:
    env = LanguageActionEnv(EnvConfig(frame_size=56, **settings))
    observation, _ = env.reset(seed=5, options={"actions": [3, 3, 3, 3, 0]})
    position = env.world.scene.object_position(), env.world.scene.gripper_position
    env.close()
    return observation["image"].astype(int), position


@pytest.fixture(scope="module")
def usual():
    return frame()


def red_pixels(image: np.ndarray) -> np.ndarray:
    """Where the can is: rows and columns of its pixels."""
    return np.argwhere((image[..., 0] > 150) & (image[..., 1] < 80))


def test_the_can_is_in_the_picture(usual):
    assert len(red_pixels(usual[0])) > 20


@pytest.mark.parametrize(
    ("settings", "axis", "sign"),
    [({"camera_shift": 0.05}, 1, -1), ({"camera_tilt": 5.0}, 0, 1)],
    ids=["moved to its right", "tilted upwards"],
)
def test_a_moved_camera_sees_the_can_elsewhere(usual, settings, axis, sign):
    image, position = frame(**settings)
    moved = red_pixels(image).mean(0) - red_pixels(usual[0]).mean(0)
    assert sign * moved[axis] > 3
    assert abs(moved[1 - axis]) < 1.5
    assert np.array_equal(position, usual[1])


def test_the_can_takes_another_colour(usual):
    image, position = frame(object_colour="blue")
    was_red = tuple(red_pixels(usual[0]).T)
    assert (image[was_red][:, 2] > image[was_red][:, 0]).mean() > 0.9
    assert np.array_equal(position, usual[1])


def test_less_light_makes_a_darker_picture(usual):
    assert frame(light=0.5)[0].mean() < 0.75 * usual[0].mean()
