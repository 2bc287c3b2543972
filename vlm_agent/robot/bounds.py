"""Bounding boxes around the parts of large meshes."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlm_agent.robot.names import import_mujoco

SPLIT_FACES = 1000
"""Meshes with more faces than this get several bounding boxes."""

MAX_PARTS = 32
"""The most bounding boxes of one mesh."""


def is_large(model: Any, geom: int) -> bool:
    """Whether a geom is a mesh with so many faces that one bounding box is too coarse."""
    if model.geom_type[geom] != import_mujoco().mjtGeom.mjGEOM_MESH:
        return False
    return bool(model.mesh_facenum[model.geom_dataid[geom]] > SPLIT_FACES)


def mesh_triangles(model: Any, geom: int) -> np.ndarray:
    """The triangles (F, 3, 3) of a mesh geom, in its own frame."""
    mesh = model.geom_dataid[geom]
    first, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
    vertices = model.mesh_vert[model.mesh_vertadr[mesh] :]
    return vertices[model.mesh_face[first : first + count]].astype(float)


def bounding_boxes(model: Any, geom: int) -> np.ndarray:
    """Boxes (n, 2, 3) in a mesh geom's own frame, centre and half-size, that contain it together.

    The triangles are put into heaps, cutting the largest heap in the middle again and again.
    """
    heaps = [mesh_triangles(model, geom)]
    extents = [np.ptp(heaps[0], axis=(0, 1))]
    while len(heaps) < MAX_PARTS and np.max(extents) > 0:
        largest = int(np.max(extents, 1).argmax())
        heap, axis = heaps[largest], extents[largest].argmax()
        centres = heap[..., axis].mean(1)
        middle = (heap[..., axis].min() + heap[..., axis].max()) / 2
        if not centres.min() < middle <= centres.max():
            middle = np.median(centres)  # a few long triangles on one side
        halves = [half for half in (heap[centres < middle], heap[centres >= middle]) if len(half)]
        heaps[largest : largest + 1] = halves
        extents[largest : largest + 1] = [np.ptp(half, axis=(0, 1)) for half in halves]
        if len(halves) == 1:
            extents[largest] = np.zeros(3)  # it cannot be cut
    low = np.array([heap.min((0, 1)) for heap in heaps])
    high = np.array([heap.max((0, 1)) for heap in heaps])
    return np.stack([(low + high) / 2, (high - low) / 2], 1)
