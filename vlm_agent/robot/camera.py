"""The eye-in-hand camera: one upright picture per word."""

from __future__ import annotations

import atexit
from typing import Any

import numpy as np

from vlm_agent.robot.names import import_robosuite


class SceneCamera:
    """Renders one named camera of a robosuite simulation into square uint8 frames.

    The OpenGL context belongs to the process that makes the camera, and its buffer is as large as
    the picture: a larger one costs time and changes no pixel.

    Args:
        sim: robosuite's ``env.sim``.
        camera_name: A camera of the model, e.g. ``robot0_eye_in_hand`` or ``frontview``.
        size: Side of the frame, in pixels.
        mode: ``exact`` gives robosuite's pixels; ``fast`` leaves the mirror pass out.
    """

    def __init__(self, sim: Any, camera_name: str, size: int, mode: str = "fast") -> None:
        import_robosuite()
        import mujoco

        self._data = sim.data._data
        self._camera_name = camera_name
        model = sim.model._model
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        self._renderer = mujoco.Renderer(model, height=size, width=size)
        self._options = mujoco.MjvOption()
        self._options.geomgroup[0] = 0  # robosuite's collision shapes
        self._options.geomgroup[1] = 1  # and what is meant to be seen
        self._reflections = mode == "exact"
        self._reflection_flag = mujoco.mjtRndFlag.mjRND_REFLECTION
        # EGL is shut down when the interpreter ends; the context has to go before it.
        atexit.register(self.close)

    def frame(self) -> np.ndarray:
        """The present state as the camera sees it: uint8 (H, W, 3), upright."""
        self._renderer.update_scene(self._data, self._camera_name, self._options)
        self._renderer.scene.flags[self._reflection_flag] = self._reflections
        return self._renderer.render()

    def close(self) -> None:
        """Free the OpenGL context."""
        atexit.unregister(self.close)
        self._renderer.close()
