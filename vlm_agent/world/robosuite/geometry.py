"""Where a robosuite object's surface is, and from which side a hand can grasp it."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlm_agent.world.robosuite.names import import_mujoco

CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])


def bounds(sim: Any, thing: Any) -> tuple[np.ndarray, np.ndarray]:
    """Centre and half sizes (3,) of the box around an object, along the world's axes."""
    model, data = sim.model._model, sim.data._data
    geoms = [sim.model.geom_name2id(name) for name in thing.contact_geoms]
    rotations = data.geom_xmat[geoms].reshape(-1, 3, 3)
    boxes = model.geom_aabb[geoms]
    centres = data.geom_xpos[geoms] + np.einsum("gij,gj->gi", rotations, boxes[:, :3])
    halves = np.einsum("gij,gj->gi", np.abs(rotations), boxes[:, 3:])
    low, high = (centres - halves).min(0), (centres + halves).max(0)
    return (low + high) / 2, (high - low) / 2


def hull_points(sim: Any, thing: Any) -> np.ndarray:
    """World positions (N, 3) of points whose convex hull is the object: vertices of its meshes,
    and the corners of the boxes around its other parts."""
    model, data = sim.model._model, sim.data._data
    mesh_type = import_mujoco().mjtGeom.mjGEOM_MESH
    found = []
    for name in thing.contact_geoms:
        geom = sim.model.geom_name2id(name)
        if model.geom_type[geom] == mesh_type:
            mesh = model.geom_dataid[geom]
            first, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
            points = model.mesh_vert[first : first + count]
        else:
            centre, half = np.split(model.geom_aabb[geom], 2)
            points = centre + CORNERS * half
        found.append(data.geom_xpos[geom] + points @ data.geom_xmat[geom].reshape(3, 3).T)
    return np.concatenate(found)
