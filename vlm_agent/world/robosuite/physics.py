"""``ArmPhysics``: MuJoCo's steps under robosuite's controllers, and a state to come back to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_agent.world.config import CONTROL_HZ, PHYSICS_HZ
from vlm_agent.world.robosuite.control import ArmControl
from vlm_agent.world.robosuite.names import import_mujoco


@dataclass(frozen=True)
class PhysicsSnapshot:
    """What the physics were like after a run.

    Attributes:
        state: MuJoCo's integration state before the last physics step. (That step leaves behind
            what is derived from the state before it, so it has to be made again.)
        torques: Of all actuators, in that step.
        grip: How far the gripper has been told to close.
    """

    state: np.ndarray
    torques: np.ndarray
    grip: np.ndarray


class ArmPhysics:
    """Runs a robosuite robot towards a pose, with the controller at its own rate.

    Args:
        env: The robosuite environment.
        robot: Its robot.
        arm: Which of the robot's arms, e.g. ``right``.
        controller_hz: Rate of the controller; robosuite's own is :data:`PHYSICS_HZ`, the torques
            are held in between.
    """

    def __init__(self, env: Any, robot: Any, arm: str, controller_hz: int) -> None:
        self.env = env
        self.robot = robot
        self.arm = arm
        self.controller_every = max(1, round(PHYSICS_HZ / controller_hz))
        self._mujoco = import_mujoco()
        self._everything = self._mujoco.mjtState.mjSTATE_INTEGRATION
        size = self._mujoco.mj_stateSize(env.sim.model._model, self._everything)
        self._before_last_step = np.empty(size)

    def reset(self) -> None:
        """Take up robosuite's new controllers: it makes them whenever it is reset."""
        self.control = ArmControl(self.robot, self.arm)

    def run(self, pose: np.ndarray, grip: np.ndarray, control_steps: int) -> None:
        """Do robosuite's ``step`` without observables.

        Args:
            pose: Target position (3,) and rotation vector (3,) of the grip site, world frame.
            grip: What robosuite's gripper takes: 1 closes, −1 opens.
            control_steps: Control steps of 1/20 s.
        """
        sim = self.env.sim
        substeps = PHYSICS_HZ // CONTROL_HZ
        total = control_steps * substeps
        controlled = [n for n in range(total) if n % substeps % self.controller_every == 0]
        for now, following in zip(controlled, [*controlled[1:], total], strict=True):
            held = following - now - 1
            is_last = following == total
            if is_last and not held:
                self._note_state()
            sim.step1()
            if now % substeps == 0:
                self.control.set_goal(pose, grip)
            self.control.run()
            sim.step2()
            if is_last and held:
                self._step(held - 1)
                self._note_state()
                held = 1
            self._step(held)

    def _step(self, count: int) -> None:
        """Make physics steps with the torques as they are."""
        sim = self.env.sim
        if count:
            self._mujoco.mj_step(sim.model._model, sim.data._data, count)

    def _note_state(self) -> None:
        sim = self.env.sim
        model, data = sim.model._model, sim.data._data
        self._mujoco.mj_getState(model, data, self._before_last_step, self._everything)

    def snapshot(self) -> PhysicsSnapshot:
        """What it is like after a run, for :meth:`restore`."""
        return PhysicsSnapshot(
            state=self._before_last_step.copy(),
            torques=self.env.sim.data.ctrl.copy(),
            grip=self.control.grip,
        )

    def restore(self, snapshot: PhysicsSnapshot) -> None:
        """Be as after that run, bit for bit; the episode has just been reset."""
        sim = self.env.sim
        model, data = sim.model._model, sim.data._data
        self._mujoco.mj_setState(model, data, snapshot.state, self._everything)
        self._before_last_step[:] = snapshot.state
        sim.data.ctrl[:] = snapshot.torques
        self._step(1)
        self.control.go_on(snapshot.grip)
