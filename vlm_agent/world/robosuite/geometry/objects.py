"""Where a robosuite object's surface is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.spatial import ConvexHull

from vlm_agent.world.robosuite.names import import_mujoco

CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])


def bounds(sim: Any, thing: Any) -> tuple[np.ndarray, np.ndarray]:
    """Centre and half sizes (3,) of the box around an object, along the world's axes."""
    model, data = sim.model._model, sim.data._data
    geoms = geoms_of(sim, thing)
    rotations = data.geom_xmat[geoms].reshape(-1, 3, 3)
    boxes = model.geom_aabb[geoms]
    centres = data.geom_xpos[geoms] + np.einsum("gij,gj->gi", rotations, boxes[:, :3])
    halves = np.einsum("gij,gj->gi", np.abs(rotations), boxes[:, 3:])
    low, high = (centres - halves).min(0), (centres + halves).max(0)
    return (low + high) / 2, (high - low) / 2


def hull_points(sim: Any, geoms: Sequence[int]) -> np.ndarray:
    """World positions (N, 3) of points whose convex hull holds these geoms: the vertices of
    meshes, and the corners of the boxes around others.
    """
    model, data = sim.model._model, sim.data._data
    mesh_type = import_mujoco().mjtGeom.mjGEOM_MESH
    found = []
    for geom in geoms:
        if model.geom_type[geom] == mesh_type:
            mesh = model.geom_dataid[geom]
            first, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
            points = model.mesh_vert[first : first + count]
        else:
            centre, half = np.split(model.geom_aabb[geom], 2)
            points = centre + CORNERS * half
        found.append(data.geom_xpos[geom] + points @ data.geom_xmat[geom].reshape(3, 3).T)
    return np.concatenate(found)


def corners_from_above(points: np.ndarray) -> np.ndarray:
    """Of points (N, 3), the corners of their outline seen from above, the highest, the lowest."""
    heights = points[:, 2]
    kept = {*ConvexHull(points[:, :2]).vertices, heights.argmax(), heights.argmin()}
    return points[sorted(kept)]


def geoms_of(sim: Any, thing: Any) -> list[int]:
    """The geoms of an object that others can touch."""
    return [sim.model.geom_name2id(name) for name in thing.contact_geoms]


def obstacles(sim: Any, robot_root: str, thing: Any) -> list[np.ndarray]:
    """Points (N, 3) of the hull of each geom that the hand can touch, but for an object's own.

    Args:
        sim: robosuite's simulation.
        robot_root: The body that carries the robot.
        thing: The object.
    """
    model = sim.model._model
    robot = model.body_rootid[sim.model.body_name2id(robot_root)]
    touchable = (model.geom_contype > 0) & (model.geom_conaffinity > 0)
    touchable &= model.body_rootid[model.geom_bodyid] != robot
    touchable &= model.geom_type != import_mujoco().mjtGeom.mjGEOM_PLANE
    touchable[geoms_of(sim, thing)] = False
    return [hull_points(sim, [geom]) for geom in np.flatnonzero(touchable)]
