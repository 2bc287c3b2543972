"""``Oracle``: a scripted expert that speaks the eight words from privileged state."""

from __future__ import annotations

import numpy as np

from vlm_agent.actions import DEFAULT_WORDS, MOTIONS, Motion
from vlm_agent.robot.config import EnvConfig
from vlm_agent.robot.env import LanguageActionEnv
from vlm_agent.robot.episode import Episode
from vlm_agent.robot.scene import RobotScene, Stage

CARRY_HEIGHT = 0.2
"""Metres above its resting place at which an object is carried: over the edges of the bins."""

GRASP_WORDS = 3
"""How often to say the closing word before giving up: the fingers need this long."""

CLOSE = MOTIONS.index(Motion(gripper="close"))
OPEN = MOTIONS.index(Motion(gripper="open"))
UP = MOTIONS.index(Motion((0, 0, 1)))


class Oracle:
    """Says the next useful word for ``Lift`` and the ``PickPlace`` tasks with one object.

    It reads the simulator's state, which the policy never sees; it shows that the words suffice
    and gives films and tests something to look at.
    """

    def __init__(self, env: LanguageActionEnv) -> None:
        self.scene: RobotScene = env.scene
        self.step_size = env.config.step_size
        self._closing = 0

    def act(self) -> int:
        """The action index for the scene's present state."""
        scene = self.scene
        gripper, target = scene.gripper_position, scene.object_position()
        if scene.stage(scene.is_success()) >= Stage.GRASPED:
            return self._carry(target)
        if self._delivered(target):
            return OPEN if scene.gripper_closed else UP
        if scene.gripper_closed and self._closing < GRASP_WORDS and self._near(gripper, target):
            self._closing += 1
            return CLOSE
        if scene.gripper_closed:
            return OPEN
        self._closing = 0
        sideways = target - gripper
        sideways[2] = 0.0
        too_low = bool(gripper[2] < target[2] + 0.06)
        # A little drift on the way down is no reason to go up again.
        if np.abs(sideways).max() > (1.0 if too_low else 0.6) * self.step_size:
            return UP if too_low else self._toward(sideways)
        if gripper[2] > target[2] + 0.6 * self.step_size:
            return self._toward(np.array([0.0, 0.0, -1.0]))
        return CLOSE

    def _carry(self, target: np.ndarray) -> int:
        goal = self.scene.goal_position()
        above = target[2] - self.scene.resting_height
        if goal is None:
            return UP
        sideways = goal - target
        sideways[2] = 0.0
        if np.abs(sideways).max() > self.step_size:
            return UP if above < CARRY_HEIGHT else self._toward(sideways)
        return self._toward(np.array([0.0, 0.0, -1.0])) if above > 0.06 else OPEN

    def _delivered(self, target: np.ndarray) -> bool:
        goal = self.scene.goal_position()
        return goal is not None and bool(np.abs(goal - target)[:2].max() < 0.08)

    def _near(self, gripper: np.ndarray, target: np.ndarray) -> bool:
        return bool(np.linalg.norm(gripper - target) < 1.5 * self.step_size)

    def _toward(self, offset: np.ndarray) -> int:
        """The direction word that goes best along a world-frame offset."""
        local = self.scene.base_rotation.T @ offset
        scores = [np.dot(motion.direction, local) for motion in MOTIONS]
        return int(np.argmax(scores))


def play_oracle(
    seed: int, config: EnvConfig | None = None
) -> tuple[Episode, EnvConfig, tuple[str, ...]]:
    """Let the oracle play one episode: the episode, its scene and the words it chose from."""
    config = config or EnvConfig()
    env = LanguageActionEnv(config)
    env.reset(seed=seed)
    oracle = Oracle(env)
    actions = []
    ended = False
    while not ended:
        actions.append(oracle.act())
        _, _, terminated, truncated, _ = env.step(actions[-1])
        ended = terminated or truncated
    env.close()
    return Episode(seed, tuple(actions)), config, DEFAULT_WORDS
