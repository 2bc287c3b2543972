"""``GymWorld``: any Gymnasium environment, moved by words."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from vlm_agent.common.errors import UserError
from vlm_agent.world.actions import Choice, Meaning, Push
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.contract import Expert, Happening, Spectator, World
from vlm_agent.world.gym.declaration import Declared, declare_gym
from vlm_agent.world.gym.making import make_gym
from vlm_agent.world.gym.picture import RENDER, Picture


class GymWorld(World):
    """Any Gymnasium environment, moved by words.

    What it declares is said in :mod:`vlm_agent.world.gym.declaration`.

    Args:
        config: The settings; ``env`` names the environment.

    Attributes:
        info: Its last ``info``.

    Raises:
        UserError: It cannot be made, or the words do not fit its action space.
    """

    def __init__(self, config: EnvConfig) -> None:
        self.config = config
        self._env = make_gym(config)
        self.declared = Declared(self._env)
        self.spec = declare_gym(self.declared, config)
        self._picture = Picture(self.env, config.picture, config.frame_size)
        self.info: Mapping[str, Any] = {}
        self._observation: Any = None
        self._reward = 0.0
        self._vector: np.ndarray | None = None

    @property
    def env(self) -> gym.Env:
        """The environment."""
        return self._env

    def reset(self, seed: int) -> str | None:
        """Begin the episode of that seed; what ``info["instruction"]`` says is what it asks for."""
        self._observation, self.info = self.env.reset(seed=seed)
        self._reward = 0.0
        self._vector = None
        asked = self.info.get("instruction")
        return None if asked is None else str(asked)

    def say(self, meaning: Meaning, number: int) -> Happening:
        """Hold what a word means for as many steps as it says, or until the episode ends."""
        del number
        action, repeat = self._action(meaning)
        self._reward = 0.0
        terminated = truncated = False
        for _ in range(repeat):
            self._observation, reward, terminated, truncated, self.info = self.env.step(action)
            self._reward += float(reward)
            if terminated or truncated:
                break
        success = self._is_success(bool(terminated), float(reward))
        return Happening(success, bool(terminated), bool(truncated), self._stage(), self.info)

    def _action(self, meaning: Meaning) -> tuple[Any, int]:
        """What the environment is given, and how often."""
        if isinstance(meaning, Choice):
            return meaning.number, meaning.repeat
        assert isinstance(meaning, Push)
        space = self.env.action_space
        before = np.zeros(space.shape, space.dtype) if self._vector is None else self._vector
        parts = zip(meaning.vector, before.ravel(), strict=True)
        vector = [kept if part is None else part for part, kept in parts]
        self._vector = np.array(vector, space.dtype).reshape(space.shape)
        return self._vector.copy(), meaning.repeat

    def _is_success(self, terminated: bool, reward: float) -> bool:
        for key in ("is_success", "success"):
            if key in self.info:
                return bool(self.info[key])
        return terminated and reward > 0

    def _stage(self) -> str | None:
        stage = self.info.get("stage")
        if stage is not None and stage not in ("none", *self.spec.stages):
            raise UserError(
                f"stages: info['stage'] is {stage!r}; expected one of those that the environment "
                f"declares: {', '.join(self.spec.stages[:-1]) or 'there are none'}"
            )
        return stage

    def reward(self, success: bool) -> float:
        """The environment's own rewards of the word's steps, added up; or 1 on success."""
        return float(success) if self.config.reward == "sparse" else self._reward

    def picture(self) -> np.ndarray:
        """The frame of the present state, uint8 (frame_size, frame_size, 3)."""
        return self._picture.take(self._observation)

    def state_bytes(self) -> Iterable[bytes]:
        """The last observation and reward: all that is known of the state."""
        yield pickle.dumps((_plain(self._observation), self._reward))

    def privileged_state(self) -> np.ndarray:
        """What ``privileged_state()`` of the environment says, float32 (S,)."""
        if not self.spec.privileged_names:
            return super().privileged_state()
        state = np.asarray(self.declared.get("privileged_state")(), np.float32)
        if state.shape != (expected := (len(self.spec.privileged_names),)):
            raise UserError(
                f"value_input: privileged_state() has the shape {state.shape}, but "
                f"privileged_names has {expected[0]} names"
            )
        return state

    def expert(self) -> Expert:
        """Says what ``expert_word()`` of the environment says."""
        self.spec.check_expert()
        return _OwnExpert(self)

    def snapshot(self) -> Any:
        """What ``snapshot()`` of the environment gives, and what is known of the state here."""
        own = self.declared.get("snapshot")()
        return own, self._observation, dict(self.info), self._reward, self._vector

    def restore(self, snapshot: Any) -> None:
        """Be as at that moment of this episode."""
        own, self._observation, self.info, self._reward, self._vector = snapshot
        self.declared.get("restore")(own)

    def spectator(self, side: int, camera: str | None = None) -> Spectator | None:
        """What ``render()`` shows, where the policy sees something else."""
        if camera is not None:
            return super().spectator(side, camera)
        if self._picture.source == RENDER or self.env.render_mode != "rgb_array":
            return None
        return _Rendered(Picture(self.env, RENDER, side))

    def close(self) -> None:
        """Close the environment."""
        self.env.close()


class _OwnExpert:
    def __init__(self, world: GymWorld) -> None:
        self.world = world

    def act(self) -> int:
        """The action index of the word that the environment's ``expert_word()`` names."""
        word = self.world.declared.get("expert_word")()
        vocabulary = self.world.spec.vocabulary
        return vocabulary.index(word) if isinstance(word, str) else vocabulary.checked(word)


class _Rendered:
    def __init__(self, picture: Picture) -> None:
        self.picture = picture

    def frame(self) -> np.ndarray:
        """What ``render()`` shows now."""
        return self.picture.take(None)

    def close(self) -> None:
        """Nothing to free: the environment renders."""


def _plain(what: Any) -> Any:
    """Observations as what pickles to the same bytes whenever they are equal."""
    if isinstance(what, Mapping):
        return [(str(key), _plain(what[key])) for key in sorted(what, key=str)]
    if isinstance(what, tuple | list):
        return [_plain(part) for part in what]
    if isinstance(what, np.ndarray | np.generic):
        return (str(what.dtype), what.shape, what.tobytes())
    return repr(what)
