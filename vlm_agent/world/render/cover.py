"""What hides things from a camera: boxes in the scene, and what the camera is mounted on.

Both answer for bounding boxes, given by their eight corners in view coordinates (camera at the
origin, x to the right, y up, looking along −z). They are conservative: "hidden" is certain.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import maximum_filter1d

from vlm_agent.world.render.bounds import CORNERS, mesh_triangles
from vlm_agent.world.robosuite.names import import_mujoco

MARGIN = 1e-3
"""By how much boxes are taken smaller than they are, in metres."""

_PAIRS = [(i, i ^ bit) for i in range(8) for bit in (1, 2, 4)]
_EDGES = np.array(_PAIRS).T
"""(2, 24): the corners at both ends of each edge of a box, in both directions."""

MASK_SIZE = 1024
"""Pixels along the side of the picture of the camera's mount."""

MASK_MARGIN = 3
"""Pixels by which that picture is taken smaller than it is drawn."""


def dot(vector: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Scalar products of a vector (3,) with points (3, …)."""
    return (vector @ points.reshape(3, -1)).reshape(points.shape[1:])


@dataclass(frozen=True)
class Boxes:
    """K opaque boxes, as rotations (K, 3, 3) into view coordinates, centres and halves (K, 3)."""

    rotations: np.ndarray
    centres: np.ndarray
    halves: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> Boxes:
        return Boxes(self.rotations[chosen], self.centres[chosen], self.halves[chosen])

    def corners(self) -> np.ndarray:
        """Their corners (3, 8, K)."""
        offsets = self.rotations @ (CORNERS * self.halves[..., None])
        return (offsets + self.centres[..., None]).transpose(1, 2, 0)

    def in_front_of(self, point: np.ndarray, normal: np.ndarray) -> Boxes:
        """Those that stand entirely on the normal's side of a plane."""
        heights = dot(normal, self.corners()) - point @ normal
        return self[(heights > -MARGIN).all(0)]

    def hide(self, corners_3EP: np.ndarray) -> np.ndarray:
        """Sets (P,) for which one of the boxes cuts the lines from the camera to all E points.

        The points that one convex body hides form a convex set, so the hull of the points is
        hidden too. A line is cut where it runs between all three pairs of a box's sides at once.
        """
        turned = self.rotations.transpose(0, 2, 1)  # into each box's own frame
        towards = turned @ corners_3EP.reshape(3, -1)  # (K, 3, E·P)
        camera = -(turned @ self.centres[..., None])
        halves = self.halves[..., None] - MARGIN
        with np.errstate(divide="ignore", invalid="ignore"):
            first, second = (-halves - camera) / towards, (halves - camera) / towards
        enter = np.minimum(first, second).max(1)
        leave = np.maximum(first, second).min(1)
        cut = (enter > 0) & (enter <= leave) & (enter < 1)
        return cut.reshape(len(cut), *corners_3EP.shape[1:]).all(1).any(0)


@dataclass(frozen=True)
class Strip:
    """A strip along one side of the picture in which nothing beyond a distance is ever seen.

    Attributes:
        normal: (3,), of the plane through the camera that bounds it; points p with
            ``normal @ p < 0`` are in the strip.
        depth: That distance, in metres along the view.
    """

    normal: np.ndarray
    depth: float

    def hide(self, corners_38P: np.ndarray) -> np.ndarray:
        """Boxes (P,) that lie entirely behind it."""
        inside = dot(self.normal, corners_38P) < 0
        return inside.all(0) & self._is_beyond(corners_38P)

    def clip(self, corners_38P: np.ndarray) -> np.ndarray:
        """Points (3, 24, P) whose hull contains what of each box is not behind the strip.

        These are the ends of the box's edges, moved to the strip's bounding plane where only the
        other end is outside of the strip. Where both are inside, a point of the box that is
        outside takes their place. Boxes that are not beyond the strip's distance stay whole.
        """
        height = dot(self.normal, corners_38P)
        near, far = corners_38P[:, _EDGES[0]], corners_38P[:, _EDGES[1]]
        here, there = height[_EDGES[0]], height[_EDGES[1]]
        move = (here < 0) & self._is_beyond(corners_38P)
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(move & (there > 0), here / (here - there), 0.0)
        points = near + share * (far - near)
        outside = np.take_along_axis(corners_38P, height.argmax(0)[None, None], 1)
        return np.where(move & (there <= 0), outside, points)

    def _is_beyond(self, corners_38P: np.ndarray) -> np.ndarray:
        return (corners_38P[2] < -self.depth).all(0)


def find_strip(triangles_F33: np.ndarray, tangent: float, near: float) -> Strip:
    """The widest strip that is always filled by what the camera is mounted on.

    A camera in the hand sees the hand, always in the same place. It is drawn once, from the front
    faces of the meshes that are rigidly joined to the camera.

    Args:
        triangles_F33: Those meshes' triangles, in view coordinates.
        tangent: Tangent of half the camera's angle of view.
        near: Distance of the near plane.
    """
    depth = -triangles_F33[..., 2]
    edges = triangles_F33[:, 1:] - triangles_F33[:, :1]
    normals = np.cross(edges[:, 0], edges[:, 1])
    faces_camera = (normals * triangles_F33[:, 0]).sum(-1) < 0
    drawn = triangles_F33[faces_camera & (depth > near).all(-1)]
    places = drawn[..., :2] / -drawn[..., 2:] / tangent
    is_near = (places.max(1) > -1) & (places.min(1) < 1)
    drawn, places = drawn[is_near.all(-1)], places[is_near.all(-1)]
    picture = Image.new("1", (MASK_SIZE, MASK_SIZE))
    brush = ImageDraw.Draw(picture)
    for triangle in (places + 1) * MASK_SIZE / 2:
        brush.polygon([tuple(corner) for corner in triangle], fill=1)
    # A column or row counts as filled only if those beside it are, too. Row 0 is the lowest.
    free = ~np.asarray(picture)
    if not free.any():
        free[0, 0] = True  # it fills all of the picture; there is a strip nevertheless
    columns, rows = (
        np.flatnonzero(maximum_filter1d(free.any(axis), 2 * MASK_MARGIN + 1, mode="nearest"))
        for axis in (0, 1)
    )
    widths = [columns[0], MASK_SIZE - 1 - columns[-1], rows[0], MASK_SIZE - 1 - rows[-1]]
    side = int(np.argmax(widths))
    axis, sign = side // 2, 1 - 2 * (side % 2)  # left, right, lower, upper
    normal = np.zeros(3)
    normal[axis], normal[2] = sign, (widths[side] * 2 / MASK_SIZE - 1) * tangent
    return Strip(normal, -drawn[..., 2].min(initial=0.0))


def is_mounted(model: Any, camera_id: int) -> np.ndarray:
    """The geoms (G,) that are rigidly joined to a moving camera."""
    body = model.body_weldid[model.cam_bodyid[camera_id]]
    return (model.body_weldid[model.geom_bodyid] == body) & (body > 0)


class Mount:
    """What is rigidly joined to a camera: where in the picture it is depends on the camera alone.

    Args:
        model: A ``mujoco.MjModel``.
        data: The ``mujoco.MjData``, with up-to-date kinematics of any state.
        camera_id: The camera.
        mounted: bool (G,), opaque geoms that are joined to it.
    """

    def __init__(self, model: Any, data: Any, camera_id: int, mounted: np.ndarray) -> None:
        self._mujoco, self._model, self._camera_id = import_mujoco(), model, camera_id
        meshes = model.geom_type == self._mujoco.mjtGeom.mjGEOM_MESH
        triangles = [
            mesh_triangles(model, g) @ data.geom_xmat[g].reshape(3, 3).T + data.geom_xpos[g]
            for g in np.flatnonzero(mounted & meshes)
        ]
        world = np.concatenate([np.empty((0, 3, 3)), *triangles])
        body = model.cam_bodyid[camera_id]
        self._triangles = (world - data.xpos[body]) @ data.xmat[body].reshape(3, 3)
        edges = self._triangles[:, 1:] - self._triangles[:, :1]
        self._normals = np.cross(edges[:, 0], edges[:, 1])
        self._heights = (self._normals * self._triangles[:, 0]).sum(-1)

    def strip(self) -> Strip:
        """:func:`find_strip` of the camera as it stands on its body now."""
        model, camera_id = self._model, self._camera_id
        place, axes = model.cam_pos[camera_id], np.empty(9)
        self._mujoco.mju_quat2Mat(axes, model.cam_quat[camera_id])
        faces_camera = self._normals @ place > self._heights
        in_view = (self._triangles[faces_camera] - place) @ axes.reshape(3, 3)
        tangent = np.tan(np.radians(model.cam_fovy[camera_id]) / 2)
        return find_strip(in_view, tangent, model.vis.map.znear * model.stat.extent)
