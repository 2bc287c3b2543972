"""``Looks``: the same scene, looking and weighing otherwise; for good, or in each episode."""

from __future__ import annotations

import colorsys
from functools import partial
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from vlm_agent.common.errors import UserError
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.robosuite.appearance.props import (
    Distractors,
    Edit,
    HandledObject,
    Nominal,
    material_kind,
    with_props,
)
from vlm_agent.world.robosuite.appearance.randomize import (
    OWN,
    Ranges,
    any_direction,
    as_colour,
    turned,
)
from vlm_agent.world.robosuite.names import import_mujoco
from vlm_agent.world.robosuite.scene import RobotScene

PARTS = {"table": ("table", "bin1"), "bin": ("bin2",)}
"""Parts of robosuite's scenes that can be painted, and the bodies that they are."""


def scene_editor(config: EnvConfig) -> Edit | None:
    """What adds to a scene what ``randomize`` needs; ``None`` if it needs nothing.

    Raises:
        UserError: ``randomize`` is wrong.
    """
    values = Ranges(config.randomize).values
    count = int(np.max(values.get("distractors", 0)))
    textures = any(key.endswith("_texture") for key in values)
    if not count and not textures:
        return None
    return partial(with_props, distractors=count, textures=textures)


class Looks:
    """Changes how a scene looks and what its object is like, as the settings say.

    Each episode starts from the scene's own values, so that nothing adds up, and what is drawn
    depends on the episode's seed alone. Where the settings say nothing, nothing is touched.

    Args:
        scene: The scene, built with :func:`scene_editor`'s additions.
        config: ``camera_shift``, ``camera_tilt``, ``object_colour`` and ``light`` hold in every
            episode; ``randomize`` comes on top of them.

    Raises:
        UserError: ``randomize`` is wrong, or the scene has not got what it speaks of.
    """

    def __init__(self, scene: RobotScene, config: EnvConfig) -> None:
        self._scene, self._config, self._ranges = scene, config, Ranges(config.randomize)
        self._model, self._data = scene.env.sim.model._model, scene.env.sim.data._data
        mujoco = import_mujoco()
        self._camera = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_CAMERA, scene.camera_name)
        self._start = np.array(scene.robot.init_qpos)
        self._parts = {name: self._visible_geoms(bodies) for name, bodies in PARTS.items()}
        if scene.task.target is not None:
            self._parts["object"] = self._ids(scene.task.target(scene.env).visual_geoms)
        if not config.tasks:
            self._check_parts()
        self._nominal = Nominal(self._model)
        self._nominal.keep("cam_pos", "cam_quat", "cam_fovy", "geom_matid", "geom_rgba")
        self._nominal.keep("light_diffuse", "light_ambient", "light_specular", "light_dir")
        for kind in ("diffuse", "ambient", "specular"):
            self._nominal.keep(f"vis.headlight.{kind}")
        self._object = self._handled_object()
        self._distractors = self._spare_things()

    def _ids(self, names: list[str]) -> list[int]:
        return [self._scene.env.sim.model.geom_name2id(name) for name in names]

    def _visible_geoms(self, bodies: tuple[str, ...]) -> list[int]:
        """The geoms of some bodies that are meant to be seen, without legs."""
        model = self._model
        return [
            geom
            for geom in np.flatnonzero(model.geom_group == 1)
            if model.body(model.geom_bodyid[geom]).name in bodies
            and "leg" not in model.geom(geom).name
        ]

    def _check_parts(self) -> None:
        """Refuse what this scene has not got."""
        for key in self._ranges.values:
            part = "table" if key == "distractors" else key.split("_")[0]
            if part in ("object", "table", "bin") and not self._parts.get(part):
                task = self._config.task
                raise UserError(f"randomize.{key}: the task {task!r} has no {part} to change")

    def _handled_object(self) -> HandledObject | None:
        keys = {"object_size", "object_mass", "object_friction"} & set(self._ranges.values)
        if not keys or self._scene.task.target is None:
            return None
        target = self._scene.task.target(self._scene.env)
        body = self._scene.env.sim.model.body_name2id(target.root_body)
        fingers = self._scene.robot.gripper[self._scene.arm].important_geoms
        pads = [name for side in ("left", "right") for name in fingers[f"{side}_fingerpad"]]
        solid = self._ids(target.contact_geoms)
        return HandledObject(self._model, body, solid, self._ids(pads), self._nominal)

    def _spare_things(self) -> Distractors | None:
        if "distractors" not in self._ranges.values:
            return None
        areas = self._model.geom_size[:, 0] * self._model.geom_size[:, 1]
        surfaces = [max(geoms, key=areas.item) for part in PARTS if (geoms := self._parts[part])]
        return Distractors(self._model, surfaces, self._nominal) if surfaces else None

    def reset(self, seed: int) -> None:
        """Start the episode of that seed: reset the scene, with the looks that belong to it."""
        self.undo()
        self._dress(seed)
        self._scene.reset(seed)
        if self._object is not None and self._object.settle(self._data):
            self._scene.env.sim.forward()
            self._scene.resting_height = self._scene.object_position()[2]
        if self._distractors is not None:
            rng = self._ranges.rng("distractors", seed)
            count = self._ranges.draw("distractors", rng, 0)
            self._distractors.scatter(self._data, count, rng)

    def undo(self) -> None:
        """Give the scene its own values back, bit for bit; its state stays as it is."""
        self._nominal.restore()
        self._scene.robot.init_qpos = self._start.copy()

    def _dress(self, seed: int) -> None:
        """Change what has its own values now."""
        self._set_lights(seed)
        self._set_camera(seed)
        for part, geoms in self._parts.items():
            self._paint(part, geoms, seed)
        if self._object is not None:
            factors = (self._draw(f"object_{k}", seed, 1.0) for k in ("size", "mass", "friction"))
            self._object.change(*factors)
        if "arm_start" in self._ranges.values:
            rng = self._ranges.rng("arm_start", seed)
            offsets = [self._ranges.draw("arm_start", rng, 0.0) for _ in self._start]
            signs = rng.choice([-1, 1], len(offsets))
            self._scene.robot.init_qpos = self._start + signs * offsets

    def _draw(self, key: str, seed: int, otherwise: Any) -> Any:
        return self._ranges.draw(key, self._ranges.rng(key, seed), otherwise)

    def _set_lights(self, seed: int) -> None:
        model, light = self._model, np.full(3, self._config.light, np.float32)
        light *= self._draw("light_brightness", seed, 1.0)
        if "light_tint" in self._ranges.values:
            rng = self._ranges.rng("light_tint", seed)
            tint = self._ranges.draw("light_tint", rng, 0.0)
            light *= colorsys.hsv_to_rgb(rng.uniform(), tint, 1.0)
        if (light != 1).any():
            headlight = model.vis.headlight
            for lamp in (model.light_diffuse, model.light_ambient):
                lamp[:] = np.clip(lamp * light, 0, 1)
            for lamp in (headlight.diffuse, headlight.ambient):
                lamp[:] = np.clip(lamp * light, 0, 1)
        if "light_turn" in self._ranges.values:
            rng = self._ranges.rng("light_turn", seed)
            angle = np.radians(self._ranges.draw("light_turn", rng, 0.0))
            for direction in model.light_dir:
                direction[:] = turned(direction, angle, rng)

    def _set_camera(self, seed: int) -> None:
        config, keys = self._config, {"camera_shift", "camera_turn"} & set(self._ranges.values)
        if config.camera_shift or config.camera_tilt:
            turn = Rotation.from_euler("x", config.camera_tilt, degrees=True)
            self._move_camera(np.array([config.camera_shift, 0.0, 0.0]), turn)
        if keys:
            rng = self._ranges.rng("camera_shift", seed)
            shift = self._ranges.draw("camera_shift", rng, 0.0) * any_direction(rng)
            rng = self._ranges.rng("camera_turn", seed)
            turn = np.radians(self._ranges.draw("camera_turn", rng, 0.0)) * any_direction(rng)
            self._move_camera(shift, Rotation.from_rotvec(turn))
        self._model.cam_fovy[self._camera] += self._draw("camera_fov", seed, 0.0)

    def _move_camera(self, shift: np.ndarray, turn: Rotation) -> None:
        """Move it by metres (3,) to its right, up and backwards, and turn it about these axes."""
        model, camera = self._model, self._camera
        w, x, y, z = model.cam_quat[camera]
        rotation = Rotation.from_quat([x, y, z, w])
        model.cam_pos[camera] += rotation.apply(shift)
        if turn.magnitude():
            x, y, z, w = (rotation * turn).as_quat()
            model.cam_quat[camera] = w, x, y, z

    def _paint(self, part: str, geoms: list[int], seed: int) -> None:
        """Paint is plain, unless a texture has been chosen, which then has its colour."""
        model, fixed = self._model, self._config.object_colour if part == "object" else OWN
        rng = self._ranges.rng(f"{part}_colour", seed)
        colour = as_colour(self._ranges.draw(f"{part}_colour", rng, fixed), rng)
        texture = self._draw(f"{part}_texture", seed, OWN if colour is None else "plain")
        if texture == "plain":
            model.geom_matid[geoms] = -1
            if colour is None:
                colour = (0.7, 0.7, 0.7)
        elif texture != OWN:
            for geom in geoms:
                kind = material_kind(model, geom) if part == "object" else "flat"
                model.geom_matid[geom] = model.material(f"{texture}_{kind}").id
        if colour is not None:
            model.geom_rgba[geoms, :3] = colour
