"""What of a scene can be made larger, heavier or smoother, and what is put into it besides."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from xml.etree import ElementTree

import numpy as np

from vlm_agent.world.robosuite.appearance.randomize import PATTERNS
from vlm_agent.world.robosuite.names import import_mujoco

Edit = Callable[[Any], Any]
"""From robosuite's environment to one with something more in it."""

SHAPES = ("box", "ellipsoid")
"""What distractors are, in turn. No cylinders: from above, they are cans as the one asked for."""

SMALLEST, LARGEST = 0.01, 0.02
"""Half sizes of a distractor, in metres."""

MARGIN = 0.015
"""Metres that a distractor keeps from what can be moved, and from the edge of what it lies on."""

TRIES = 40
"""How many places are tried for a distractor, before it stays away."""


class Nominal:
    """Parts of a model as they were, to come back to bit for bit.

    Args:
        model: A ``mujoco.MjModel``.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._kept: list[tuple[np.ndarray, np.ndarray]] = []
        self._numbers: dict[str, float] = {}

    def keep(self, *parts: str | np.ndarray) -> None:
        """Remember fields, by their (dotted) names, or views of what belongs to a model."""
        for part in parts:
            value = operator.attrgetter(part)(self._model) if isinstance(part, str) else part
            if isinstance(value, np.ndarray):
                self._kept.append((value, value.copy()))
            else:
                self._numbers[str(part)] = value

    def restore(self) -> None:
        """Have all that is remembered be as it was."""
        for value, kept in self._kept:
            value[:] = kept
        for name, number in self._numbers.items():
            *owner, attribute = name.split(".")
            setattr(operator.attrgetter(".".join(owner))(self._model), attribute, number)


class HandledObject:
    """The object of a task, with a size, a weight and a friction.

    Its size changes about the origin of its body, so that what MuJoCo has found out about frames
    that agree stays true; :meth:`settle` has it rest on what it was put on.

    Args:
        model: A ``mujoco.MjModel``.
        root: Its body.
        solid: Its geoms that touch things.
        fingers: The fingers' geoms that hold it.
        nominal: Keeps what is changed here.
    """

    def __init__(
        self, model: Any, root: int, solid: Sequence[int], fingers: Sequence[int], nominal: Nominal
    ) -> None:
        self._mujoco, self._model, self._root = import_mujoco(), model, root
        self._lowest, self._size = _lowest(model, solid), 1.0
        bodies = [root]
        for body in range(root + 1, model.nbody):  # parents come before their children
            if model.body_parentid[body] in bodies:
                bodies.append(body)
        self._bodies = bodies
        self._geoms = np.flatnonzero(np.isin(model.geom_bodyid, bodies))
        self._rubbing = np.append(self._geoms, fingers).astype(int)
        self._scratch = self._mujoco.MjData(model)
        self._lengths = self._find_lengths()
        nominal.keep("geom_friction", "body_mass", "body_inertia", "body_pos", "body_quat")
        nominal.keep(*self._lengths)
        # What mj_setConst derives from these; and what it would change for pictures.
        nominal.keep("body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0")
        nominal.keep("tendon_invweight0", "actuator_acc0", "stat.meaninertia")
        self._for_pictures = Nominal(model)
        self._for_pictures.keep("stat.meanmass", "stat.meansize", "stat.extent", "stat.center")
        self._for_pictures.keep("cam_mat0", "cam_pos0", "cam_poscom0")
        self._for_pictures.keep("light_dir0", "light_pos0", "light_poscom0")

    def _find_lengths(self) -> list[np.ndarray]:
        """What grows with the object: sizes, boxes, vertices, and places in its bodies."""
        model, bodies = self._model, self._bodies
        found = [model.body_ipos[body] for body in bodies]
        found += [model.body_pos[body] for body in bodies[1:]]
        found += [model.jnt_pos[j] for j in np.flatnonzero(np.isin(model.jnt_bodyid, bodies))]
        for site in np.flatnonzero(np.isin(model.site_bodyid, bodies)):
            found += [model.site_pos[site], model.site_size[site]]
        for geom in self._geoms:
            found += [model.geom_pos[geom], model.geom_size[geom], model.geom_aabb[geom]]
            found.append(model.geom_rbound[geom:][:1])
        for body in bodies:
            found.append(model.bvh_aabb[model.body_bvhadr[body] :][: model.body_bvhnum[body]])
        for mesh in {int(mesh) for mesh in model.geom_dataid[self._geoms] if mesh >= 0}:
            found.append(model.mesh_vert[model.mesh_vertadr[mesh] :][: model.mesh_vertnum[mesh]])
            found.append(model.bvh_aabb[model.mesh_bvhadr[mesh] :][: model.mesh_bvhnum[mesh]])
        return found

    def change(self, size: float, mass: float, friction: float) -> None:
        """Make it so many times as large, as heavy and as rough; the model has to be nominal."""
        model, self._size = self._model, size
        model.geom_friction[self._rubbing] *= friction
        if size == 1 and mass == 1:
            return
        for length in self._lengths:
            length *= size
        model.body_mass[self._bodies] *= mass
        model.body_inertia[self._bodies] *= mass * size**2
        self._mujoco.mj_setConst(model, self._scratch)
        self._for_pictures.restore()

    def settle(self, data: Any) -> bool:
        """Raise or lower it by as much as its lowest side has moved.

        Returns:
            Whether it has been moved; then MuJoCo has to find out anew what follows from that.
        """
        joint = self._model.body_jntadr[self._root]
        free = self._mujoco.mjtJoint.mjJNT_FREE
        if self._size == 1 or joint < 0 or self._model.jnt_type[joint] != free:
            return False
        data.qpos[self._model.jnt_qposadr[joint] + 2] -= (self._size - 1) * self._lowest
        return True


def _lowest(model: Any, geoms: Sequence[int]) -> float:
    """The height in its body of the lowest of some geoms' bounding boxes, in metres."""
    rotations = np.empty((len(geoms), 9))
    for rotation, geom in zip(rotations, geoms, strict=True):
        import_mujoco().mju_quat2Mat(rotation, model.geom_quat[geom])
    up = rotations.reshape(-1, 3, 3)[:, 2]
    boxes = model.geom_aabb[geoms]
    middles = model.geom_pos[geoms][:, 2] + (up * boxes[:, :3]).sum(1)
    return float((middles - (np.abs(up) * boxes[:, 3:]).sum(1)).min())


def with_props(env: Any, distractors: int, textures: bool) -> Any:
    """The environment, built once more with spare things, hidden, and materials to choose from.

    Args:
        env: robosuite's environment, as it was made with seed 0.
        distractors: How many things.
        textures: Whether to add materials of each of :data:`PATTERNS`.
    """
    env.set_xml_processor(partial(_add_props, distractors=distractors, textures=textures))
    # Sizes that are drawn when the scene is built have to be drawn alike.
    env.rng.bit_generator.state = np.random.default_rng(0).bit_generator.state
    env.hard_reset = True
    env.reset()
    env.hard_reset = False
    return env


def _add_props(xml: str, distractors: int, textures: bool) -> str:
    """A scene in MJCF with what :func:`with_props` adds to it."""
    root = ElementTree.fromstring(xml)  # noqa: S314 (robosuite made it)
    assets, world = root.find("asset"), root.find("worldbody")
    assert assets is not None and world is not None
    for name in PATTERNS if textures else ():
        for kind, repeat, uniform in KINDS:
            shape = "cube" if kind == "cube" else "2d"
            texture = {"name": f"{name}_{kind}", "type": shape, "width": "64", "rgb1": ".9 .9 .9"}
            height = "384" if kind == "cube" else "64"
            texture |= {"height": height, "rgb2": ".5 .5 .5", "markrgb": ".35 .35 .35"}
            ElementTree.SubElement(assets, "texture", texture | _PATTERN[name])
            material = {"name": f"{name}_{kind}", "texture": f"{name}_{kind}", "texrepeat": repeat}
            ElementTree.SubElement(assets, "material", material | {"texuniform": uniform})
    for number in range(distractors):
        thing = {"name": f"distractor{number}", "type": SHAPES[number % len(SHAPES)]}
        thing |= {"size": ".01 .01 .01", "rgba": "1 1 1 0", "group": "1"}
        # Turned, or MuJoCo would take it that it always stands as the world does.
        thing |= {"pos": "0 0 .5", "quat": ".8 0 0 .6", "contype": "0", "conaffinity": "0"}
        ElementTree.SubElement(world, "geom", thing)
    return ElementTree.tostring(root, encoding="unicode")


KINDS = (("flat", "8 8", "true"), ("mesh", "2 2", "false"), ("cube", "2 2", "false"))
"""Each pattern's materials: name, repeats of the texture, and whether these are per metre."""


def material_kind(model: Any, geom: int) -> str:
    """Which of :data:`KINDS` goes onto an object's geom.

    A mesh that knows its place in a picture takes a flat one: with a cube's, what MuJoCo draws
    depends on what it has drawn before.
    """
    mesh = model.geom_dataid[geom]
    return "mesh" if mesh >= 0 and model.mesh_texcoordadr[mesh] >= 0 else "cube"


_PATTERN = {
    "checks": {"builtin": "checker"},
    "grid": {"builtin": "flat", "mark": "edge"},
    "dots": {"builtin": "flat", "mark": "random", "random": "0.02"},
    "crosses": {"builtin": "flat", "mark": "cross"},
}


class Distractors:
    """Things that lie about on surfaces. They touch nothing; where they lie is seen, no more.

    Args:
        model: A ``mujoco.MjModel`` with the things that :func:`with_props` added.
        surfaces: Boxes on which they may lie.
        nominal: Keeps what is changed here.
    """

    def __init__(self, model: Any, surfaces: Sequence[int], nominal: Nominal) -> None:
        self._mujoco, self._model, self._surfaces = import_mujoco(), model, surfaces
        names = [model.geom(geom).name for geom in range(model.ngeom)]
        self._things = [geom for geom, name in enumerate(names) if name.startswith("distractor")]
        free = model.jnt_bodyid[model.jnt_type == self._mujoco.mjtJoint.mjJNT_FREE]
        self._movable = np.flatnonzero(np.isin(model.geom_bodyid, free))
        for geom in self._things:
            fields = model.geom_rgba, model.geom_pos, model.geom_quat, model.geom_size
            nominal.keep(*(field[geom] for field in (*fields, model.geom_aabb)))
            nominal.keep(model.geom_rbound[geom:][:1])

    def scatter(self, data: Any, count: int, rng: np.random.Generator) -> None:
        """Put some of them where nothing lies; the scene has just been reset.

        Args:
            data: The ``mujoco.MjData``, with up-to-date kinematics.
            count: How many.
            rng: Draws which, and where.
        """
        model = self._model
        taken = [(data.geom_xpos[geom, :2], model.geom_rbound[geom]) for geom in self._movable]
        for geom in rng.permutation(self._things)[:count]:
            half = rng.uniform(SMALLEST, LARGEST, 3)
            turn, colour = rng.uniform(0, np.pi), rng.uniform(0.05, 1, 3)
            radius = float(np.linalg.norm(half[:2]))
            place = self._free_place(data, radius, taken, rng)
            if place is None:
                continue
            taken.append((place[:2], radius))
            model.geom_size[geom] = half
            model.geom_aabb[geom] = [0, 0, 0, *half]
            model.geom_rbound[geom] = np.linalg.norm(half)
            model.geom_pos[geom] = place
            model.geom_pos[geom, 2] += half[2]
            model.geom_quat[geom] = [np.cos(turn / 2), 0, 0, np.sin(turn / 2)]
            model.geom_rgba[geom] = [*colour, 1]
        self._mujoco.mj_kinematics(model, data)

    def _free_place(
        self,
        data: Any,
        radius: float,
        taken: Sequence[tuple[np.ndarray, float]],
        rng: np.random.Generator,
    ) -> np.ndarray | None:
        """A point (3,) on a surface, away from what is there; ``None`` if none is found."""
        for _ in range(TRIES):
            surface = self._surfaces[int(rng.integers(len(self._surfaces)))]
            half = self._model.geom_size[surface]
            room = half[:2] - radius - MARGIN
            rotation = data.geom_xmat[surface].reshape(3, 3)
            place = data.geom_xpos[surface] + rotation @ [*rng.uniform(-room, room), half[2]]
            if all(np.linalg.norm(place[:2] - p) > r + radius + MARGIN for p, r in taken):
                return place
        return None
