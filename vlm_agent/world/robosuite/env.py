"""``LanguageActionEnv``: a robosuite task whose actions are words."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from vlm_agent.world.actions import MOTIONS, ActionVocabulary
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.pool.snapshots import Snapshots
from vlm_agent.world.render.camera import EyeInHandCamera
from vlm_agent.world.robosuite.appearance import change_appearance
from vlm_agent.world.robosuite.scene import RobotScene, SceneSnapshot, Stage

NO_WORD = len(MOTIONS)
"""The value of ``last_action`` before the first word."""

Observation = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Moment:
    """What an episode was like after a word: the scene, the highest stage, the potential."""

    scene: SceneSnapshot
    stage: Stage
    potential: float


class LanguageActionEnv(gym.Env[Observation, np.int64]):
    """A robot arm that is moved by the eight words of :data:`vlm_agent.world.actions.MOTIONS`.

    Observation (a dict): ``image``, the upright eye-in-hand frame, uint8 (H, W, 3); and the scene
    facts a prompt may use: ``gripper_closed`` (0 or 1), ``last_action`` (an action index, or
    :data:`NO_WORD`), ``step`` (words said) and ``words_left``.

    Action: ``Discrete(8)``, in the order of ``vocabulary.words``. ``terminated`` on success,
    ``truncated`` after ``horizon`` words. ``info`` has ``is_success``, ``stage`` (the highest
    :class:`Stage` so far, as a lower-case name), ``staged_reward`` (robosuite's, undiscounted) and
    ``seed`` (the episode's).

    The ``progress`` reward is potential-based (Ng, Harada & Russell 1999): γΦ(s′) − Φ(s), where Φ
    is robosuite's staged reward (reach, grasp, lift, hover), plus ``success_bonus`` on success.
    Waiting anywhere earns nothing, so the best policy is the one that finishes. Success always
    ends the episode, so Φ = 1 there only adds a constant to the bonus.

    Args:
        config: The settings; ``overrides`` replace single ones, as in
            ``gymnasium.make("vlm_agent/Lift-v0", horizon=60)``.
        gamma: Discount of the progress reward; the learner's own.
        render_mode: ``None`` or ``rgb_array`` (``render`` returns the eye-in-hand frame).

    Attributes:
        seconds: Time spent so far on ``physics`` (with control and rewards) and ``rendering``.
        moments: Of the episodes that were taken up: they need not be replayed again. Environments
            with the same config may share them.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012 (gymnasium's name)

    def __init__(
        self,
        config: EnvConfig | None = None,
        gamma: float = 0.99,
        render_mode: str | None = None,
        **overrides: Any,
    ) -> None:
        self.config = dataclasses.replace(config or EnvConfig(), **overrides)
        self.gamma = gamma
        self.render_mode = render_mode
        self.vocabulary = ActionVocabulary()
        self.seconds = {"physics": 0.0, "rendering": 0.0}
        self.moments: Snapshots[Moment] = Snapshots()
        self.scene = RobotScene(self.config.task, self.config.robot, self.config.controller_hz)
        change_appearance(self.scene, self.config)
        self._camera = EyeInHandCamera(self.scene, self.config.frame_size, self.config.camera)
        size, horizon = self.config.frame_size, self.config.horizon
        self.action_space = spaces.Discrete(len(MOTIONS))
        self.observation_space = spaces.Dict(
            {
                "image": spaces.Box(0, 255, (size, size, 3), np.uint8),
                "gripper_closed": spaces.Discrete(2),
                "last_action": spaces.Discrete(NO_WORD + 1),
                "step": spaces.Discrete(horizon + 1),
                "words_left": spaces.Discrete(horizon + 1),
            }
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode. Its seed decides everything in it but the words.

        Args:
            seed: The episode's seed; drawn if ``None``.
            options: ``{"actions": [...]}`` goes to where these words lead, without rendering, so
                that an episode can be taken up where it stood; ``{"horizon": n}`` has the time be
                up after n words, if that is before ``config.horizon``.
        """
        super().reset(seed=seed)
        began = time.perf_counter()
        self.episode_seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self.scene.reset(self.episode_seed)
        options = options or {}
        self._horizon = min(self.config.horizon, options.get("horizon") or self.config.horizon)
        self._step = 0
        self._last_action = NO_WORD
        self._stage = Stage.NONE
        self._potential = self.scene.staged_reward()
        self._take_up([self.vocabulary.checked(action) for action in options.get("actions", ())])
        self.seconds["physics"] += time.perf_counter() - began
        return self._observe(), self._info(self.scene.is_success())

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Say one word. Raises ``UserError`` if there is no word with that index."""
        began = time.perf_counter()
        reward, success = self._say(action)
        self.seconds["physics"] += time.perf_counter() - began
        truncated = self._step >= self._horizon and not success
        return self._observe(), reward, success, truncated, self._info(success)

    def _take_up(self, actions: list[int]) -> None:
        """Go to where these words lead, from the last moment on the way there that is kept."""
        said, moment = self.moments.latest(self.episode_seed, actions)
        if moment is not None:
            self.scene.restore(moment.scene)
            self._step, self._last_action = said, actions[said - 1]
            self._stage, self._potential = moment.stage, moment.potential
        while self._step < len(actions):
            self._say(actions[self._step])
            if self.scene.can_be_restored:
                moment = Moment(self.scene.snapshot(), self._stage, self._potential)
                self.moments.keep(self.episode_seed, actions[: self._step], moment)

    def _say(self, action: np.int64 | int) -> tuple[float, bool]:
        """Move by one word; the reward, and whether the task is done."""
        motion = self.vocabulary.motion(action)
        self.scene.move(motion, self.config.step_size, self.config.control_steps)
        self._step += 1
        self._last_action = int(action)
        success = self.scene.is_success()
        self._stage = max(self._stage, self.scene.stage(success))
        return self._reward(success), success

    def _reward(self, success: bool) -> float:
        previous, self._potential = self._potential, self.scene.staged_reward()
        if self.config.reward == "staged":
            return self._potential
        if self.config.reward == "sparse":
            return float(success)
        progress = self.gamma * self._potential - previous
        return progress + self.config.success_bonus * success

    def _observe(self) -> Observation:
        began = time.perf_counter()
        self._frame = self._camera.frame()
        self.seconds["rendering"] += time.perf_counter() - began
        return {
            "image": self._frame,
            "gripper_closed": np.int64(self.scene.gripper_closed),
            "last_action": np.int64(self._last_action),
            "step": np.int64(self._step),
            "words_left": np.int64(self._horizon - self._step),
        }

    def _info(self, is_success: bool) -> dict[str, Any]:
        return {
            "is_success": is_success,
            "stage": self._stage.name.lower(),
            "staged_reward": self._potential,
            "critic_state": self.scene.critic_state(self._potential),
            "seed": self.episode_seed,
        }

    def digest(self) -> bytes:
        """A hash of the present state and its picture, to tell whether a replay is one."""
        parts = (*self.scene.physics_state(), self._frame)
        return hashlib.blake2b(b"".join(part.tobytes() for part in parts), digest_size=16).digest()

    def render(self) -> np.ndarray | None:
        """The eye-in-hand frame, uint8 (H, W, 3), if ``render_mode`` is ``rgb_array``."""
        return self._camera.frame() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Free the simulation and the OpenGL context."""
        self._camera.close()
        self.scene.close()
