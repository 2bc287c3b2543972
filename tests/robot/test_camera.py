import numpy as np

from vlm_agent.actions import DEFAULT_WORDS
from vlm_agent.robot.camera import SceneCamera
from vlm_agent.robot.names import import_robosuite


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
    mirrored = False
    for word in ["right"] * 3 + ["backward"] * 3:  # at the end the floor's mirror is in view
        can_env.step(DEFAULT_WORDS.index(word))
        ours, quick = exact.frame(), fast.frame()
        mirrored |= not np.array_equal(ours, quick)
        context.gl_ctx.make_current()
        stock = sim.render(112, 112, camera_name=can_env.scene.camera_name)[::-1]
        assert np.array_equal(ours, stock)
        assert np.abs(quick.astype(int) - stock).mean() < 2
    assert mirrored
    sim._render_context_offscreen = None
    exact.close()
    fast.close()


def test_the_gripper_is_at_the_lower_edge(can_env):
    """Upright: the grey hand fills the last rows, the table the first."""
    observation, _ = can_env.reset(seed=1)
    top, bottom = observation["image"][:8], observation["image"][-8:]
    assert bottom.std(axis=(0, 1)).max() < 5
    assert top.std(axis=(0, 1)).max() > 20
