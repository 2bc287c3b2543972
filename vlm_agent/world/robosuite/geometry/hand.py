"""``Hand``: where a robosuite gripper and its fingers are."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlm_agent.world.robosuite.names import import_mujoco

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
        geoms, model = self._gripper.important_geoms, env.sim.model
        pads = [geoms.get(name, []) for name in ("left_fingerpad", "right_fingerpad")]
        known = set(model.geom_names)
        # A sponge has none, and of XArm7's robosuite tells names that are not there.
        is_known = all(pads) and known.issuperset([*pads[0], *pads[1]])
        self._pad_geoms = [[model.geom_name2id(one) for one in pad] for pad in pads if is_known]

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
        hinge = import_mujoco().mjtJoint.mjJNT_HINGE
        return FINGER_LEVER if model.jnt_type[model.joint_name2id(joint)] == hinge else 1.0

    def pad_gap(self) -> float:
        """Metres from one finger's pad to the other's, middle to middle.

        Where robosuite knows no pads of a gripper, :meth:`finger_gap`.
        """
        pads = self._pads()
        return self.finger_gap() if pads is None else float(np.linalg.norm(pads[1] - pads[0]))

    def finger_axis(self) -> np.ndarray:
        """Unit vector (3,) from one open finger's pad to the other's, in the grip site's frame.

        Where robosuite knows no pads of a gripper, the site's y axis, as of most grippers.
        """
        pads = self._pads()
        if pads is None:
            return np.array([0.0, 1.0, 0.0])
        axis = self.matrix.T @ (pads[1] - pads[0])
        return np.asarray(axis / np.linalg.norm(axis))

    def _pads(self) -> np.ndarray | None:
        """World positions (2, 3) of the middles of both pads."""
        places = self._env.sim.data.geom_xpos
        pads = [places[geoms].mean(0) for geoms in self._pad_geoms]
        return np.array(pads) if pads else None
