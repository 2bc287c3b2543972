"""``Hand``: where a robosuite gripper and its fingers are."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

FINGER_LEVER = 0.02
"""Metres per radian of a finger that swings. It is more; but under load such fingers tremble."""


class Hand:
    """Reads the gripper of an arm.

    Args:
        env: The robosuite environment.
        robot: Its robot.
        arm: Which of the robot's arms, e.g. ``right``.
    """

    def __init__(self, env: Any, robot: Any, arm: str) -> None:
        self._env = env
        self._site = robot.eef_site_id[arm]
        self._gripper = robot.gripper[arm]

    @property
    def position(self) -> np.ndarray:
        """Position (3,) of the grip site in the world frame, in metres."""
        return np.array(self._env.sim.data.site_xpos[self._site])

    @property
    def matrix(self) -> np.ndarray:
        """Rotation (3, 3) from the grip site's frame to the world; its z is along the fingers."""
        return np.array(self._env.sim.data.site_xmat[self._site]).reshape(3, 3)

    def finger_gap(self) -> float:
        """How far the gripper's joints are from where they end when it shuts on nothing.

        In metres (or radians), summed over the joints.
        """
        data = self._env.sim.data
        return sum(abs(float(data.get_joint_qpos(name))) for name in self._gripper.joints)

    def finger_speed(self) -> float:
        """Speed of the fastest finger, in metres per second."""
        sim = self._env.sim
        return max(
            abs(float(sim.data.get_joint_qvel(name))) * self._lever(sim.model, name)
            for name in self._gripper.joints
        )

    @staticmethod
    def _lever(model: Any, joint: str) -> float:
        """Metres that a finger moves by per unit of its joint: fingers slide, or swing."""
        swings = model.jnt_type[model.joint_name2id(joint)] == mujoco.mjtJoint.mjJNT_HINGE
        return FINGER_LEVER if swings else 1.0

    def pad_to_pad(self) -> np.ndarray:
        """Vector (3,) from one finger's pad to the other's, in the grip site's frame, in metres."""
        sim, geoms = self._env.sim, self._gripper.important_geoms
        pads = [
            np.mean([sim.data.geom_xpos[sim.model.geom_name2id(name)] for name in geoms[pad]], 0)
            for pad in ("left_fingerpad", "right_fingerpad")
        ]
        return np.asarray(self.matrix.T @ (pads[1] - pads[0]))

    def finger_axis(self) -> np.ndarray:
        """Unit vector (3,) from one open finger's pad to the other's, in the grip site's frame."""
        axis = self.pad_to_pad()
        return np.asarray(axis / np.linalg.norm(axis))
