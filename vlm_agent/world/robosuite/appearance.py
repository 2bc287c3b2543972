"""Another look for the same scene: to see what a policy does where it was not trained."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from vlm_agent.world.config import EnvConfig
from vlm_agent.world.robosuite.names import import_mujoco
from vlm_agent.world.robosuite.scene import RobotScene

COLOURS = {"red": (0.8, 0.1, 0.1), "green": (0.1, 0.6, 0.1), "blue": (0.1, 0.2, 0.8)}


def change_appearance(scene: RobotScene, config: EnvConfig) -> None:
    """Move the hand's camera, paint the object, dim the light, as the settings say.

    Call it before a camera is made. Where the settings say nothing, nothing is touched.
    """
    model = scene.env.sim.model._model
    if config.camera_shift or config.camera_tilt:
        mujoco = import_mujoco()
        camera = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, scene.camera_name)
        w, x, y, z = model.cam_quat[camera]
        rotation = Rotation.from_quat([x, y, z, w])
        model.cam_pos[camera] += rotation.apply([config.camera_shift, 0.0, 0.0])
        tilted = rotation * Rotation.from_euler("x", config.camera_tilt, degrees=True)
        x, y, z, w = tilted.as_quat()
        model.cam_quat[camera] = w, x, y, z
    if config.object_colour != "own" and scene.task.target is not None:
        names = scene.task.target(scene.env).visual_geoms
        geoms = [scene.env.sim.model.geom_name2id(name) for name in names]
        model.geom_matid[geoms] = -1
        model.geom_rgba[geoms, :3] = COLOURS[config.object_colour]
    if config.light != 1.0:
        model.light_diffuse[:] = np.clip(model.light_diffuse * config.light, 0, 1)
        model.light_ambient[:] = np.clip(model.light_ambient * config.light, 0, 1)
        headlight = model.vis.headlight
        headlight.diffuse[:] = np.clip(headlight.diffuse * config.light, 0, 1)
        headlight.ambient[:] = np.clip(headlight.ambient * config.light, 0, 1)
