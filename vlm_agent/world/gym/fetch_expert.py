"""A rule that solves the Fetch tasks: behind or onto the block, then with it to the goal."""

from typing import Any

import numpy as np

WORDS: dict[str, Any] = {
    "forward": {"vector": [0.6, 0, 0, None], "repeat": 2},
    "backward": {"vector": [-0.6, 0, 0, None], "repeat": 2},
    "left": {"vector": [0, 0.6, 0, None], "repeat": 2},
    "right": {"vector": [0, -0.6, 0, None], "repeat": 2},
    "up": {"vector": [0, 0, 0.6, None], "repeat": 2},
    "down": {"vector": [0, 0, -0.6, None], "repeat": 2},
    "close gripper": {"vector": [0, 0, 0, -1], "repeat": 5},
    "open gripper": {"vector": [0, 0, 0, 1], "repeat": 5},
}


def next_word(env: Any) -> str:
    """The next useful word in the present state of one of ``gym.fetch``'s environments."""
    seen, is_open = env._get_obs(), any(env.data.ctrl > 0.5)
    thing, goal = seen["achieved_goal"], seen["desired_goal"]
    off, way, push = seen["observation"][:3] - thing, goal - thing, np.zeros(3)
    pushes = env.has_object and env.block_gripper
    grasps = env.has_object and not env.block_gripper
    if pushes:  # along one axis, then along the other
        axis = int(abs(way[0]) < 0.03)
        push[axis] = np.sign(way[axis])
    if not env.has_object or (grasps and not is_open and max(abs(off)) < 0.03):
        return _towards(way)
    if grasps and not is_open:
        return "open gripper"
    near = 0.021 if off[2] > 0.015 else 0.028  # what slips a little is not begun anew
    if max(abs(off - off @ push * push)[:2]) < near and off @ push <= -0.03 * pushes:
        if off[2] > 0.015:
            return "down"
        return "close gripper" if grasps else _towards(push)
    return "up" if off[2] < 0.045 else _towards((-off - 0.08 * push) * (1, 1, 0))


def _towards(way: np.ndarray) -> str:
    # One axis after the other is easier to learn by looking than always the longest.
    far = [axis for axis in range(3) if abs(way[axis]) > 0.022]
    axis = far[0] if far else int(np.argmax(abs(way)))
    return max(WORDS, key=lambda word: WORDS[word]["vector"][axis] * way[axis])
