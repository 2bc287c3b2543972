"""The plane that mirrors the scene, and the part of the picture in which it may be seen.

MuJoCo mirrors the scene in the first reflective plane or box face, no other. All coordinates are
those of the view, see :mod:`vlm_agent.world.render.cover`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlm_agent.world.render.cover import Boxes, Strip, dot

COARSE = 8
"""Cells along each side of the picture, at first."""

FINE = 4
"""Parts along each side of a cell, where a coarse one is not hidden."""


@dataclass(frozen=True)
class Mirror:
    """A mirroring plane in front of the camera.

    Attributes:
        point, normal: (3,), a point on it, and its normal on the camera's side.
        tangent: Tangent of half the camera's angle of view.
        meeting: (3, 4), where the corners of the view meet the plane; ``None`` if not all do.
        window: bool (C, C), the cells of the picture (column, row) where it may be seen.
    """

    point: np.ndarray
    normal: np.ndarray
    tangent: float
    meeting: np.ndarray | None
    window: np.ndarray

    def shows(self, corners_38P: np.ndarray, near: float) -> np.ndarray:
        """Boxes (P,) whose image in the mirror may be seen.

        Args:
            corners_38P: The boxes themselves.
            near: Where the view begins; what has corners nearer than that may be anywhere.
        """
        height = dot(self.normal, corners_38P) - self.point @ self.normal
        x, y, z = corners_38P - 2 * height * self.normal[:, None, None]
        cells = len(self.window)
        before = (z > -near).any(0)
        depth = np.where(before, 1.0, -z) * (2 * self.tangent / cells)
        free = np.pad(self.window.astype(int).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        low, high = [], []
        for across in (x, y):
            position = np.where(before, 0.0, across / depth)
            low.append((np.floor(position.min(0)) + cells // 2).clip(0, cells).astype(int))
            high.append((np.floor(position.max(0)) + cells // 2 + 1).clip(0, cells).astype(int))
        (left, lower), (right, upper) = low, high
        seen = free[right, upper] - free[left, upper] - free[right, lower] + free[left, lower]
        return before | (seen > 0)


def look_at_mirror(
    point: np.ndarray,
    normal: np.ndarray,
    tangent: float,
    cover: Boxes,
    strip: Strip,
    closely: bool = True,
) -> Mirror | None:
    """The mirror as the camera sees it; ``None`` from behind.

    A cell of the picture does not show it if one of the boxes hides all of the cell's part of the
    plane.

    Args:
        point: See :class:`Mirror`.
        normal: See :class:`Mirror`.
        tangent: See :class:`Mirror`.
        cover: Boxes that may hide it.
        strip: The strip of the picture in which it cannot be seen.
        closely: Look at each cell, and not only at the picture as a whole.
    """
    distance = point @ normal
    if distance >= 0:
        return None
    cells = COARSE * FINE
    window = np.ones((cells, cells), bool)
    meeting = _meet(np.array([[-1, -1, 1, 1], [-1, 1, -1, 1]]) * tangent, normal, distance)
    if meeting is None:
        return Mirror(point, normal, tangent, None, window)
    cover = cover.in_front_of(point, normal)
    if not closely:
        window[:] = not cover.hide(meeting[..., None])[0]
        return Mirror(point, normal, tangent, meeting, window)

    def hidden(left: np.ndarray, lower: np.ndarray, size: int) -> np.ndarray:
        columns = np.stack([left, left, left + size, left + size])
        rows = np.stack([lower, lower + size, lower, lower + size])
        rays = (np.stack([columns, rows]) * 2 / cells - 1) * tangent
        ground = _meet(rays, normal, distance)
        assert ground is not None
        return cover.hide(ground) | strip.hide(ground)

    left, lower = (FINE * index.ravel() for index in np.indices((COARSE, COARSE)))
    open_ = ~hidden(left, lower, FINE)
    left, lower = left[open_], lower[open_]
    steps = np.indices((FINE, FINE)).reshape(2, -1, 1)
    left, lower = (left + steps[0]).ravel(), (lower + steps[1]).ravel()
    window[:] = False
    window[left, lower] = ~hidden(left, lower, 1)
    return Mirror(point, normal, tangent, meeting, window)


def _meet(rays: np.ndarray, normal: np.ndarray, distance: float) -> np.ndarray | None:
    """Where rays (2, …), given by their tangents, meet a plane (3, …); ``None`` if not all do."""
    directions = np.stack([*rays, np.full(rays.shape[1:], -1.0)])
    with np.errstate(divide="ignore"):
        reach = distance / dot(normal, directions)
    return directions * reach if (reach > 0).all() else None
