import numpy as np

from vlm_agent.actions import DEFAULT_WORDS
from vlm_agent.robot.camera import SceneCamera
from vlm_agent.robot.names import import_robosuite

LEFT = DEFAULT_WORDS.index("left")


def test_exact_frames_are_robosuites_own_and_upright(can_env):
    """Against robosuite's renderer on the same state: its picture, turned the right way up."""
    robosuite = import_robosuite()
    from robosuite.utils.binding_utils import MjRenderContextOffscreen

    assert robosuite.macros.IMAGE_CONVENTION == "opengl"  # bottom row first
    sim = can_env.scene.env.sim
    exact = SceneCamera(sim, can_env.scene.camera_name, 112, "exact")
    fast = SceneCamera(sim, can_env.scene.camera_name, 112, "fast")
    sim.model.vis.global_.offwidth, sim.model.vis.global_.offheight = 640, 480
    context = MjRenderContextOffscreen(sim, device_id=-1)
    context.vopt.geomgroup[0], context.vopt.geomgroup[1] = 0, 1
    can_env.reset(seed=1)
    for _ in range(3):
        can_env.step(LEFT)
        ours, quick = exact.frame(), fast.frame()
        context.gl_ctx.make_current()
        stock = sim.render(112, 112, camera_name=can_env.scene.camera_name)[::-1]
        assert np.array_equal(ours, stock)
        assert np.abs(quick.astype(int) - stock).mean() < 2
    sim._render_context_offscreen = None
    exact.close()
    fast.close()


def test_the_gripper_is_at_the_lower_edge(can_env):
    """Upright: the grey hand fills the last rows, the table the first."""
    observation, _ = can_env.reset(seed=1)
    top, bottom = observation["image"][:8], observation["image"][-8:]
    assert bottom.std(axis=(0, 1)).max() < 5
    assert top.std(axis=(0, 1)).max() > 20
