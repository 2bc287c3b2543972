"""``make_env``: an environment from a recipe's section, or from a name; and what it declares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlm_agent.world.config import EnvConfig
from vlm_agent.world.contract import World, WorldSpec
from vlm_agent.world.modules import import_function

if TYPE_CHECKING:
    from vlm_agent.world.env import LanguageActionEnv


def make_env(
    env: EnvConfig | str = "PickPlaceCan", gamma: float = 0.99, **settings: Any
) -> LanguageActionEnv:
    """A Gymnasium environment whose actions are words.

    Args:
        env: ``recipe.env``, the name of a robosuite task, or ``module:Id-v0``.
        gamma: Discount of the progress reward; the learner's own.
        settings: Single settings of :class:`EnvConfig`, e.g. ``horizon=60``.

    Raises:
        UserError: There is no such task, environment or setting.
    """
    from vlm_agent.world.env import LanguageActionEnv

    if isinstance(env, str):
        env = EnvConfig(env=env) if is_gymnasium_id(env) else EnvConfig(task=env)
    return LanguageActionEnv(env, gamma, **settings)


def is_gymnasium_id(name: str) -> bool:
    """Whether a name is one of Gymnasium's, which end with a version, and no robosuite task."""
    return name.rpartition("-v")[2].isdecimal()


def make_world(config: EnvConfig, gamma: float) -> World:
    """The world of these settings.

    Raises:
        UserError: It cannot be made; the message begins with the key.
    """
    if config.env is not None:
        from vlm_agent.world.gym.world import GymWorld

        return GymWorld(config)
    from vlm_agent.world.robosuite.world import RobotWorld

    return RobotWorld(config, gamma)


_declared: dict[str, WorldSpec] = {}


def declare(config: EnvConfig) -> WorldSpec:
    """What the world of these settings declares; robosuite's need not be made for that.

    Raises:
        UserError: There is none; the message begins with the key.
    """
    key = repr(config)
    if key not in _declared:
        _declared[key] = _find_out(config)
    return _declared[key]


def _find_out(config: EnvConfig) -> WorldSpec:
    if ":" in config.reward:
        import_function("reward", config.reward)
    if config.success is not None:
        import_function("success", config.success)
    if config.env is None:
        from vlm_agent.world.robosuite.declaration import declare_robot

        return declare_robot(config)
    world = make_world(config, gamma=0.99)
    world.close()
    return world.spec
