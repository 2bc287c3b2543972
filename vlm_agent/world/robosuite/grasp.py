"""How the hand should be turned to grasp the object, and what it has to pass over."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vlm_agent.world.robosuite.scene import RobotScene

PALM_DEPTH = 0.035
"""Metres from the grip site up to where the palm would touch what stands between the fingers."""

MOST_TURNED = 97.5
"""Degrees that the hand may be turned from where an episode began: no side needs more."""

COMFORTABLE = 0.05
"""Metres: what is no wider lies well between the fingers."""

WORD_COST = 0.002
"""Metres that a grasp has to be narrower or clearer by to be worth another word."""

MARGIN = 0.01
"""Metres that hand and neighbours should stay apart."""

HAND = (
    # Along the fingers' closing direction from, to; half width across it; lowest height above
    # the grip site. All in metres, of the Panda's open hand.
    (0.04, 0.066, 0.012, -0.012),
    (-0.066, -0.04, 0.012, -0.012),
    (-0.103, 0.103, 0.032, PALM_DEPTH),
)
"""The boxes that come down beside the object: two fingers and the palm."""


def best_turn(scene: RobotScene, turns: Mapping[int, float]) -> int | None:
    """The word that turns the open hand, above the object, towards the best grasp of it.

    Args:
        scene: What is grasped, and what stands around it.
        turns: Degrees about the hand's z axis that each word turns it: by index.

    Returns:
        A key of ``turns``; ``None`` if the hand is turned as it should be.
    """
    points, neighbours = scene.object_points(), scene.neighbour_points()
    turned = scene.turned()
    best, word = _cost(scene, 0.0, points, neighbours), None
    for index, turn in turns.items():
        for count in range(1, int(2 * MOST_TURNED / abs(turn)) + 1):
            if abs(turned + count * turn) > MOST_TURNED:
                break
            cost = _cost(scene, count * turn, points, neighbours) + count * WORD_COST
            if cost < best:
                best, word = cost, index
    return word


def _cost(
    scene: RobotScene, turn: float, points: np.ndarray, neighbours: list[np.ndarray]
) -> float:
    """How wide the object is between the fingers, and how deep the hand is in its neighbours."""
    along = scene.finger_direction(turn)[:2]
    along = along / np.linalg.norm(along)
    axes = np.stack([along, [-along[1], along[0]]], axis=1)  # (2, along and across)
    centre = (points.min(0) + points.max(0)) / 2
    height = max(centre[2], points[:, 2].max() - PALM_DEPTH)
    width = np.ptp(points[:, :2] @ along)
    cost = max(COMFORTABLE, width)
    for neighbour in neighbours:
        flat = (neighbour[:, :2] - centre[:2]) @ axes
        low, high = flat.min(0), flat.max(0)
        for start, end, half, lowest in HAND:
            if neighbour[:, 2].max() < height + lowest:
                continue
            apart = np.maximum(low - [end, half], [start, -half] - high).max()
            cost += max(0.0, MARGIN - apart)
    return float(cost)


def in_the_way(scene: RobotScene, start: np.ndarray, end: np.ndarray, least: float) -> float:
    """World height of the highest thing on the way from one place to another.

    Args:
        scene: What stands around.
        start: World position (3,).
        end: The same; the way goes along the one horizontal axis, then along the other.
        least: What it is where nothing stands in the way.
    """
    low, high = np.minimum(start, end)[:2] - WAY, np.maximum(start, end)[:2] + WAY
    for points in scene.neighbour_points():
        flat = points[:, :2]
        if (flat.max(0) >= low).all() and (flat.min(0) <= high).all():
            least = max(least, float(points[:, 2].max()))
    return least


WAY = 0.06
"""Metres beside its way that the hand, or what it carries, may touch."""
