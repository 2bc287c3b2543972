"""``RobotWorld``: a robosuite scene, moved by words and seen from the robot's hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_agent.common.errors import UserError, unknown_name
from vlm_agent.world.actions import Meaning, Motion
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.contract import Expert, Happening, Spectator, World
from vlm_agent.world.render.camera import EyeInHandCamera, SceneCamera
from vlm_agent.world.robosuite.appearance.disturbances import Disturbances
from vlm_agent.world.robosuite.appearance.looks import Looks, scene_editor
from vlm_agent.world.robosuite.declaration import declare_robot
from vlm_agent.world.robosuite.expert import ScriptedExpert
from vlm_agent.world.robosuite.names import scene_name
from vlm_agent.world.robosuite.scene import RobotScene, SceneSnapshot
from vlm_agent.world.robosuite.scenes import Scenes


@dataclass(frozen=True)
class RobotMoment:
    """What a robot's world was like after a word: the scene, and its potential."""

    scene: SceneSnapshot
    potential: float


class RobotWorld(World):
    """A robosuite scene, moved by words and seen from the robot's hand.

    The ``progress`` reward is potential-based (Ng, Harada & Russell 1999): γΦ(s′) − Φ(s), where Φ
    is robosuite's staged reward (reach, grasp, lift, hover), plus ``success_bonus`` on success.
    Waiting anywhere earns nothing, so the best policy is the one that finishes. Success always
    ends the episode, so Φ = 1 there only adds a constant to the bonus.

    Args:
        config: The settings.
        gamma: Discount of the progress reward; the learner's own.

    Attributes:
        scenes: The simulations of its tasks.

    Raises:
        UserError: There is no such task, robot or word.
    """

    def __init__(self, config: EnvConfig, gamma: float) -> None:
        self.spec = declare_robot(config)
        self.config = config
        self.gamma = gamma
        tasks = config.tasks or [config.task]
        self.scenes = Scenes(tasks, config.robot, config.controller_hz, scene_editor(config))
        self._looks, self._disturbances = {}, {}
        for task in tasks:  # in one simulation each has an object of its own
            self._looks[task] = Looks(self.scenes.about(task), config)
            self._disturbances[task] = Disturbances(self.scenes.about(task), config.randomize)
        self._cameras = {
            name: EyeInHandCamera(scene, config.frame_size, config.camera)
            for name, scene in self.scenes.by_name.items()
        }
        self._task = tasks[0]
        self._potential = self._previous = 0.0

    @property
    def scene(self) -> RobotScene:
        """The simulation of the present episode, about its task."""
        return self.scenes.about(self._task)

    @property
    def camera(self) -> EyeInHandCamera:
        """What the present episode is seen through."""
        return self._cameras[scene_name(self._task)]

    @property
    def looks(self) -> Looks:
        """What the present episode's scene looks like."""
        return self._looks[self._task]

    @property
    def env(self) -> Any:
        """The robosuite environment of the present episode."""
        return self.scene.env

    @property
    def gripper_closed(self) -> bool:
        """Whether the gripper was told to close."""
        return self.scene.gripper_closed

    @property
    def hand_place(self) -> np.ndarray:
        """What the arm's joints tell of the hand, whole numbers (4,): ahead, left, up, turn.

        Centimetres from the arm's foot along its axes, and degrees to the left.
        """
        return np.rint([*(100 * self.scene.hand_in_base()), -self.scene.turned()])

    @property
    def hand_gap(self) -> int:
        """Millimetres from one finger's pad to the other's, middle to middle."""
        return round(1000 * self.scene.hand.pad_gap())

    def reset(self, seed: int) -> str | None:
        """Begin the episode of that seed."""
        self.looks.undo()
        self._seed, self._task = seed, self.scenes.task_of(seed)
        self.looks.reset(seed)
        self._potential = self.scene.staged_reward()
        return self._task if self.config.tasks else None

    def say(self, meaning: Meaning, number: int) -> Happening:
        """Move by one word."""
        assert isinstance(meaning, Motion)
        disturbances = self._disturbances[self._task]
        disturbances.move_object(self._seed, number)
        motion = disturbances.perturb(meaning, self._seed, number)
        self.scene.move(motion, self.config.step_size, self.config.control_steps)
        success = self.scene.is_success()
        self._previous, self._potential = self._potential, self.scene.staged_reward()
        stage = self.scene.stage(success).name.lower()
        return Happening(success, stage=stage, info=self.about())

    def reward(self, success: bool) -> float:
        """Progress, the staged reward, or 1 on success."""
        if self.config.reward == "staged":
            return self._potential
        if self.config.reward == "sparse":
            return float(success)
        progress = self.gamma * self._potential - self._previous
        return progress + self.config.success_bonus * success

    def picture(self) -> np.ndarray:
        """The upright eye-in-hand frame, uint8 (frame_size, frame_size, 3)."""
        return self.camera.frame()

    def state_bytes(self) -> Iterable[bytes]:
        """Positions and velocities of all joints."""
        return (part.tobytes() for part in self.scene.physics_state())

    def about(self) -> dict[str, Any]:
        """``staged_reward``: robosuite's, of the present state, undiscounted."""
        return {"staged_reward": self._potential}

    def privileged_state(self) -> np.ndarray:
        """What a critic may know of the scene, as ``spec.privileged_names`` say."""
        return self.scene.privileged_state(self._potential)

    def expert(self) -> Expert:
        """A scripted expert that reads the simulator's state."""
        self.spec.check_expert()
        return ScriptedExpert(self)

    def snapshot(self) -> RobotMoment:
        """The present moment."""
        return RobotMoment(self.scene.snapshot(), self._potential)

    def restore(self, snapshot: RobotMoment) -> None:
        """Be as at that moment of this episode, bit for bit."""
        self.scene.restore(snapshot.scene)
        self._potential = snapshot.potential

    def spectator(self, side: int, camera: str | None = None) -> Spectator:
        """A camera of the scene; by default the one in front of the robot."""
        known = self.scene.env.sim.model.camera_names
        if camera is not None and camera not in known:
            raise UserError(f"camera: {unknown_name('camera', camera, known)}")
        return _SceneView(self, side, camera or "frontview")

    def close(self) -> None:
        """Free the simulation and the OpenGL context."""
        for camera in self._cameras.values():
            camera.close()
        self.scenes.close()


class _SceneView:
    """Cameras of one name, one in each simulation; made when they are asked for."""

    def __init__(self, world: RobotWorld, side: int, camera: str) -> None:
        self.world, self.side, self.camera = world, side, camera
        self._cameras: dict[int, SceneCamera] = {}

    def frame(self) -> np.ndarray:
        """The present episode's scene."""
        sim = self.world.scene.env.sim
        if id(sim) not in self._cameras:
            self._cameras[id(sim)] = SceneCamera(sim, self.camera, self.side)
        return self._cameras[id(sim)].frame()

    def close(self) -> None:
        """Free all of them."""
        for camera in self._cameras.values():
            camera.close()
