"""``RobotScene``: a robosuite scene that words move, and what can be read of it; no pictures."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from vlm_agent.common.errors import UserError
from vlm_agent.world.actions import Motion
from vlm_agent.world.robosuite.appearance.props import Edit
from vlm_agent.world.robosuite.geometry.hand import Hand
from vlm_agent.world.robosuite.geometry.objects import bounds
from vlm_agent.world.robosuite.names import make_robosuite, name_problems, scene_name
from vlm_agent.world.robosuite.physics import ArmPhysics, PhysicsSnapshot
from vlm_agent.world.robosuite.tasks import Goal, get_task

PRIVILEGED_STATE: tuple[str, ...] = (
    "object_x",
    "object_y",
    "object_z",
    "abs_object_x",
    "abs_object_y",
    "object_distance_xy",
    "object_distance",
    "goal_x",
    "goal_y",
    "goal_z",
    "object_height",
    "gripper_height",
    "finger_gap",
    "gripper_closed",
    "grasped",
    "staged_reward",
)
"""What a critic that may read the scene's state is told, in this order."""

REACHED_DISTANCE = 0.05
"""Metres between grip site and object centre below which the object counts as reached."""

LIFTED_HEIGHT = 0.04
"""Metres above its resting place at which a grasped object counts as lifted."""

LEASH_STEPS = 2
"""How many steps the target may run ahead of the gripper, so that pushing against the table
does not wind the target up. A longer word adds what it is longer by."""

TURN_STEP = 7.5
"""Degrees: a turn after which the hand is as far from rest as after one ``step_size``."""

LEASH_TURNS = 2
"""How many turns the target may run ahead of the hand."""


class Stage(enum.IntEnum):
    """How far an episode has come. Each stage counts as having passed the ones before it."""

    NONE = 0
    REACHED = 1
    GRASPED = 2
    LIFTED = 3
    PLACED = 4


@dataclass(frozen=True)
class SceneSnapshot:
    """What a scene was like after a word.

    Attributes:
        physics: What its physics were like.
        target_position: Where the word sends the grip site (3,), world frame, in metres.
        target_rotvec: How it is to stand there, a rotation vector (3,) in the world frame.
        gripper_closed: Whether the gripper was told to close.
    """

    physics: PhysicsSnapshot
    target_position: np.ndarray
    target_rotvec: np.ndarray
    gripper_closed: bool


class RobotScene:
    """One robosuite task with one arm, driven by a target pose that words move.

    The operational-space controller gets the target as an absolute pose in the world frame, so a
    word is a motion that settles and the gripper's orientation never drifts.

    Args:
        task: robosuite task, e.g. ``PickPlaceCan``.
        robot: robosuite arm, e.g. ``Panda``.
        controller_hz: Rate of the controller, see :class:`ArmPhysics`.
        edit: What to make of robosuite's environment before it is used.

    Attributes:
        can_be_restored: Whether all that this task knows of an episode is MuJoCo's state.

    Raises:
        UserError: An unknown task or robot (the message names the nearest ones).
    """

    def __init__(
        self, task: str, robot: str = "Panda", controller_hz: int = 100, edit: Edit | None = None
    ) -> None:
        problems = name_problems(task, robot)
        if problems:
            raise UserError("; ".join(problems.values()))
        self.task_name = task
        self.task = get_task(task)
        self.env = make_robosuite(task, robot, edit)
        self.robot = self.env.robots[0]
        self.arm = self.robot.arms[0]
        self.hand = Hand(self.env, self.robot, self.arm)
        self.physics = ArmPhysics(self.env, self.robot, self.arm, controller_hz)
        self.camera_name = f"{self.robot.robot_model.naming_prefix}eye_in_hand"

    @property
    def can_be_restored(self) -> bool:
        return self.task.can_be_restored

    def choose(self, task: str) -> None:
        """Have the next episode be about another task that is in the same simulation."""
        assert scene_name(task) == scene_name(self.task_name), "another simulation"
        self.task_name, self.task = task, get_task(task)

    def reset(self, seed: int) -> None:
        """Start the episode of that seed: object places and arm pose depend on nothing else."""
        # The placement samplers share this generator object, so its state is set in place.
        self.env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self.env.reset()
        self.physics.reset()
        self.gripper_closed = False
        self.target_position = self.gripper_position
        self.target_rotvec = Rotation.from_matrix(self.hand.matrix).as_rotvec()
        self._first_rotation = Rotation.from_rotvec(self.target_rotvec)
        self.resting_height = self.object_position()[2] if self.task.target else 0.0

    def move(self, motion: Motion, step_size: float, control_steps: int) -> None:
        """Move the target by one word and run the controller towards it.

        Args:
            motion: The word's meaning.
            step_size: Metres that the target moves along ``motion.direction``, times its steps.
            control_steps: Control steps of 1/20 s; a longer word or a turn takes more.
        """
        if motion.gripper is not None:
            self.gripper_closed = motion.gripper == "close"
        length = motion.length(step_size)
        offset = self.base_rotation @ np.array(motion.direction) * length
        leash = (LEASH_STEPS - 1) * step_size + max(length, step_size)
        here = self.gripper_position
        self.target_position = np.clip(self.target_position + offset, here - leash, here + leash)
        angle = float(np.linalg.norm(motion.turn))
        if angle:
            self._turn(np.deg2rad(motion.turn))
        # What is left of a way shrinks exponentially, so the time grows with its logarithm.
        ratio = max(1.0, length / step_size, angle / TURN_STEP)
        control_steps = round(control_steps * (1 + math.log2(ratio) / 2))
        pose = np.concatenate([self.target_position, self.target_rotvec])
        grip = np.full(self.robot.gripper[self.arm].dof, 1.0 if self.gripper_closed else -1.0)
        self.physics.run(pose, grip, control_steps)

    def _turn(self, turn: np.ndarray) -> None:
        """Turn the target by a rotation vector (3,) in the hand's frame.

        Where the hand does not follow, at a joint's limit, the target stays as it is: it would
        come round from the other side. It is not set back, so it never tilts.
        """
        turned = Rotation.from_rotvec(self.target_rotvec) * Rotation.from_rotvec(turn)
        ahead = (Rotation.from_matrix(self.hand.matrix).inv() * turned).magnitude()
        if ahead <= LEASH_TURNS * np.linalg.norm(turn):
            self.target_rotvec = turned.as_rotvec()

    def snapshot(self) -> SceneSnapshot:
        """What it is like after a word of this episode, for :meth:`restore`."""
        return SceneSnapshot(
            physics=self.physics.snapshot(),
            target_position=self.target_position.copy(),
            target_rotvec=self.target_rotvec.copy(),
            gripper_closed=self.gripper_closed,
        )

    def restore(self, snapshot: SceneSnapshot) -> None:
        """Take the episode up where it was, bit for bit; the scene has just been reset to it.

        Only for tasks with :attr:`can_be_restored`.
        """
        self.physics.restore(snapshot.physics)
        self.target_position = snapshot.target_position.copy()
        self.target_rotvec = snapshot.target_rotvec.copy()
        self.gripper_closed = snapshot.gripper_closed

    def physics_state(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions and velocities of all joints, in MuJoCo's order."""
        data = self.env.sim.data._data
        return data.qpos, data.qvel

    @property
    def gripper_position(self) -> np.ndarray:
        """Position (3,) of the grip site in the world frame, in metres."""
        return self.hand.position

    @property
    def base_rotation(self) -> np.ndarray:
        """Rotation (3, 3) from the robot's base frame, in which words move, to the world."""
        return np.array(self.env.sim.data.get_body_xmat(self.robot.robot_model.root_body))

    def hand_in_base(self) -> np.ndarray:
        """Position (3,) of the grip site in the robot's base frame, in metres."""
        foot = self.env.sim.data.get_body_xpos(self.robot.robot_model.root_body)
        return np.asarray(self.base_rotation.T @ (self.gripper_position - foot))

    def object_position(self) -> np.ndarray:
        """World position (3,) of the object the task is about, in metres; privileged."""
        assert self.task.target is not None, "this task has no object to handle"
        body = self.env.sim.model.body_name2id(self.task.target(self.env).root_body)
        return np.array(self.env.sim.data.body_xpos[body])

    def object_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Centre and half sizes (3,) of the box around that object, along the world's axes."""
        assert self.task.target is not None, "this task has no object to handle"
        return bounds(self.env.sim, self.task.target(self.env))

    def turned(self) -> float:
        """Degrees that the target is turned from the episode's start, about the hand's z axis."""
        turned = self._first_rotation.inv() * self.target_rotation()
        return float(np.rad2deg(turned.as_rotvec()[2]))

    def target_rotation(self, turn: float = 0.0) -> Rotation:
        """How the hand is to stand, from its own frame to the world.

        Args:
            turn: Degrees about the hand's z axis by which it would be turned besides.
        """
        about_z = Rotation.from_rotvec([0.0, 0.0, np.deg2rad(turn)])
        return Rotation.from_rotvec(self.target_rotvec) * about_z

    def goal(self) -> Goal | None:
        """Where the object belongs; ``None`` if lifting it is all."""
        return self.task.goal(self.env) if self.task.goal else None

    def staged_reward(self) -> float:
        """The staged reward that robosuite gives the present state, in [0, 1]; 1 on success."""
        own = self.task.reward
        return float(own(self.env) if own else self.env.reward(None))

    def is_success(self) -> bool:
        """Whether the task is solved."""
        own = self.task.success
        return bool(own(self.env) if own else self.env._check_success())

    def is_grasped(self) -> bool:
        """Whether the fingers hold the task's object."""
        assert self.task.target is not None
        target = self.task.target(self.env)
        fingers = self.robot.gripper
        return bool(self.env._check_grasp(gripper=fingers, object_geoms=target.contact_geoms))

    def stage(self, is_success: bool) -> Stage:
        """The stage of the present state (not the highest so far), given :meth:`is_success`."""
        if is_success:
            return Stage.PLACED
        if self.task.target is None:
            return Stage.NONE
        position = self.object_position()
        if self.is_grasped():
            lifted = position[2] - self.resting_height > LIFTED_HEIGHT
            return Stage.LIFTED if lifted else Stage.GRASPED
        near = np.linalg.norm(self.gripper_position - position) < REACHED_DISTANCE
        return Stage.REACHED if near else Stage.NONE

    def privileged_state(self, staged: float) -> np.ndarray:
        """What a critic may know of the scene, float32, as :data:`PRIVILEGED_STATE` names it.

        Lengths are in decimetres: of that size are the distances that decide. The object's place
        is seen from the gripper, the goal's from the object. What a task does not have is 0.

        Args:
            staged: The :meth:`staged_reward` of the present state.
        """
        closed = float(self.gripper_closed)
        if self.task.target is None:
            hand = [10 * self.hand.finger_gap(), closed, 0.0, staged]
            return np.array([0.0] * (len(PRIVILEGED_STATE) - 4) + hand, np.float32)
        position, gripper = self.object_position(), self.gripper_position
        offset = 10 * (position - gripper)
        goal = self.goal()
        to_goal = np.zeros(3) if goal is None else 10 * (goal.position - position)
        heights = 10 * (np.array([position[2], gripper[2]]) - self.resting_height)
        distances = [np.linalg.norm(offset[:2]), np.linalg.norm(offset)]
        hand = [10 * self.hand.finger_gap(), closed, float(self.is_grasped()), staged]
        parts = (offset, np.abs(offset[:2]), distances, to_goal, heights, hand)
        return np.concatenate(parts).astype(np.float32)

    def close(self) -> None:
        """Free the simulation."""
        self.env.close()
