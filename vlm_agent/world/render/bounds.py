"""Bounding boxes of geoms, several for large meshes, and where they stand in a camera's view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_agent.world.robosuite.names import import_mujoco

SPLIT_FACES = 1000
"""Meshes with more faces than this get several bounding boxes."""

MAX_PARTS = 32
"""The most bounding boxes of one mesh."""


CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float).T
"""(3, 8): the corners of a box, as signs of its half-sizes."""

_HALVES = (np.eye(2)[[[0, 1]]] + np.eye(2)[[[0], [1]]]) / 2
_OCTANTS = np.einsum("iax,jby,kcz->abcijkxyz", *[_HALVES] * 3).reshape(8, 8, 8)
"""(corner, eighth, corner of the whole): the corners of a box's eighths as means of its own."""


@dataclass(frozen=True)
class Poses:
    """Where all geoms stand in view coordinates: rotations (G, 3, 3) and positions (G, 3)."""

    rotations: np.ndarray
    positions: np.ndarray


@dataclass(frozen=True)
class PlacedBoxes:
    """Bounding boxes in view coordinates: whose they are (P,), and their corners (3, 8, P)."""

    geoms: np.ndarray
    corners: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> PlacedBoxes:
        return PlacedBoxes(self.geoms[chosen], self.corners[:, :, chosen])

    def __add__(self, other: PlacedBoxes) -> PlacedBoxes:
        return PlacedBoxes(
            np.concatenate([self.geoms, other.geoms]),
            np.concatenate([self.corners, other.corners], 2),
        )

    def eighths(self) -> PlacedBoxes:
        """Each box cut into eight."""
        corners = _OCTANTS.reshape(64, 8) @ self.corners  # (3, 8 corners · 8 eighths, P)
        return PlacedBoxes(np.tile(self.geoms, 8), corners.reshape(3, 8, -1))


class GeomBoxes:
    """Bounding boxes in their geoms' own frames: whose (P,), and their corners (P, 3, 8)."""

    def __init__(self, geoms: np.ndarray, boxes_P23: np.ndarray) -> None:
        self.geoms = geoms
        self.corners = boxes_P23[:, 0, :, None] + CORNERS * boxes_P23[:, 1, :, None]

    def of(self, geoms: np.ndarray | slice, poses: Poses) -> PlacedBoxes:
        """The boxes of some geoms, where they stand in the view."""
        chosen = np.isin(self.geoms, geoms) if isinstance(geoms, np.ndarray) else geoms
        owners = self.geoms[chosen]
        corners = poses.rotations[owners] @ self.corners[chosen] + poses.positions[owners, :, None]
        return PlacedBoxes(owners, np.ascontiguousarray(corners.transpose(1, 2, 0)))


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
