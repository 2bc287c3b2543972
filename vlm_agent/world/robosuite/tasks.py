"""What is particular to a task: its sentence for the prompt and the object it is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


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
    """One robosuite task.

    Attributes:
        description: The task in a sentence, the default of the prompt's ``{{ task }}``.
        target: From the robosuite environment to the object that is to be handled; ``None`` where
            a task has no such object, and then only success counts as a stage.
        goal: From the environment to the place where the object belongs, if it has one.
    """

    description: str
    target: Callable[[Any], Any] | None = None
    goal: Callable[[Any], Goal] | None = None


def _pick_place_object(env: Any) -> Any:
    return env.objects[env.object_id]


def _bin(env: Any) -> Goal:
    """A quarter of the second bin; the object may fall into it from above the walls."""
    position = np.array(env.target_bin_placements[env.object_id])
    wall = env.bin2_pos[2] + 0.1
    margin = 0.05  # the object's radius, and some room for it to sway
    return Goal(position, np.array(env.bin_size[:2]) / 4 - margin, wall, release=np.inf)


def _pick_place(name: str) -> Task:
    return Task(f"Pick up the {name} and put it into its bin.", _pick_place_object, _bin)


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
    "Lift": Task("Lift the red cube off the table.", lambda env: env.cube),
    "Stack": Task("Put the red cube on the green cube.", lambda env: env.cubeA, _on_cube),
    "Door": Task("Open the door."),
}


def get_task(name: str) -> Task:
    """The task of that robosuite name; any other task is described by its name alone."""
    return TASKS.get(name, Task(f"Solve the task {name}."))
