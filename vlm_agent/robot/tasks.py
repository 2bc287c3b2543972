"""What is particular to a task: its sentence for the prompt and the object it is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Task:
    """One robosuite task.

    Attributes:
        description: The task in a sentence, the default of the prompt's ``{{ task }}``.
        target: From the robosuite environment to the object that is to be handled; ``None`` where
            a task has no such object, and then only success counts as a stage.
        goal: From the environment to the place (3,) where the object belongs, if it has one.
    """

    description: str
    target: Callable[[Any], Any] | None = None
    goal: Callable[[Any], np.ndarray] | None = None


def _pick_place_object(env: Any) -> Any:
    return env.objects[env.object_id]


def _bin_centre(env: Any) -> np.ndarray:
    return np.array(env.target_bin_placements[env.object_id])


def _pick_place(name: str) -> Task:
    return Task(f"Pick up the {name} and put it into its bin.", _pick_place_object, _bin_centre)


TASKS: dict[str, Task] = {
    "PickPlaceCan": _pick_place("can"),
    "PickPlaceMilk": _pick_place("milk carton"),
    "PickPlaceBread": _pick_place("bread"),
    "PickPlaceCereal": _pick_place("cereal box"),
    "Lift": Task("Lift the red cube off the table.", lambda env: env.cube),
    "Stack": Task("Put the red cube on the green cube.", lambda env: env.cubeA),
    "Door": Task("Open the door."),
}


def get_task(name: str) -> Task:
    """The task of that robosuite name; any other task is described by its name alone."""
    return TASKS.get(name, Task(f"Solve the task {name}."))
