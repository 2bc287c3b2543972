"""Stock robosuite, as its users run it, to compare with."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlm_agent.world.robosuite.names import import_robosuite
from vlm_agent.world.robosuite.scene import RobotScene

BUFFER = (640, 480)
"""The size of robosuite's offscreen buffer, whatever the picture's."""


class StockCamera:
    """robosuite's own renderer on the simulation of a :class:`RobotScene`.

    Args:
        scene: The scene.
        size: Side of the frame, in pixels.
    """

    def __init__(self, scene: RobotScene, size: int) -> None:
        import_robosuite()
        from robosuite.utils.binding_utils import MjRenderContextOffscreen

        self._sim, self._name, self._size = scene.env.sim, scene.camera_name, size
        buffer = self._sim.model.vis.global_
        buffer.offwidth, buffer.offheight = BUFFER
        self._context = MjRenderContextOffscreen(self._sim, device_id=-1)
        # As robosuite sets it for its camera observations: what is to be seen, no collision shapes.
        self._context.vopt.geomgroup[0], self._context.vopt.geomgroup[1] = 0, 1

    def frame(self) -> np.ndarray:
        """Robosuite's picture, turned upright: uint8 (H, W, 3)."""
        self._context.gl_ctx.make_current()
        return self._sim.render(self._size, self._size, camera_name=self._name)[::-1]

    def close(self) -> None:
        """Free the context."""
        self._sim._render_context_offscreen = None
        self._context.gl_ctx.make_current()
        self._context.con.free()
        self._context.gl_ctx.free()


def make_stock_env(task: str, robot: str, size: int) -> Any:
    """``robosuite.make`` with an eye-in-hand camera observation and otherwise its defaults."""
    return import_robosuite().make(
        task,
        robots=robot,
        has_renderer=False,
        has_offscreen_renderer=True,
        use_camera_obs=True,
        camera_names="robot0_eye_in_hand",
        camera_heights=size,
        camera_widths=size,
        ignore_done=True,
        reward_shaping=True,
        seed=0,
    )
