"""robosuite, imported quietly, and the names of the tasks and arms that words can move."""

from __future__ import annotations

import logging
import types

from vlm_agent.common.errors import unknown_name
from vlm_agent.world.render.gl import settle_backend


def import_robosuite() -> types.ModuleType:
    """Import robosuite without its import-time warnings about optional parts.

    Also settles the rendering backend (:func:`vlm_agent.world.render.gl.settle_backend`).
    """
    settle_backend()
    logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
    import robosuite

    return robosuite


def import_mujoco() -> types.ModuleType:
    """MuJoCo, with the rendering backend settled; see :func:`import_robosuite`."""
    import_robosuite()
    import mujoco

    return mujoco


def task_names() -> list[str]:
    """The robosuite tasks that are made for one arm."""
    import_robosuite()
    from robosuite.environments.base import REGISTERED_ENVS
    from robosuite.environments.manipulation.two_arm_env import TwoArmEnv

    return sorted(name for name, cls in REGISTERED_ENVS.items() if not issubclass(cls, TwoArmEnv))


def robot_names() -> list[str]:
    """The robosuite robots with a fixed base and one arm."""
    import_robosuite()
    from robosuite.robots import ROBOT_CLASS_MAPPING
    from robosuite.robots.fixed_base_robot import FixedBaseRobot

    two_armed = {"Baxter"}
    fixed = {n for n, cls in ROBOT_CLASS_MAPPING.items() if issubclass(cls, FixedBaseRobot)}
    return sorted(fixed - two_armed)


def name_problems(task: str, robot: str) -> dict[str, str]:
    """What is wrong with a task and a robot name: setting -> sentence. Empty if nothing is."""
    problems = {}
    if task not in task_names():
        problems["task"] = unknown_name("one-arm robosuite task", task, task_names())
    if robot not in robot_names():
        problems["robot"] = unknown_name("robosuite arm", robot, robot_names())
    return problems
