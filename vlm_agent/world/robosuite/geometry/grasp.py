"""How the hand should be turned to grasp the object, and what it has to pass over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from vlm_agent.world.robosuite.geometry.objects import (
    corners_from_above,
    geoms_of,
    hull_points,
    obstacles,
)
from vlm_agent.world.robosuite.scene import RobotScene

PALM_DEPTH = 0.035
"""Metres from the grip site up to where the palm would touch what stands between the fingers."""

TURNED = (-112.5, 67.5)
"""Degrees between which the hand may be turned from where an episode began.

That is half a turn, for a gripper has two equal sides; less to the right, for the Panda's wrist
turns that way besides when the arm goes left, and its joint ends there."""

COMFORTABLE = 0.05
"""Metres: what is no wider lies well between the fingers."""

WORD_COST = 0.002
"""Metres that a grasp has to be narrower or clearer by to be worth another word."""

WIDTH_COST = 1.5
"""Metres that the hand may be deeper in a neighbour where the object is a metre narrower."""

CENTRE_COST = 0.5
"""Metres that a grasp has to be better by to be worth a metre away from the object's centre."""

MISS_COST = 3.0
"""The same for a metre by which the fingers miss the middle half of the object."""

MARGIN, OWN_MARGIN = 0.015, 0.003
"""Metres that hand and neighbours, and open fingers and object, should stay apart."""

WAY = 0.06
"""Metres beside its way that the hand, or what it carries, may touch."""

NEAR = 0.2
"""Metres from the grip site, sideways, within which the hand can touch something."""


@dataclass(frozen=True)
class Part:
    """A box of the Panda's open hand, in metres.

    Attributes:
        middle: Its place along the direction in which the fingers close.
        half: Half its size along that direction, and across it.
        lowest: How far up the hand from the grip site it begins.
        height: How far up its middle is.
    """

    middle: float
    half: tuple[float, float]
    lowest: float
    height: float


FINGERS = (Part(0.053, (0.013, 0.012), -0.012, 0.02), Part(-0.053, (0.013, 0.012), -0.012, 0.02))
PALM = Part(0.0, (0.103, 0.032), 0.02, 0.07)


@dataclass(frozen=True)
class Grasp:
    """How to bring the hand, which is above an object, to the best grasp of it.

    Attributes:
        move: How to move it first, in the robot's base frame (3,), in metres; 0: it is there.
        word: The word that turns it, by index; ``None``: it is turned as it should be.
    """

    move: np.ndarray
    word: int | None


def best_grasp(
    scene: RobotScene, here: np.ndarray, turns: Mapping[int, float], step: float, reach: float
) -> Grasp:
    """The best grasp among those that words lead to.

    Args:
        scene: What is grasped, and what stands around it.
        here: Where the next word moves on from (3,), in the world frame.
        turns: Degrees about the hand's z axis that each word turns it: by index.
        step: Metres by which the hand can be moved sideways.
        reach: Metres along each axis that it may be away from the object's centre; it is not
            further from there now.
    """
    assert scene.task.target is not None, "this task has no object to handle"
    sim, target = scene.env.sim, scene.task.target(scene.env)
    points = corners_from_above(hull_points(sim, geoms_of(sim, target)))
    to_world = scene.base_rotation
    others = [
        corners_from_above(other)
        for other in obstacles(sim, scene.robot.robot_model.root_body, target)
        if (other[:, :2].min(0) < here[:2] + NEAR).all()
        and (other[:, :2].max(0) > here[:2] - NEAR).all()
    ]
    moves = np.array([[x, y, 0.0] for x in (0.0, -step, step) for y in (0.0, -step, step)])
    away = (to_world.T @ (scene.object_bounds()[0] - here))[:2] - moves[:, :2]
    within = (np.abs(away) <= reach).all(1)
    moves, away = moves[within], away[within]
    move_costs = CENTRE_COST * np.linalg.norm(away, axis=1) + WORD_COST * (moves != 0).sum(1)
    places = here + moves @ to_world.T
    best, grasp = np.inf, Grasp(np.zeros(3), None)
    for word, turn, count in _turns(scene.turned(), turns):
        costs = _costs(scene, turn, places, points, others) + move_costs + count * WORD_COST
        if costs.min() < best:
            best, grasp = costs.min(), Grasp(moves[costs.argmin()], word)
    return grasp


def _turns(turned: float, turns: Mapping[int, float]) -> Iterator[tuple[int | None, float, int]]:
    """What the hand can be turned by: the first word, degrees, and how many words it takes."""
    yield None, 0.0, 0
    for word, turn in turns.items():
        for count in range(1, int((TURNED[1] - TURNED[0]) / abs(turn)) + 1):
            if TURNED[0] <= turned + count * turn <= TURNED[1]:
                yield word, count * turn, count


def _costs(
    scene: RobotScene,
    turn: float,
    places: np.ndarray,
    points: np.ndarray,
    others: list[np.ndarray],
) -> np.ndarray:
    """What is bad about a grasp, in metres (P,), for each place (P, 3) of the grip site.

    That is how wide the object (N, 3) is between the fingers, how far they are from its middle
    half, and how deep the hand is in what stands around it, or the fingers in the object.
    """
    rotation = scene.target_rotation(turn)
    along = rotation.apply(scene.hand.finger_axis())[:2]
    along = along / np.linalg.norm(along)
    # A hand that does not hang straight down stands beside where its fingers are.
    lean = -rotation.as_matrix()[:2, 2]
    top = points[:, 2].max()
    height = max((points[:, 2].min() + top) / 2, top - PALM_DEPTH)
    costs = np.full(len(places), WIDTH_COST * max(COMFORTABLE, np.ptp(points[:, :2] @ along)))
    across = np.array([-along[1], along[0]])
    seen = points[:, :2] @ across
    missed = np.abs(places[:, :2] @ across - (seen.min() + seen.max()) / 2) - np.ptp(seen) / 4
    costs += MISS_COST * np.maximum(0.0, missed)
    for part in (*FINGERS, PALM):
        middles = places[:, :2] + part.middle * along + part.height * lean
        for other in others:
            if other[:, 2].max() > height + part.lowest:
                apart = _apart(other[:, :2], middles, along, part.half)
                costs += np.maximum(0.0, MARGIN - apart)
        if part is not PALM:
            apart = _apart(points[:, :2], middles, along, part.half)
            costs += np.maximum(0.0, OWN_MARGIN - apart)
    return costs


def _apart(
    points: np.ndarray, middles: np.ndarray, along: np.ndarray, half: tuple[float, float]
) -> np.ndarray:
    """How far rectangles (P,) are from the hull of points (N, 2), seen from above; < 0: inside.

    Along the axis that separates them most, of the rectangles' own and the world's.
    """
    across = np.array([-along[1], along[0]])
    apart = np.full(len(middles), -np.inf)
    for axis in (along, across, *np.eye(2)):
        radius = abs(axis @ along) * half[0] + abs(axis @ across) * half[1]
        seen, place = points @ axis, middles @ axis
        gap = np.maximum(seen.min() - place, place - seen.max()) - radius
        apart = np.maximum(apart, gap)
    return apart


def in_the_way(scene: RobotScene, start: np.ndarray, end: np.ndarray, least: float) -> float:
    """World height of the highest thing on the way from one place to another.

    Args:
        scene: What stands around.
        start: World position (3,).
        end: The same; the way goes along the one horizontal axis, then along the other.
        least: What it is where nothing stands in the way.
    """
    low, high = np.minimum(start, end)[:2] - WAY, np.maximum(start, end)[:2] + WAY
    neighbours = scene.task.neighbours(scene.env) if scene.task.neighbours else []
    for neighbour in neighbours:
        points = hull_points(scene.env.sim, geoms_of(scene.env.sim, neighbour))
        flat = points[:, :2]
        if (flat.max(0) >= low).all() and (flat.min(0) <= high).all():
            least = max(least, float(points[:, 2].max()))
    return least
