"""robosuite: imported quietly, which tasks and arms words can move, and a task made."""

from __future__ import annotations

import logging
import types
from collections.abc import Callable
from typing import Any

from vlm_agent.common.errors import UserError, unknown_name
from vlm_agent.world.config import CONTROL_HZ
from vlm_agent.world.modules import import_named
from vlm_agent.world.render.gl import missing_library, settle_backend

SHARED_SCENES: dict[str, tuple[str, ...]] = {"PickPlace": ("can", "milk", "bread", "cereal")}
"""robosuite environments with several objects, and the names of those that a task may be about:
``PickPlace/milk`` is a task in ``PickPlace``."""


def import_robosuite() -> types.ModuleType:
    """Import robosuite without its import-time warnings about optional parts.

    Also settles the rendering backend (:func:`vlm_agent.world.render.gl.settle_backend`).

    Raises:
        UserError: The backend's library is not here.
    """
    settle_backend()
    logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
    try:
        import robosuite
    except (ImportError, AttributeError, OSError):  # of MuJoCo's and PyOpenGL's import
        if problem := missing_library():
            raise UserError(problem) from None
        raise
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

    names = [name for name, cls in REGISTERED_ENVS.items() if _is_one_arm(cls)]
    parts = [f"{name}/{part}" for name, shared in SHARED_SCENES.items() for part in shared]
    return sorted([*names, *parts])


def scene_name(task: str) -> str:
    """The name of the environment that a task is in: tasks of one name can share a simulation."""
    return task.partition("/")[0]


def environment_class(task: str) -> type[Any]:
    """The robosuite environment that a task is in.

    Args:
        task: One of :func:`task_names`, or ``module:Class``, a robosuite environment of the
            user's own.

    Raises:
        UserError: There is no such task or module, or the class is no robosuite environment of
            one arm.
    """
    if ":" in task:
        return _own_class(task)
    known = task_names()
    from robosuite.environments.base import REGISTERED_ENVS

    if task not in known and task in REGISTERED_ENVS:
        raise UserError(f"{task!r} is a robosuite task for two arms, and words move one")
    if task not in known:
        raise UserError(unknown_name("one-arm robosuite task", task, known))
    found: type[Any] = REGISTERED_ENVS[scene_name(task)]
    return found


def _own_class(task: str) -> type[Any]:
    import_robosuite()
    try:
        found = import_named("task", task)
    except UserError as error:
        raise UserError(str(error).removeprefix("task: ")) from None
    if not isinstance(found, type) or not _is_one_arm(found):
        raise UserError(
            f"{task!r}: expected a class that is a robosuite environment of one arm, a subclass "
            "of robosuite's ManipulationEnv"
        )
    return found


def _is_one_arm(cls: type[Any]) -> bool:
    from robosuite.environments.manipulation.manipulation_env import ManipulationEnv
    from robosuite.environments.manipulation.two_arm_env import TwoArmEnv

    return issubclass(cls, ManipulationEnv) and not issubclass(cls, TwoArmEnv)


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
    import_robosuite()
    problems = {}
    try:
        environment_class(task)
    except UserError as error:
        problems["task"] = str(error)
    known = robot_names()
    if robot not in known:
        from robosuite.robots import ROBOT_CLASS_MAPPING

        problems["robot"] = (
            f"{robot!r} has two arms or a base that moves, and words move one arm on a fixed base: "
            + ", ".join(known)
            if robot in ROBOT_CLASS_MAPPING
            else unknown_name("robosuite arm", robot, known)
        )
    return problems


def make_robosuite(task: str, robot: str, edit: Callable[[Any], Any] | None = None) -> Any:
    """The robosuite environment: no renderer, no observables' camera, absolute world targets.

    Args:
        task: As for :func:`environment_class`.
        robot: robosuite arm.
        edit: What to make of the environment before it is used.
    """
    cls = environment_class(task)
    from robosuite.controllers import load_composite_controller_config

    config = load_composite_controller_config(controller=None, robot=robot)
    arm = config["body_parts"]["right"]
    arm.update(type="OSC_POSE", input_type="absolute", input_ref_frame="world")
    config["body_parts"] = {"right": arm}
    env = cls(
        robots=robot,
        controller_configs=config,
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        use_object_obs=False,
        reward_shaping=True,
        hard_reset=False,
        ignore_done=True,
        control_freq=CONTROL_HZ,
        # Sizes that robosuite draws once, when the scene is built (Lift's cube), must not vary.
        seed=0,
    )
    return env if edit is None else edit(env)
