"""A Gymnasium environment from the settings that name it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.error import Error as GymnasiumError

from vlm_agent.common.errors import UserError, unknown_name
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.gym.picture import finds_picture
from vlm_agent.world.modules import import_user_module
from vlm_agent.world.render.gl import settle_backend


def make_gym(config: EnvConfig) -> gym.Env:
    """The environment of ``config.env``, with ``config.env_kwargs``.

    It can render to arrays if its picture is to be rendered, or if it offers to.

    Raises:
        UserError: There is no such module or environment, or it cannot be made so.
    """
    assert config.env is not None
    settle_backend()  # many environments draw with MuJoCo, which reads it when it is imported
    module, _, name = config.env.rpartition(":")
    if module:
        import_user_module("env", module)
    if name not in gym.registry:
        raise UserError(f"env: {_unknown(name, module)}")
    options = dict(config.env_kwargs)
    if "render_mode" in options or config.picture not in (None, "render"):
        return _make(config.env, name, options)
    if config.picture is None and not _can_render(name):
        return _make(config.env, name, options)
    env = _make(config.env, name, {**options, "render_mode": "rgb_array"})
    if config.picture is None and finds_picture(env.observation_space) and not _can_render(name):
        env.close()
        return _make(config.env, name, options)
    return env


def _unknown(name: str, module: str) -> str:
    kind = f"environment of {module!r}" if module else "Gymnasium environment"
    hint = "" if module else " (name the module that registers it, as module:Id-v0)"
    return unknown_name(kind, name, gym.registry) + hint


def _can_render(name: str) -> bool:
    """Whether the environment says that it renders to arrays."""
    point = gym.spec(name).entry_point
    try:
        creator: Any = (
            gym.envs.registration.load_env_creator(point) if isinstance(point, str) else point
        )
    except Exception:  # what is wrong with it is said when it is made
        return True
    return "rgb_array" in getattr(creator, "metadata", {}).get("render_modes", ["rgb_array"])


def _make(place: str, name: str, options: dict[str, Any]) -> gym.Env:
    try:
        return gym.make(name, disable_env_checker=True, **options)
    except UserError:
        raise
    except (TypeError, GymnasiumError) as error:
        given = sorted(options)
        raise UserError(f"env_kwargs: {place} cannot be made with {given}: {error}") from error
    except Exception as error:
        raise UserError(f"env: {place} cannot be made: {type(error).__name__}: {error}") from error
