"""robosuite's controllers for one arm and its gripper, without the bookkeeping around them."""

from __future__ import annotations

from typing import Any

import numpy as np


class ArmControl:
    """Drives an arm and its gripper towards a goal.

    robosuite's ``robot.control`` also keeps histories of what the robot felt and did, checks its
    arguments and looks up names, at every call. Nobody reads the one or needs the others here, and
    a fixed base stays where it is.

    Args:
        robot: The robosuite robot.
        arm: Which of its arms, e.g. ``right``.
    """

    def __init__(self, robot: Any, arm: str) -> None:
        composite = robot.composite_controller
        gripper = robot.get_gripper_name(arm)
        self._data = robot.sim.data
        self._arm = composite.part_controllers[arm]
        self._hand = composite.part_controllers[gripper]
        self._gripper = composite.grippers[gripper]
        self._arm_actuators = np.array(robot._ref_actuators_indexes_dict[arm], int)
        self._hand_actuators = np.array(robot._ref_actuators_indexes_dict[gripper], int)
        composite.update_state()  # where the robot's base stands
        self._limits = np.array(robot.sim.model.actuator_ctrlrange)

    def set_goal(self, pose: np.ndarray, grip: np.ndarray) -> None:
        """Choose where to go, once every control step.

        Args:
            pose: Target position (3,) and rotation vector (3,) of the grip site, world frame.
            grip: What robosuite's gripper takes: 1 closes, −1 opens.
        """
        self._arm.set_goal(pose)
        self._hand.set_goal(self._gripper.format_action(grip))
        self._actuate(self._hand_actuators, self._hand.run_controller())

    @property
    def grip(self) -> np.ndarray:
        """How far the gripper has been told to close, by all goals since the reset."""
        return np.array(self._gripper.current_action)

    def go_on(self, grip: np.ndarray) -> None:
        """Stand as after a run, with the gripper told to close as far as :attr:`grip` once said."""
        self._gripper.current_action = np.array(grip)
        for controller in (self._arm, self._hand):
            controller.new_update = True  # what it knows is from before the run

    def run(self) -> None:
        """Set the arm's torques for the present state."""
        self._actuate(self._arm_actuators, self._arm.run_controller())

    def _actuate(self, actuators: np.ndarray, values: np.ndarray) -> None:
        low, high = self._limits[actuators].T
        self._data.ctrl[actuators] = np.clip(values, low, high)
