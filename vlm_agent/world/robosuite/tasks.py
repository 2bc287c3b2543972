"""What is particular to a task: its sentence for the prompt and the object it is about."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_agent.common.errors import UserError
from vlm_agent.world.robosuite.names import environment_class


@dataclass(frozen=True)
class Goal:
    """Where the object of a task belongs.

    Attributes:
        position: World position (3,) of the middle of the place, in metres.
        tolerance: How far from there, forward and left (2,), the object may be let go.
        wall: World height of what stands in the way, over which the object is carried.
        release: World height below which the object's lowest point has to be to be let go.
    """

    position: np.ndarray
    tolerance: np.ndarray
    wall: float
    release: float


@dataclass(frozen=True)
class Task:
    """One robosuite task. A robosuite environment of one's own declares one as ``vlm_task``.

    Attributes:
        description: The task in a sentence, the default of the prompt's ``{{ task }}``.
        target: From the robosuite environment to the object that is to be handled; ``None`` where
            a task has no such object, and then only success counts as a stage.
        goal: From the environment to the place where the object belongs, if it has one.
        reward: From the environment to the staged reward of its present state, in [0, 1], 1 on
            success; ``None``: what robosuite's ``reward`` says.
        success: From the environment to whether the task is done; ``None``: robosuite's.
        neighbours: From the environment to the other objects, which may be in the way.
        can_be_restored: Whether MuJoCo's state is all that the environment knows of an episode.
            robosuite's Wipe, for one, counts in Python what has been wiped.
    """

    description: str
    target: Callable[[Any], Any] | None = None
    goal: Callable[[Any], Goal] | None = None
    reward: Callable[[Any], float] | None = None
    success: Callable[[Any], bool] | None = None
    neighbours: Callable[[Any], list[Any]] | None = None
    can_be_restored: bool = False


def _pick_place_object(env: Any) -> Any:
    return env.objects[env.object_id]


def _bin(env: Any, number: int) -> Goal:
    """A quarter of the second bin; the object may fall into it from above the walls."""
    position = np.array(env.target_bin_placements[number])
    wall = env.bin2_pos[2] + 0.1
    margin = 0.05  # the object's radius, and some room for it to sway
    return Goal(position, np.array(env.bin_size[:2]) / 4 - margin, wall, release=np.inf)


def _pick_place(name: str) -> Task:
    """Robosuite's task with one of the four objects in the bin."""
    return Task(
        _put_into_bin(name),
        _pick_place_object,
        lambda env: _bin(env, env.object_id),
        can_be_restored=True,
    )


def _one_of_four(number: int, name: str) -> Task:
    """All four objects are in the bin; the other three neither count nor help."""
    return Task(
        _put_into_bin(name),
        target=lambda env: env.objects[number],
        goal=lambda env: _bin(env, number),
        reward=lambda env: _reward_of_one(env, number),
        success=lambda env: _is_in_its_bin(env, number),
        neighbours=lambda env: [other for n, other in enumerate(env.objects) if n != number],
        can_be_restored=True,
    )


def _put_into_bin(name: str) -> str:
    return f"Pick up the {name} and put it into its bin."


def _is_in_its_bin(env: Any, number: int) -> bool:
    env._check_success()  # notes which objects are where they belong
    return bool(env.objects_in_bins[number])


def _reward_of_one(env: Any, number: int) -> float:
    """Robosuite's staged reward, as if the other objects were done with."""
    if _is_in_its_bin(env, number):
        return 1.0
    env.objects_in_bins[:] = 1
    env.objects_in_bins[number] = 0
    return float(max(env.staged_rewards()))


def _on_cube(env: Any) -> Goal:
    """The top of the lower cube."""
    position = np.array(env.sim.data.body_xpos[env.cubeB_body_id])
    top = position[2] + float(env.cubeB.top_offset[2])
    return Goal(position, np.full(2, 0.017), top, top + 0.017)


TASKS: dict[str, Task] = {
    "PickPlaceCan": _pick_place("can"),
    "PickPlaceMilk": _pick_place("milk carton"),
    "PickPlaceBread": _pick_place("bread"),
    "PickPlaceCereal": _pick_place("cereal box"),
    "PickPlace/milk": _one_of_four(0, "milk carton"),
    "PickPlace/bread": _one_of_four(1, "bread"),
    "PickPlace/cereal": _one_of_four(2, "cereal box"),
    "PickPlace/can": _one_of_four(3, "can"),
    "Lift": Task("Lift the red cube off the table.", lambda env: env.cube, can_be_restored=True),
    "Stack": Task(
        "Put the red cube on the green cube.",
        lambda env: env.cubeA,
        _on_cube,
        can_be_restored=True,
    ),
    "Door": Task("Open the door.", can_be_restored=True),
}


def get_task(name: str) -> Task:
    """The task of that name; one that declares nothing is described by its name alone.

    Args:
        name: A robosuite task, or ``module:Class``, a robosuite environment of the user's own.
            What it declares is in its class attribute ``vlm_task``, a :class:`Task`; without one
            it is taken to be like the task that it is a subclass of, if that is one of
            :data:`TASKS`.

    Raises:
        UserError: There is no such class, or its ``vlm_task`` is no :class:`Task`.
    """
    if ":" not in name:
        return TASKS.get(name, Task(f"Solve the task {name}."))
    try:
        cls = environment_class(name)
    except UserError as error:
        raise UserError(f"task: {error}") from None
    declared = getattr(cls, "vlm_task", None)
    if declared is None:
        known = (TASKS[base.__name__] for base in cls.__mro__ if base.__name__ in TASKS)
        task = next(known, Task(f"Solve the task {cls.__name__}."))
        return dataclasses.replace(task, can_be_restored=False)
    if not isinstance(declared, Task):
        raise UserError(
            f"task: {name!r}: its vlm_task is {declared!r}; expected a "
            "vlm_agent.world.robosuite.tasks.Task"
        )
    return declared
