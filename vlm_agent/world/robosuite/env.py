"""``LanguageActionEnv``: a robosuite task whose actions are words."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from vlm_agent.common.errors import UserError
from vlm_agent.common.settings import check_names
from vlm_agent.world.actions import MOTIONS, ActionVocabulary
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.facts import FACTS, Fact
from vlm_agent.world.pool.snapshots import Snapshots
from vlm_agent.world.render.camera import EyeInHandCamera
from vlm_agent.world.robosuite.looks import Looks, scene_editor
from vlm_agent.world.robosuite.scene import (
    PRIVILEGED_STATE,
    RobotScene,
    SceneSnapshot,
    Stage,
)

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

    Observation (a dict): ``image``, the upright eye-in-hand frame, uint8 (H, W, 3); and the facts a
    prompt may tell, integers: ``gripper`` (0: open, 1: closed), ``last_action`` (an action index,
    or :data:`NO_WORD`), ``step`` (words said) and ``words_left``, and what was registered besides.

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
        facts: What observations tell; by default all of :data:`vlm_agent.world.facts.FACTS`.

    Attributes:
        seconds: Time spent so far on ``physics`` (with control and rewards) and ``rendering``.
        moments: Of the episodes that were taken up: they need not be replayed again. Environments
            with the same config may share them.
        words_said: In this episode.
        words_left: Until its time is up.
        last_action: The last word's index, or :data:`NO_WORD`.

    Raises:
        UserError: There is no such setting, task or robot.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012 (gymnasium's name)
    privileged_names: ClassVar[tuple[str, ...]] = PRIVILEGED_STATE
    """What the numbers of :meth:`privileged_state` are."""

    def __init__(
        self,
        config: EnvConfig | None = None,
        gamma: float = 0.99,
        render_mode: str | None = None,
        facts: Sequence[Fact] | None = None,
        **overrides: Any,
    ) -> None:
        check_names(EnvConfig, overrides)
        self.config = dataclasses.replace(config or EnvConfig(), **overrides)
        self.gamma = gamma
        self.render_mode = render_mode
        self.facts = tuple(FACTS.values() if facts is None else facts)
        self.vocabulary = ActionVocabulary()
        self.seconds = {"physics": 0.0, "rendering": 0.0}
        self.moments: Snapshots[Moment] = Snapshots()
        self.scene = RobotScene(
            self.config.task,
            self.config.robot,
            self.config.controller_hz,
            scene_editor(self.config),
        )
        self._looks = Looks(self.scene, self.config)
        self._camera = EyeInHandCamera(self.scene, self.config.frame_size, self.config.camera)
        self._is_over = True
        self.action_space = spaces.Discrete(len(MOTIONS))
        size = self.config.frame_size
        self.observation_space = spaces.Dict(
            {
                "image": spaces.Box(0, 255, (size, size, 3), np.uint8),
                **{fact.name: self._space(fact) for fact in self.facts},
            }
        )

    def _space(self, fact: Fact) -> spaces.Discrete:
        """The values a fact can have; a plain number is taken to count words."""
        if fact.name == "last_action":
            return spaces.Discrete(NO_WORD + 1)
        return spaces.Discrete(len(fact.values) or self.config.horizon + 1)

    @property
    def words_left(self) -> int:
        return max(0, self._horizon - self.words_said)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode. Its seed decides everything in it but the words.

        Args:
            seed: The episode's seed; drawn if ``None``.
            options: ``{"actions": [...]}`` goes to where these words lead, without rendering, so
                that an episode can be taken up where it stood; ``{"horizon": n}`` has the time be
                up after n words, if that is before ``config.horizon``.

        Raises:
            UserError: ``horizon`` is no number of words, or there is no such word.
        """
        options = options or {}
        horizon = self._checked_horizon(options.get("horizon"))
        actions = [self.vocabulary.checked(action) for action in options.get("actions", ())]
        super().reset(seed=seed)
        began = time.perf_counter()
        self.episode_seed = int(self.np_random.integers(2**31)) if seed is None else seed
        self._looks.reset(self.episode_seed)
        self._horizon = horizon
        self.words_said = 0
        self.last_action = NO_WORD
        self._stage = Stage.NONE
        self._potential = self.scene.staged_reward()
        self._take_up(actions)
        self._is_over = self.words_left == 0
        self.seconds["physics"] += time.perf_counter() - began
        return self._observe(), self._info(self.scene.is_success())

    def _checked_horizon(self, wanted: Any) -> int:
        if wanted is None:
            return self.config.horizon
        if not isinstance(wanted, int | np.integer) or wanted < 1:
            raise UserError(f"horizon: {wanted!r}: expected a whole number of words from 1 up")
        return min(self.config.horizon, int(wanted))

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Say one word.

        Raises:
            UserError: There is no word with that index.
            gymnasium.error.ResetNeeded: The episode is over, or was never begun.
        """
        if self._is_over:
            raise ResetNeeded("the episode is over: reset() begins another one")
        began = time.perf_counter()
        reward, success = self._say(action)
        self.seconds["physics"] += time.perf_counter() - began
        truncated = self.words_left == 0 and not success
        self._is_over = success or truncated
        return self._observe(), reward, success, truncated, self._info(success)

    def _take_up(self, actions: list[int]) -> None:
        """Go to where these words lead, from the last moment on the way there that is kept."""
        said, moment = self.moments.latest(self.episode_seed, actions)
        if moment is not None:
            self.scene.restore(moment.scene)
            self.words_said, self.last_action = said, actions[said - 1]
            self._stage, self._potential = moment.stage, moment.potential
        while self.words_said < len(actions):
            self._say(actions[self.words_said])
            if self.scene.can_be_restored:
                moment = Moment(self.scene.snapshot(), self._stage, self._potential)
                self.moments.keep(self.episode_seed, actions[: self.words_said], moment)

    def _say(self, action: np.int64 | int) -> tuple[float, bool]:
        """Move by one word; the reward, and whether the task is done."""
        motion = self.vocabulary.meaning(action)
        motion = self._looks.perturb(motion, self.episode_seed, self.words_said)
        self.scene.move(motion, self.config.step_size, self.config.control_steps)
        self.words_said += 1
        self.last_action = int(action)
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
        told = {fact.name: np.int64(fact.read(self)) for fact in self.facts if fact.read}
        return {"image": self._frame, **told}

    def _info(self, is_success: bool) -> dict[str, Any]:
        return {
            "is_success": is_success,
            "stage": self._stage.name.lower(),
            "staged_reward": self._potential,
            "seed": self.episode_seed,
        }

    def privileged_state(self) -> np.ndarray:
        """What a critic may know of the scene, float32 (S,), as ``privileged_names`` say."""
        return self.scene.privileged_state(self._potential)

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
