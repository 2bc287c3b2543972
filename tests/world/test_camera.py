"""Frames against robosuite's own renderer, for each task and arm that is promised to work."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from vlm_agent.bench.world.stock import StockCamera
from vlm_agent.world.actions import DEFAULT_WORDS, MOTIONS
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.env import LanguageActionEnv
from vlm_agent.world.render.camera import EyeInHandCamera

SIZE = 112
DIRECTIONS = DEFAULT_WORDS[:6]
SCENES = [
    *((task, "Panda") for task in ("PickPlaceCan", "PickPlaceMilk", "PickPlaceBread")),
    *((task, "Panda") for task in ("PickPlaceCereal", "Stack", "Door")),
    *(("Lift", robot) for robot in ("Panda", "Sawyer", "UR5e", "Kinova3", "IIWA", "Jaco")),
]


@pytest.fixture(scope="module", params=SCENES, ids="-".join)
def env(request) -> Iterator[LanguageActionEnv]:
    task, robot = request.param
    env = LanguageActionEnv(EnvConfig(task=task, robot=robot, frame_size=SIZE, camera="exact"))
    yield env
    env.close()


def say(env: LanguageActionEnv, word: str, times: int = 1) -> np.ndarray:
    for _ in range(times):
        observation, *_ = env.step(DEFAULT_WORDS.index(word))
    return observation["image"]


def random_poses(env: LanguageActionEnv, count: int) -> Iterator[None]:
    """Every joint of arm and gripper near where it was, or anywhere in its range."""
    model, data = env.world.scene.env.sim.model._model, env.world.scene.env.sim.data._data
    rng = np.random.default_rng(0)
    joints = [j for j in range(model.njnt) if model.joint(j).name.startswith(("robot", "gripper"))]
    start = data.qpos.copy()
    for number in range(count):
        for joint in joints:
            low, high = model.jnt_range[joint] if model.jnt_limited[joint] else (-3, 3)
            place = model.jnt_qposadr[joint]
            near = np.clip(start[place] + 0.3 * rng.normal(), low, high)
            data.qpos[place] = near if number % 2 else rng.uniform(low, high)
        env.world.scene.env.sim.forward()
        yield


def test_exact_frames_are_stock_robosuites_to_the_last_bit(env):
    env.reset(seed=1)
    stock = StockCamera(env.world.scene, SIZE)
    fast = EyeInHandCamera(env.world.scene, SIZE, "fast")
    for word in ("right", "right", "backward", "backward", "down", "close gripper", "forward"):
        frame = say(env, word)
        expected = stock.frame()
        assert np.array_equal(frame, expected)
        assert np.abs(fast.frame() - expected.astype(int)).mean() < 2
    for _ in random_poses(env, 14):
        assert np.array_equal(env.world.camera.frame(), stock.frame())
    stock.close()
    fast.close()


def test_words_move_the_gripper_in_the_robots_frame(env):
    axes = [np.array(motion.direction) for motion in MOTIONS[:6]]
    for word, axis in zip(DIRECTIONS, axes, strict=True):
        env.reset(seed=0)
        say(env, "open gripper", 2)  # gravity and the first motion settle
        start = env.world.scene.gripper_position
        say(env, word, 3)
        moved = env.world.scene.base_rotation.T @ (env.world.scene.gripper_position - start)
        assert moved @ axis > 0.05
        assert np.linalg.norm(moved - (moved @ axis) * axis) < 0.02


def test_words_move_the_gripper_in_the_pictures_frame(env):
    """As docs/pictures/directions.png shows: forward is the picture's upper edge, left is left.

    What lies in front of the camera grows on the way down.
    """
    model, data = env.world.scene.env.sim.model._model, env.world.scene.env.sim.data._data
    camera = [model.cam(i).name for i in range(model.ncam)].index(env.world.scene.camera_name)

    def place_in_picture(points: np.ndarray) -> np.ndarray:
        """Of points in the world: right, up; in units of half the picture."""
        x, y, z = ((points - data.cam_xpos[camera]) @ data.cam_xmat[camera].reshape(3, 3)).T
        return np.stack([x, y], 1) / -z[:, None] / np.tan(np.radians(model.cam_fovy[camera]) / 2)

    for word in DIRECTIONS:
        env.reset(seed=0)
        say(env, "open gripper", 2)
        ahead = data.cam_xpos[camera] - 0.4 * data.cam_xmat[camera].reshape(3, 3)[:, 2]
        square = ahead + 0.1 * np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
        before = place_in_picture(square)
        say(env, word, 2)
        after = place_in_picture(square)
        right, up = (after - before).mean(0)
        growth = np.ptp(after, axis=0).mean() / np.ptp(before, axis=0).mean()
        shifts = {"forward": -up, "backward": up, "left": right, "right": -right}
        if word in shifts:
            assert shifts[word] > 0.1
            assert shifts[word] > 3 * abs(right if word in ("forward", "backward") else up)
        else:
            assert growth < 0.95 if word == "up" else growth > 1.05


def test_the_gripper_is_at_the_lower_edge(can_env):
    """Upright: the grey hand fills the last rows, the table the first."""
    observation, _ = can_env.reset(seed=1)
    top, bottom = observation["image"][:8], observation["image"][-8:]
    assert bottom.std(axis=(0, 1)).max() < 5
    assert top.std(axis=(0, 1)).max() > 20


def test_exact_frames_show_the_mirror_and_fast_ones_do_not(can_env):
    exact = EyeInHandCamera(can_env.world.scene, SIZE, "exact")
    fast = EyeInHandCamera(can_env.world.scene, SIZE, "fast")
    can_env.reset(seed=1)
    for word in ["right"] * 3 + ["backward"] * 3:  # at the end the floor's mirror is in view
        say(can_env, word)
    assert not np.array_equal(exact.frame(), fast.frame())
    exact.close()
    fast.close()


def test_drawing_leaves_the_model_as_it_was(can_env):
    model = can_env.world.scene.env.sim.model._model
    groups, buffer = model.geom_group.copy(), model.vis.global_.offwidth
    camera = EyeInHandCamera(can_env.world.scene, SIZE)
    camera.frame()
    assert np.array_equal(model.geom_group, groups)
    assert model.vis.global_.offwidth == buffer
    camera.close()
