"""Which parts of a scene a camera cannot see, so that they need not be drawn.

What is left out cannot change a pixel, by geometry alone:

- Outside the view: all corners of a bounding box lie beyond one side of the view, or behind what
  the camera is mounted on.
- Behind a box of the scene (:meth:`vlm_agent.world.render.cover.Boxes.hide`).
- In the mirror: the image of a bounding box lies where the mirror cannot be seen
  (:mod:`vlm_agent.world.render.mirror`).

Everything here is in view coordinates: the camera at the origin, x to the right, y up, looking
along −z. G geoms, P bounding boxes, given by their corners (3, 8, P).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vlm_agent.world.render.bounds import GeomBoxes, PlacedBoxes, Poses, bounding_boxes, is_large
from vlm_agent.world.render.cover import MARGIN, Boxes, Mount, is_mounted
from vlm_agent.world.render.mirror import Mirror, look_at_mirror
from vlm_agent.world.robosuite.names import import_mujoco

OPAQUE_ALPHA = 0.995
"""MuJoCo draws geoms below this alpha as transparent."""

WIDER = 1.001
"""By how much the view is taken wider than it is."""

LEVELS = 3
"""How often the boxes of large meshes are cut into eight beyond that."""

MAX_CLOSER = 64
"""The most bounding boxes to look at still closer; more would cost more than drawing them."""


@dataclass(frozen=True)
class View:
    """What one camera may see of the present state.

    Attributes:
        seen: bool (G,), geoms that may be seen directly.
        mirrored: bool (G,), geoms whose mirror image may be seen.
        sky: Whether the sky behind everything may be seen.
        reflections: Whether anything at all may be seen in the mirror.
    """

    seen: np.ndarray
    mirrored: np.ndarray
    sky: bool
    reflections: bool


class Visibility:
    """Finds what a camera may see in the present state of a simulation.

    Geoms may move, and between two looks their sizes, materials and alpha may change, as may the
    camera's place and angle of view, and lights. Which geoms there are, of which types and groups,
    and the shapes of what the camera is mounted on stay as they are.

    Args:
        model: A ``mujoco.MjModel``.
        data: Its ``mujoco.MjData``, with up-to-date kinematics of any state.
        camera_id: The camera.
        drawn: bool (G,), geoms that are drawn where they can be seen.
    """

    def __init__(self, model: Any, data: Any, camera_id: int, drawn: np.ndarray) -> None:
        kinds = import_mujoco().mjtGeom
        plane, box = model.geom_type == kinds.mjGEOM_PLANE, model.geom_type == kinds.mjGEOM_BOX
        opaque = drawn & (_alpha(model) >= OPAQUE_ALPHA)
        self._model = model
        self._camera_id = camera_id
        self._drawn = drawn
        self._planes, self._drawn_boxes = drawn & plane, drawn & box
        self._solids = np.flatnonzero(drawn & ~plane)
        self._large = np.zeros_like(drawn)
        self._large[[geom for geom in self._solids if is_large(model, geom)]] = True
        self._parts_of: dict[int, np.ndarray] = {}
        mounted = is_mounted(model, camera_id)
        self._worth = (self._large | (model.geom_type == kinds.mjGEOM_CYLINDER)) & ~mounted
        self._mount = Mount(model, data, camera_id, opaque & mounted)
        self._near = model.vis.map.znear * model.stat.extent
        self._shapes = np.full_like(model.geom_aabb, np.nan)
        self._known: tuple[bytes, ...] = ()
        self._lens: tuple[bytes, ...] = ()
        self._notice()

    def _notice(self) -> None:
        """Take up what has changed of shapes, materials, lights and the camera itself."""
        model, camera = self._model, self._camera_id
        lens = model.cam_pos[camera], model.cam_quat[camera], model.cam_fovy[camera]
        surfaces = model.geom_aabb, model.geom_size, model.geom_matid
        lights = model.light_castshadow, model.light_active
        known = tuple(field.tobytes() for field in (*lens, *surfaces, *lights))
        if known == self._known:
            return
        self._known = known
        shiny = (model.geom_matid >= 0) & (model.mat_reflectance[model.geom_matid] > 0)
        # A shadow may fall into the view from anywhere; then nothing is left out.
        self._casts_shadows = bool((model.light_castshadow & model.light_active).any())
        self._boxes = np.flatnonzero(self._drawn_boxes & (model.geom_size.min(1) > 2 * MARGIN))
        self._mirrors = np.flatnonzero((self._planes | self._drawn_boxes) & shiny)
        self._measure_shapes()
        if known[: len(lens)] != self._lens:
            self._lens = known[: len(lens)]
            self._strip = self._mount.strip()
            self._tangent = np.tan(np.radians(model.cam_fovy[camera]) / 2) * WIDER

    def _measure_shapes(self) -> None:
        """The bounding boxes of what has changed its size."""
        model = self._model
        changed = (model.geom_aabb != self._shapes).any(1)
        if not changed.any():
            return
        self._shapes = model.geom_aabb.copy()
        whole = self._solids
        self._whole = GeomBoxes(whole, model.geom_aabb[whole].reshape(-1, 2, 3))
        large = np.flatnonzero(changed & self._large)
        self._parts_of |= {int(geom): bounding_boxes(model, geom) for geom in large}
        counts = [len(boxes) for boxes in self._parts_of.values()]
        self._parts = GeomBoxes(
            np.repeat(list(self._parts_of), counts).astype(int),
            np.concatenate([np.empty((0, 2, 3)), *self._parts_of.values()]),
        )

    def look(self, data: Any, with_mirror: bool = True) -> View:
        """What the camera may see now.

        Args:
            data: The ``mujoco.MjData``, with up-to-date kinematics.
            with_mirror: Whether mirror images count.
        """
        self._notice()
        nothing = np.zeros_like(self._drawn)
        if self._casts_shadows:
            return View(self._drawn, self._drawn, True, with_mirror)
        to_view = data.cam_xmat[self._camera_id].reshape(3, 3).T
        positions = (data.geom_xpos - data.cam_xpos[self._camera_id]) @ to_view.T
        poses = Poses(to_view @ data.geom_xmat.reshape(-1, 3, 3), positions)
        opaque = _alpha(self._model) >= OPAQUE_ALPHA
        cover = self._covering(poses, opaque)
        seen = self._planes | self._visible(poses, cover)
        geom = self._find_mirror(poses, opaque)
        if geom is None:
            return View(seen, nothing, True, False)
        if len(self._mirrors) > 1:
            seen[geom] = True  # or MuJoCo would take the next for the mirror
        mirror = self._look_at_mirror(geom, poses, cover, with_mirror)
        if mirror is None:
            return View(seen, nothing, True, False)
        if not mirror.window.any():
            if self._planes[geom] and len(self._mirrors) == 1:
                seen[geom] = False
            return View(seen, nothing, False, False)
        sky = not self._is_filled(mirror, geom, poses)
        if not with_mirror:
            return View(seen, nothing, sky, False)
        mirrored = self._mirrored(poses, mirror)
        mirrored[geom] = False
        others = self._planes.sum() > 1 or bool((self._model.site_rgba[:, 3] > 0).any())
        return View(seen, mirrored, sky, others or bool(mirrored.any()))

    def _mirrored(self, poses: Poses, mirror: Mirror) -> np.ndarray:
        """Geoms (G,) whose image in the mirror may be seen."""
        mirrored = np.zeros_like(self._drawn)
        boxes = self._whole.of(slice(None), poses)
        boxes = boxes[mirror.shows(boxes.corners, self._near)]
        large = self._large[boxes.geoms]
        mirrored[boxes.geoms[~large]] = True
        boxes = self._parts.of(boxes.geoms[large], poses)
        boxes = boxes[mirror.shows(boxes.corners, self._near)].eighths()
        mirrored[boxes.geoms[mirror.shows(boxes.corners, self._near)]] = True
        return mirrored

    def _visible(self, poses: Poses, cover: Boxes) -> np.ndarray:
        """Geoms (G,) with a bounding box that is in view, and not behind one box of the cover.

        Those that take long to draw are looked at more closely.
        """
        visible = np.zeros_like(self._drawn)
        boxes = self._keep(self._whole.of(slice(None), poses), cover)
        closer = self._worth[boxes.geoms]
        visible[boxes.geoms[~closer]] = True
        boxes, large = boxes[closer], self._large[boxes.geoms[closer]]
        boxes = boxes[~large].eighths() + self._parts.of(boxes.geoms[large], poses)
        boxes = self._keep(self._keep(boxes, cover).eighths(), cover)
        visible[boxes.geoms[~self._large[boxes.geoms]]] = True
        boxes = boxes[self._large[boxes.geoms]]
        for _ in range(LEVELS):
            boxes = boxes[~cover.hide(self._strip.clip(boxes.corners))]
            if not 0 < len(boxes.geoms) <= MAX_CLOSER:
                break
            boxes = self._keep(boxes.eighths(), cover)
        visible[boxes.geoms] = True
        return visible

    def _keep(self, boxes: PlacedBoxes, cover: Boxes) -> PlacedBoxes:
        """Those of the bounding boxes that may be visible."""
        boxes = boxes[self._in_view(boxes.corners)]
        return boxes[~cover.hide(boxes.corners)]

    def _in_view(self, corners_38P: np.ndarray) -> np.ndarray:
        """Boxes (P,) that are not beyond one side of the view with all corners.

        Nearer than the view begins, and behind what the camera is mounted on, count as beyond.
        """
        x, y, z = corners_38P
        reach = -self._tangent * z
        outside = (z > -self._near / WIDER).all(0)
        for side in (x, y):
            outside |= (side > reach).all(0) | (side < -reach).all(0)
        return ~outside & ~self._strip.hide(corners_38P)

    def _covering(self, poses: Poses, opaque: np.ndarray) -> Boxes:
        """The boxes that may hide things: in view, and not so near that they are cut open."""
        chosen = self._boxes[opaque[self._boxes]]
        cover = Boxes(
            poses.rotations[chosen], poses.positions[chosen], self._model.geom_size[chosen]
        )
        corners = cover.corners()
        beyond = (-corners[2] > self._near * WIDER).all(0)
        return cover[self._in_view(corners) & beyond]

    def _find_mirror(self, poses: Poses, opaque: np.ndarray) -> int | None:
        """The geom that MuJoCo mirrors in: the first that is shiny and opaque, a box, or a plane.

        A plane that is seen from behind is drawn transparent, and is none.
        """
        for geom in self._mirrors[opaque[self._mirrors]]:
            faces_camera = poses.rotations[geom][:, 2] @ poses.positions[geom] <= 0
            if faces_camera or not self._planes[geom]:
                return int(geom)
        return None

    def _look_at_mirror(
        self, geom: int, poses: Poses, cover: Boxes, closely: bool
    ) -> Mirror | None:
        """The mirror as the camera sees it; ``None`` from behind."""
        normal, point = poses.rotations[geom][:, 2], poses.positions[geom]
        if not self._planes[geom]:  # a box mirrors in its upper face
            point = point + self._model.geom_size[geom, 2] * normal
        return look_at_mirror(point, normal, self._tangent, cover, self._strip, closely)

    def _is_filled(self, mirror: Mirror, geom: int, poses: Poses) -> bool:
        """Whether the mirror lies behind all of the view, so that no sky can be seen."""
        if mirror.meeting is None or (-mirror.meeting[2] < self._near * WIDER).any():
            return False
        across = poses.rotations[geom].T[:2] @ (mirror.meeting - mirror.point[:, None])
        sides = self._model.geom_size[geom, :2, None] - MARGIN
        return bool((np.abs(across) < sides).all())


def _alpha(model: Any) -> np.ndarray:
    """The geoms' alpha (G,): a material's, unless the geom has a colour of its own."""
    own = (model.geom_rgba != [0.5, 0.5, 0.5, 1.0]).any(1) | (model.geom_matid < 0)
    materials = np.append(model.mat_rgba[:, 3], 1.0)  # index −1: no material
    return np.where(own, model.geom_rgba[:, 3], materials[model.geom_matid])
