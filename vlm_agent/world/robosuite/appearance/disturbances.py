"""``Disturbances``: what comes between a word and what it does, while an episode runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlm_agent.world.actions import Motion
from vlm_agent.world.robosuite.appearance.randomize import Ranges, turned
from vlm_agent.world.robosuite.names import import_mujoco
from vlm_agent.world.robosuite.scene import RobotScene

MOVED_AT = (4, 12)
"""The words, from the first to the last, at one of which the object is moved."""

WIDEST = np.radians(60)
"""How far from the way to the middle of what it lies on the object may be moved, in radians."""

TRIES = 8
"""How many ways are tried."""

CLEARANCE = 0.09
"""Metres that it keeps from the middle of what else can be moved."""


class Disturbances:
    """Changes what words do, and moves the object, as ``randomize`` says.

    What is drawn depends on the episode's seed and on how many words have been said, so an episode
    that is taken up goes on as it would have.

    Args:
        scene: The scene.
        values: The recipe's ``randomize``.

    Raises:
        UserError: ``randomize`` is wrong.
    """

    def __init__(self, scene: RobotScene, values: Mapping[str, Any]) -> None:
        self._scene, self._ranges = scene, Ranges(values)
        self._changes_motions = bool({"motion_scale", "motion_angle"} & set(values))
        self._moves_object = "object_moved" in values and scene.task.target is not None

    def perturb(self, motion: Motion, seed: int, number: int) -> Motion:
        """What a word does when it is said as the ``number``-th of an episode.

        How far it moves and turns is scaled, and its direction turned.
        """
        if not self._changes_motions:
            return motion
        rng = self._ranges.rng("motion_scale", seed, number)
        scale = self._ranges.draw("motion_scale", rng, 1.0)
        rng = self._ranges.rng("motion_angle", seed, number)
        angle = np.radians(self._ranges.draw("motion_angle", rng, 0.0))
        x, y, z = turned(np.array(motion.direction, float), angle, rng)
        return dataclasses.replace(
            motion,
            direction=(float(x), float(y), float(z)),
            turn=tuple(scale * degrees for degrees in motion.turn),
            distance=None if motion.distance is None else scale * motion.distance,
            steps=scale * motion.steps,
        )

    def move_object(self, seed: int, number: int) -> None:
        """Move the object along what it lies on, if the ``number``-th word is the one to do so.

        It goes towards the middle of what it lies on, more or less; it stays where it is if it is
        held, or if other things are in the way.
        """
        if not self._moves_object:
            return
        rng = self._ranges.rng("object_moved", seed)
        length = self._ranges.draw("object_moved", rng, 0.0)
        moves_now = number == rng.integers(*MOVED_AT, endpoint=True)
        if not moves_now or self._scene.is_grasped():
            return
        self._slide(length, rng)

    def _slide(self, length: float, rng: np.random.Generator) -> None:
        """Move the object by so many metres, in a direction that is drawn."""
        env = self._scene.env
        model, data = env.sim.model._model, env.sim.data._data
        free = np.flatnonzero(model.jnt_type == import_mujoco().mjtJoint.mjJNT_FREE)
        if not len(free):
            return
        places = data.qpos[model.jnt_qposadr[free][:, None] + np.arange(2)]
        here = self._scene.object_position()[:2]
        own = int(np.linalg.norm(places - here, axis=1).argmin())
        # robosuite's names for where things start; the object itself where there is no such place.
        middle = getattr(env, "bin1_pos", getattr(env, "table_offset", here))[:2]
        towards = np.arctan2(*(middle - here)[::-1])
        others = np.delete(places, own, axis=0)
        for angle in towards + rng.uniform(-WIDEST, WIDEST, TRIES):
            way = length * np.array([np.cos(angle), np.sin(angle)])
            if (np.linalg.norm(others - here - way, axis=1) > CLEARANCE).all():
                data.qpos[model.jnt_qposadr[free[own]] :][:2] += way
                env.sim.forward()
                return
