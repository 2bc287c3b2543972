"""``ScriptedExpert``: says the next useful word, from the simulator's state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vlm_agent.world.actions import MOTIONS, Motion
from vlm_agent.world.robosuite.scene import RobotScene

if TYPE_CHECKING:
    from vlm_agent.world.robosuite.world import RobotWorld

PALM_DEPTH = 0.035
"""Metres from the grip site up to where the palm would touch what stands between the fingers."""

CLEARANCE = 0.02
"""Metres by which the open fingers pass over an object, and a carried object over walls."""

FINGER_SPEED = 0.01
"""Metres per second below which a closing finger counts as having come to rest."""

SHUT_GAP = 0.008
"""Metres between the fingers below which they hold nothing."""

REACH = np.array([0.015, 0.015, 0.005])
"""Metres by which a held object may be away from the grip site, beyond its own half size."""

CLOSE = MOTIONS.index(Motion(gripper="close"))
OPEN = MOTIONS.index(Motion(gripper="open"))
UP = MOTIONS.index(Motion((0, 0, 1)))
DOWN = MOTIONS.index(Motion((0, 0, -1)))


class ScriptedExpert:
    """Says the next useful word for every task that has an object to handle.

    Each word follows from the present state alone, whoever said the words before: a dropped
    object is fetched again, a wrong approach is left, a closed gripper is opened. It reads the
    simulator's state, which the policy never sees.

    Sideways the left-right axis comes first, then forward-backward, so that there is one right
    word wherever the picture shows where things are.

    Args:
        world: The world to speak in; its task has an object to handle.
    """

    def __init__(self, world: RobotWorld) -> None:
        self.scene: RobotScene = world.scene
        self.step_size = world.config.step_size

    def act(self) -> int:
        """The action index for the scene's present state."""
        scene = self.scene
        centre, half = scene.object_bounds()
        is_around = self._is_around(centre, half)
        if scene.gripper_closed:
            if is_around and scene.finger_speed() > FINGER_SPEED:
                return CLOSE
            # Fingers at rest that are not shut have something between them.
            is_held = is_around and scene.finger_gap() > SHUT_GAP
            return self._carry(centre, half) if is_held else OPEN
        if is_around and self._carry(centre, half) == OPEN:
            return OPEN  # it is being let go
        gripper = self._heading()
        offset = self._local(centre - gripper)
        if self._over_goal(centre):
            return UP  # it lies where it belongs, the hand is in the way
        top = centre[2] + half[2]
        fine, coarse = 0.55 * self.step_size, 0.9 * self.step_size
        if gripper[2] >= top + CLEARANCE:
            word = self._sideways(offset, np.array([fine, fine]))
            return DOWN if word is None else word
        # A little drift on the way down is no reason to go up again; and along the fingers'
        # plane, forward and backward, they can slide past what stands between them.
        word = self._sideways(offset, np.array([fine, coarse]))
        if word is not None:
            return UP if abs(offset[1]) > coarse or abs(offset[0]) > coarse else word
        height = max(centre[2], top - PALM_DEPTH)
        return DOWN if gripper[2] > height + 0.6 * self.step_size else CLOSE

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
            return UP
        bottom = centre[2] - half[2]
        sideways = self._sideways(self._local(goal.position - centre), goal.tolerance)
        if sideways is not None:
            return UP if bottom < goal.wall + CLEARANCE else sideways
        return DOWN if bottom > goal.release else OPEN

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
                return int(np.argmax([np.dot(motion.direction, direction) for motion in MOTIONS]))
        return None

    def _local(self, offset: np.ndarray) -> np.ndarray:
        """A world-frame offset in the robot's base frame, in which words move."""
        return self.scene.base_rotation.T @ offset
