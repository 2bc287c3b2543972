"""``ScriptedExpert``: says the next useful word, from the simulator's state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vlm_agent.world.robosuite.geometry.grasp import PALM_DEPTH, best_grasp, in_the_way
from vlm_agent.world.robosuite.scene import RobotScene
from vlm_agent.world.robosuite.words import WordChoice

if TYPE_CHECKING:
    from vlm_agent.world.robosuite.world import RobotWorld


CLEARANCE = 0.02
"""Metres by which the open fingers pass over an object, and a carried object over walls."""

FINGER_SPEED = 0.01
"""Metres per second below which a closing finger counts as having come to rest."""

SHUT_GAP = 0.008
"""Metres between the fingers below which they hold nothing."""

REACH = np.array([0.015, 0.015, 0.005])
"""Metres by which a held object may be away from the grip site, beyond its own half size."""

RISE = 0.08
"""Metres that the hand goes up where it matters only that it is well away."""

PRECISION = 0.015
"""Metres: the length of a word that is short enough to come near to an object with."""

UPWARDS, DOWNWARDS = np.array([0.0, 0.0, 1.0]), np.array([0.0, 0.0, -1.0])


class ScriptedExpert:
    """Says the next useful word for every task that has an object to handle.

    Each word follows from the present state alone, whoever said the words before: a dropped
    object is fetched again, a wrong approach is left, a closed gripper is opened. It reads the
    simulator's state, which the policy never sees.

    It uses whatever words there are: long ones on the way, short ones near, and where there are
    words that turn the hand, it has the fingers close on an object's narrow side, clear of what
    stands beside it.

    Sideways the left-right axis comes first, then forward-backward, so that there is one right
    word wherever the picture shows where things are.

    Args:
        world: The world to speak in; its tasks have objects to handle.

    Raises:
        UserError: The words do not do.
    """

    def __init__(self, world: RobotWorld) -> None:
        self.world = world
        self.step_size = world.config.step_size
        self.words = WordChoice(world.spec.vocabulary, self.step_size)
        self.unit = max(self.words.shortest, min(self.step_size, PRECISION))
        # The eight words alone are too many to be spent on the middle of a bin.
        self.spread = self.step_size if self.words.is_rich else np.inf

    @property
    def scene(self) -> RobotScene:
        """The episode's scene."""
        return self.world.scene

    def act(self) -> int:
        """The action index for the scene's present state."""
        scene, words = self.scene, self.words
        centre, half = scene.object_bounds()
        is_around = self._is_around(centre, half)
        if scene.gripper_closed:
            if is_around and scene.hand.finger_speed() > FINGER_SPEED:
                return words.close
            # Fingers at rest that are not shut have something between them.
            is_held = is_around and scene.hand.finger_gap() > SHUT_GAP
            return self._carry(centre, half) if is_held else words.open
        is_letting_go = is_around and self._carry(centre, half) == words.open
        if is_letting_go and (
            scene.hand.finger_speed() > FINGER_SPEED or not self._over_goal(centre)
        ):
            return words.open
        if self._over_goal(centre):
            return self._up(RISE)  # it lies where it belongs, the hand is in the way
        return self._approach(centre, half)

    def _approach(self, centre: np.ndarray, half: np.ndarray) -> int:
        """The next word with open fingers: over the object, down, and close."""
        gripper = self._heading()
        offset = self._local(centre - gripper)
        top = centre[2] + half[2]
        fine, coarse = 0.55 * self.unit, 0.9 * self.unit
        is_over = bool((np.abs(offset[:2]) <= coarse).all())
        if not is_over:
            clear = in_the_way(self.scene, gripper, centre, top) + CLEARANCE
            if gripper[2] < clear:
                return self._up(clear - gripper[2])
        if gripper[2] >= top + CLEARANCE:
            word = self._line_up(gripper, offset, fine, coarse)
            if word is not None:
                return word
        elif not self.words.turns:
            # A little drift on the way down is no reason to go up again; and along the fingers'
            # plane, forward and backward, they can slide past what stands between them.
            word = self._sideways(offset, np.array([fine, coarse]))
            if word is not None:
                return word
        height = max(centre[2], top - PALM_DEPTH)
        if gripper[2] > height + 0.6 * self.unit:
            return self.words.along(DOWNWARDS, gripper[2] - height, 0.4 * self.unit)
        return self.words.close

    def _line_up(
        self, gripper: np.ndarray, offset: np.ndarray, fine: float, coarse: float
    ) -> int | None:
        """The next word above the object; ``None`` if the hand can go down from here."""
        is_over = bool((np.abs(offset[:2]) <= coarse).all())
        if not (self.words.turns and is_over):
            return self._sideways(offset, np.array([fine, fine]))
        grasp = best_grasp(self.scene, gripper, self.words.turns, self.words.shortest, coarse)
        word = self._sideways(grasp.move, np.zeros(2))
        return grasp.word if word is None else word

    def _is_around(self, centre: np.ndarray, half: np.ndarray) -> bool:
        """Whether the object is where the fingers can have hold of it."""
        offset = np.abs(centre - self.scene.gripper_position)
        return bool((offset < half + REACH).all())

    def _heading(self) -> np.ndarray:
        """Where the next word moves on from: the target, unless something holds the hand back."""
        target, present = self.scene.target_position, self.scene.gripper_position
        lag = np.linalg.norm(target - present)
        return target if lag < 1.2 * self.step_size else present

    def _carry(self, centre: np.ndarray, half: np.ndarray) -> int:
        """The next word with the object in hand."""
        goal = self.scene.goal()
        if goal is None:
            return self._up(RISE)
        bottom = centre[2] - half[2]
        tolerance = np.minimum(goal.tolerance, self.spread)
        sideways = self._sideways(self._local(goal.position - centre), tolerance)
        if sideways is not None:
            clear = in_the_way(self.scene, centre, goal.position, goal.wall) + CLEARANCE
            return self._up(clear - bottom) if bottom < clear else sideways
        if bottom > goal.release:
            return self.words.along(DOWNWARDS, bottom - goal.release, 0.4 * self.unit)
        return self.words.open

    def _over_goal(self, centre: np.ndarray) -> bool:
        """Whether the object lies at its place, not above the walls around it."""
        goal = self.scene.goal()
        if goal is None:
            return False
        offset = self._local(goal.position - centre)
        return bool((np.abs(offset[:2]) <= goal.tolerance).all() and centre[2] < goal.wall)

    def _sideways(self, offset: np.ndarray, tolerance: np.ndarray) -> int | None:
        """The direction word along a base-frame offset; ``None`` if that is within tolerance."""
        for axis in (1, 0):
            if abs(offset[axis]) > tolerance[axis]:
                direction = np.zeros(3)
                direction[axis] = np.sign(offset[axis])
                # Not far beyond: a place may lie at the end of the arm's reach.
                too_far = min(tolerance[axis], 0.55 * self.unit)
                return self.words.along(direction, abs(offset[axis]), too_far)
        return None

    def _up(self, distance: float) -> int:
        """The word up; a little too far does no harm."""
        return self.words.along(UPWARDS, distance, self.step_size)

    def _local(self, offset: np.ndarray) -> np.ndarray:
        """A world-frame offset in the robot's base frame, in which words move."""
        return np.asarray(self.scene.base_rotation.T @ offset)
