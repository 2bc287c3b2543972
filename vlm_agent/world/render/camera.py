"""Cameras: one upright picture per word, drawn from what the camera can see and nothing else."""

from __future__ import annotations

import atexit
import weakref
from typing import Any

import numpy as np

from vlm_agent.world.render.gl import make_context
from vlm_agent.world.render.visibility import Visibility
from vlm_agent.world.robosuite.names import import_mujoco
from vlm_agent.world.robosuite.scene import RobotScene

HIDDEN_GROUP = 5
"""The geom group that nothing is drawn of."""


class SceneCamera:
    """Renders one named camera of a robosuite simulation into square uint8 frames.

    The frames of mode ``exact`` are robosuite's own, bit for bit: only what cannot change a pixel
    is left out (:mod:`vlm_agent.world.render.visibility`). The OpenGL context belongs to the
    process that makes the camera, and its buffer is as large as the picture: a larger one costs
    time and changes no pixel. What may change between two frames, and what has to stay, is what
    :class:`~vlm_agent.world.render.visibility.Visibility` says; and textures stay, materials' too.

    Args:
        sim: robosuite's ``env.sim``.
        camera_name: A camera of the model, e.g. ``frontview``.
        size: Side of the frame, in pixels.
        mode: ``exact`` gives robosuite's pixels; ``fast`` leaves mirror images out.
    """

    def __init__(self, sim: Any, camera_name: str, size: int, mode: str = "exact") -> None:
        mujoco = import_mujoco()
        self._mujoco = mujoco
        self._model, self._data = sim.model._model, sim.data._data
        self._mirrors = mode == "exact"
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0  # robosuite's collision shapes
        self._options.geomgroup[1] = 1  # and what is meant to be seen
        self._options.geomgroup[HIDDEN_GROUP] = 0
        drawn = self._options.geomgroup[self._model.geom_group] == 1
        camera_id = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_CAMERA, camera_name)
        self._camera = mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera_id
        self._visibility = Visibility(self._model, self._data, camera_id, drawn)
        self._scene = mujoco.MjvScene(self._model, maxgeom=self._model.ngeom + 1000)
        self._groups = self._model.geom_group.copy()
        self._rect = mujoco.MjrRect(0, 0, size, size)
        self._pixels = np.empty((size, size, 3), np.uint8)
        self._context = make_context(size)
        buffer = self._model.vis.global_
        usual = buffer.offwidth, buffer.offheight
        buffer.offwidth = buffer.offheight = size
        self._renderer = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_150)
        buffer.offwidth, buffer.offheight = usual
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._renderer)
        self._shapes = self._model.geom_aabb.copy()
        # The display is shut down when the interpreter ends; the context has to go before it.
        atexit.register(_close, weakref.ref(self))

    def frame(self) -> np.ndarray:
        """The present state as the camera sees it: uint8 (H, W, 3), upright."""
        mujoco, flags = self._mujoco, self._mujoco.mjtRndFlag
        view = self._visibility.look(self._data, with_mirror=self._mirrors)
        self._model.geom_group[~(view.seen | view.mirrored)] = HIDDEN_GROUP
        try:
            mujoco.mjv_updateScene(
                self._model,
                self._data,
                self._options,
                None,
                self._camera,
                mujoco.mjtCatBit.mjCAT_ALL,
                self._scene,
            )
        finally:
            self._model.geom_group[:] = self._groups
        self._scene.flags[flags.mjRND_REFLECTION] = view.reflections
        self._scene.flags[flags.mjRND_SKYBOX] = view.sky
        self._context.make_current()
        self._upload_meshes()
        mujoco.mjr_render(self._rect, self._scene, self._renderer)
        mujoco.mjr_readPixels(self._pixels, None, self._rect, self._renderer)
        return self._pixels[::-1].copy()  # OpenGL's first row is the lowest

    def _upload_meshes(self) -> None:
        """Give OpenGL the meshes that have changed their size since they were uploaded."""
        changed = (self._model.geom_aabb != self._shapes).any(1)
        if changed.any():
            self._shapes = self._model.geom_aabb.copy()
            meshes = changed & (self._model.geom_type == self._mujoco.mjtGeom.mjGEOM_MESH)
            for mesh in np.unique(self._model.geom_dataid[meshes]):
                self._mujoco.mjr_uploadMesh(self._model, self._renderer, int(mesh))

    def close(self) -> None:
        """Free the OpenGL context. Safe to call twice."""
        if self._context is not None:
            self._context.make_current()
            self._renderer.free()
            self._context.free()
            self._context = None


def _close(camera: weakref.ref[SceneCamera]) -> None:
    """Close a camera that is still there when the interpreter ends."""
    if (present := camera()) is not None:
        present.close()


class EyeInHandCamera(SceneCamera):
    """The camera in the robot's hand: what the policy sees.

    Args:
        scene: The robot and its surroundings.
        size: Side of the frame, in pixels.
        mode: ``exact`` or ``fast``, see :class:`SceneCamera`.
    """

    def __init__(self, scene: RobotScene, size: int, mode: str = "fast") -> None:
        super().__init__(scene.env.sim, scene.camera_name, size, mode)
