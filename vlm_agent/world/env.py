"""``LanguageActionEnv``: episodes of words in any world."""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded

from vlm_agent.common.errors import UserError
from vlm_agent.common.settings import check_names
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.contract import NO_STAGE, Happening
from vlm_agent.world.facts import Fact
from vlm_agent.world.modules import import_function
from vlm_agent.world.pool.snapshots import Moment, Snapshots
from vlm_agent.world.registry import make_world

Observation = dict[str, Any]


class LanguageActionEnv(gym.Env[Observation, np.int64]):
    """A world that is moved by words, as a Gymnasium environment.

    Observation (a dict): ``image``, what is seen, uint8 (H, W, 3): with a ``history`` the last
    pictures one under the other, the newest last, the first one again in place of earlier ones;
    and the facts a prompt may tell,
    integers: ``last_action`` (an action index, or the number of words before the first),
    ``step`` (words said), ``words_left``, the world's own, such as ``gripper`` (0: open, 1:
    closed), ``instruction`` where there are several, and what was registered besides.

    Action: ``Discrete``, in the order of ``vocabulary.words``. ``terminated`` on success, or where
    the world ends an episode; ``truncated`` after ``horizon`` words, or where the world cuts it
    off. ``info`` has ``is_success``, ``stage`` (the highest one so far), ``seed`` (the episode's),
    ``goal`` (what its instruction asks for), and what the world adds.

    Args:
        config: The settings; ``overrides`` replace single ones, as in
            ``gymnasium.make("vlm_agent/Lift-v0", horizon=60)``.
        gamma: Discount of the progress reward; the learner's own.
        render_mode: ``None`` or ``rgb_array`` (``render`` returns what is seen).
        facts: What observations tell; by default all but those told on request.

    Attributes:
        world: What the words move.
        seconds: Time spent so far on ``physics`` (with control and rewards) and ``rendering``.
        moments: Of the episodes that were taken up: they need not be replayed again. Environments
            with the same config may share them.
        said: The indices of the words of this episode; ``words_said`` is how many.
        words_left: Until its time is up.
        last_action: The last word's index, or the number of words.
        instruction: Which sentence tells this episode's task.

    Raises:
        UserError: There is no such setting or world.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012 (gymnasium's name)

    def __init__(
        self,
        config: EnvConfig | None = None,
        gamma: float = 0.99,
        render_mode: str | None = None,
        facts: Sequence[Fact] | None = None,
        **overrides: Any,
    ) -> None:
        check_names(EnvConfig, overrides)
        self.config = (config or EnvConfig()).changed(**overrides)
        self.gamma = gamma
        self.render_mode = render_mode
        self.world = make_world(self.config, gamma)
        declared = self.world.spec
        self.facts = tuple(declared.usual_facts if facts is None else facts)
        self.vocabulary = declared.vocabulary
        self.seconds = {"physics": 0.0, "rendering": 0.0}
        self.moments: Snapshots[Moment] = Snapshots()
        self.said: list[int] = []
        self._pictures: deque[np.ndarray] = deque(maxlen=self.config.history)
        self._own_reward = self._own_success = None
        if ":" in self.config.reward:
            self._own_reward = import_function("reward", self.config.reward)
        if self.config.success is not None:
            self._own_success = import_function("success", self.config.success)
        self._is_over = True
        self.action_space = spaces.Discrete(len(self.vocabulary))
        self.observation_space = spaces.Dict(
            {
                "image": spaces.Box(0, 255, self.config.frame_shape, np.uint8),
                **{fact.name: self._space(fact) for fact in self.facts},
            }
        )

    def _space(self, fact: Fact) -> spaces.Space:
        """The values a fact can have."""
        if fact.values:
            return spaces.Discrete(len(fact.values))
        if fact.name in ("step", "words_left"):
            return spaces.Discrete(self.config.horizon + 1)
        return spaces.Discrete(2**32, start=-(2**31))

    @property
    def words_said(self) -> int:
        return len(self.said)

    @property
    def words_left(self) -> int:
        return max(0, self._horizon - self.words_said)

    @property
    def last_action(self) -> int:
        return self.said[-1] if self.said else len(self.vocabulary)

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
        asked = self.world.reset(self.episode_seed)
        self.instruction = self.world.spec.instructions.choose(asked, self.episode_seed)
        self._horizon = horizon
        self.said = []
        self._pictures.clear()
        self._stage = 0
        self._success = False
        self._take_up(actions)
        self._is_over = self._success or self.words_left == 0
        self.seconds["physics"] += time.perf_counter() - began
        return self._observe(), self._info()

    def _checked_horizon(self, wanted: Any) -> int:
        if wanted is None:
            return self.config.horizon
        if not isinstance(wanted, int | np.integer) or wanted < 1:
            raise UserError(f"horizon: {wanted!r}: expected a whole number of words from 1 up")
        return min(self.config.horizon, int(wanted))

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Say one word.

        Raises:
            UserError: There is no word with that index, or a function of the recipe's own gives
                what cannot be used.
            gymnasium.error.ResetNeeded: The episode is over, or was never begun.
        """
        if self._is_over:
            raise ResetNeeded("the episode is over: reset() begins another one")
        began = time.perf_counter()
        reward, happened = self._say(action)
        self.seconds["physics"] += time.perf_counter() - began
        terminated = self._success or happened.terminated
        truncated = (self.words_left == 0 or happened.truncated) and not terminated
        self._is_over = terminated or truncated
        return self._observe(), reward, terminated, truncated, self._info()

    def _take_up(self, actions: list[int]) -> None:
        """Go to where these words lead, from a moment on the way that is kept; look at the last."""
        seen_from = max(0, len(actions) - self.config.history + 1)
        said, moment = self.moments.latest(self.episode_seed, actions[:seen_from])
        if moment is not None:
            self.world.restore(moment.world)
            self.said = actions[:said]
            self._stage, self._success = moment.stage, moment.success
        while self.words_said < len(actions):
            if self.words_said >= seen_from:
                self._look()
            self._say(actions[self.words_said])
            if self.world.spec.can_be_restored:
                moment = Moment(self.world.snapshot(), self._stage, self._success)
                self.moments.keep(self.episode_seed, actions[: self.words_said], moment)

    def _say(self, action: np.int64 | int) -> tuple[float, Happening]:
        """Change the world by one word; the reward, and what happened."""
        happened = self.world.say(self.vocabulary.meaning(action), self.words_said)
        self.said.append(int(action))
        self._success = happened.success
        if self._own_success is not None:
            own = self._call("success", self._own_success, self.world.env, happened.info)
            self._success = bool(own)
        self._stage = max(self._stage, self._stage_of(happened))
        return self._reward(happened), happened

    def _stage_of(self, happened: Happening) -> int:
        """How many stages the present state has reached."""
        stages = self.world.spec.stages
        if self._success:
            return len(stages)
        return 0 if happened.stage in (None, NO_STAGE) else stages.index(happened.stage) + 1

    def _reward(self, happened: Happening) -> float:
        if self._own_reward is None:
            reward: Any = self.world.reward(self._success)
        else:
            info = {**happened.info, **self._info()}
            reward = self._call("reward", self._own_reward, self.world.env, info, self._success)
        try:
            value = float(reward)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise UserError(
                f"reward: {self.config.reward} gave {reward!r} {self._place}; expected a finite "
                "number"
            )
        return value

    def _call(self, key: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function of the recipe's own gives."""
        try:
            return function(*arguments)
        except Exception as error:
            raise UserError(
                f"{key}: {getattr(self.config, key)} failed {self._place}: "
                f"{type(error).__name__}: {error}"
            ) from error

    @property
    def _place(self) -> str:
        return f"at word {self.words_said} of the episode of seed {self.episode_seed}"

    def _look(self) -> np.ndarray:
        """Look at the present state; what is seen now, with what has been seen before."""
        began = time.perf_counter()
        self._pictures.append(self.world.picture())
        self.seconds["rendering"] += time.perf_counter() - began
        if self.config.history == 1:
            return self._pictures[-1]
        missing = self.config.history - len(self._pictures)
        return np.concatenate([*missing * [self._pictures[0]], *self._pictures])

    def _observe(self) -> Observation:
        self._frame = self._look()
        told = {fact.name: np.int64(fact.read(self)) for fact in self.facts if fact.read}
        return {"image": self._frame, **told}

    def _info(self) -> dict[str, Any]:
        return {
            "is_success": self._success,
            "stage": (NO_STAGE, *self.world.spec.stages)[self._stage],
            "seed": self.episode_seed,
            "goal": self.world.spec.instructions.goal(self.instruction),
            **self.world.about(),
        }

    def privileged_state(self) -> np.ndarray:
        """What a critic may know, float32 (S,), as ``world.spec.privileged_names`` say."""
        return self.world.privileged_state()

    def digest(self) -> bytes:
        """A hash of the present state and its picture, to tell whether a replay is one."""
        parts = (*self.world.state_bytes(), self._frame.tobytes())
        return hashlib.blake2b(b"".join(parts), digest_size=16).digest()

    def render(self) -> np.ndarray | None:
        """What is seen, uint8 (H, W, 3), if ``render_mode`` is ``rgb_array``."""
        return self.world.picture() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Free the world."""
        self.world.close()


class ExpertEnv(LanguageActionEnv):
    """Adds to each ``info`` what the expert would have said: ``expert_action``.

    It is about the state that the word was said in. Whoever teaches may read it; it is no part of
    the observation.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._expert = self.world.expert()

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Say one word."""
        expert_action = self._expert.act()
        *results, info = super().step(action)
        return *results, info | {"expert_action": expert_action}  # type: ignore[return-value]
