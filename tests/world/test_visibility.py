"""What is left out of pictures, in scenes made for the purpose."""

from __future__ import annotations

from types import SimpleNamespace

import mujoco
import numpy as np
import pytest

from vlm_agent.world.render.bounds import CORNERS, MAX_PARTS, bounding_boxes, mesh_triangles
from vlm_agent.world.render.camera import SceneCamera
from vlm_agent.world.render.cover import Boxes, find_strip
from vlm_agent.world.render.visibility import View, Visibility

LIGHT = "<light pos='0 0 4' dir='0 0 -1' castshadow='{shadow}'/>"
FLOOR = "<geom name='floor' type='plane' size='3 3 .1' material='{material}' group='1'/>"
ASSETS = """
<asset>
  <material name='shiny' reflectance='.5' rgba='.5 .6 .7 1'/>
  <material name='dull' rgba='.5 .6 .7 1'/>
  <texture name='sky' type='skybox' builtin='gradient' rgb1='.9 .2 .1' rgb2='.1 .2 .9' width='32'
    height='192'/>
  <mesh name='wedge' vertex='0 0 0  .3 0 0  0 .3 0  0 0 .3'/>
</asset>
"""


def make(body: str, shadow: str = "false", material: str = "shiny", camera: str = "0 0 2"):
    """A scene with a floor and a camera that looks down (x right, y up)."""
    model = mujoco.MjModel.from_xml_string(
        f"<mujoco><visual><map znear='.001'/></visual>{ASSETS}<worldbody>"
        f"{LIGHT.format(shadow=shadow)}{FLOOR.format(material=material)}"
        f"<camera name='eye' pos='{camera}' fovy='60'/>{body}</worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


def look(model, data, with_mirror: bool = True):
    return Visibility(model, data, 0, model.geom_group == 1).look(data, with_mirror)


def names(model, mask: np.ndarray) -> set[str]:
    return {model.geom(int(g)).name for g in np.flatnonzero(mask)}


def box(name: str, pos: str, size: str = ".1 .1 .1", more: str = "") -> str:
    return f"<geom name='{name}' type='box' pos='{pos}' size='{size}' group='1' {more}/>"


def test_what_lies_outside_the_view_or_behind_a_box_is_left_out():
    model, data = make(
        box("top", "0 0 1", ".4 .4 .02")
        + box("under", "0 0 .5")  # in the shadow of the top
        + box("beside", ".6 0 .5")  # partly in its shadow
        + box("outside", "0 2.5 .1")
        + box("above", "0 0 2.5")  # behind the camera
    )
    view = look(model, data, with_mirror=False)
    assert names(model, view.seen) == {"floor", "top", "beside"}
    assert not view.mirrored.any()


@pytest.mark.parametrize("more", ["type='box' rgba='1 0 0 .3'", "type='ellipsoid'"])
def test_only_opaque_boxes_hide_things(more: str):
    top = box("top", "0 0 1", ".4 .4 .02").replace("type='box'", "type='box'")
    top = (
        top.replace("type='box'", more) if "type" in more else top.replace("group", more + " group")
    )
    model, data = make(top + box("under", "0 0 .5"))
    assert "under" in names(model, look(model, data).seen)


def test_two_boxes_that_hide_a_thing_only_together_do_not():
    halves = box("left", "-.2 0 1", ".2 .4 .02") + box("right", ".2 0 1", ".2 .4 .02")
    model, data = make(halves + box("under", "0 0 .5"))
    assert "under" in names(model, look(model, data).seen)


def test_a_thing_is_mirrored_where_the_mirror_can_be_seen():
    """The image of a thing above the camera lies straight below it."""
    model, data = make(box("above", "0 0 2.5"))
    view = look(model, data)
    assert names(model, view.seen) == {"floor"}
    assert names(model, view.mirrored) == {"above"}
    model, data = make(box("above", "0 0 2.5") + box("lid", "0 0 1", ".5 .5 .02"))
    view = look(model, data)
    assert names(model, view.seen) == {"floor", "lid"}  # the floor still shows around the lid
    assert "above" not in names(model, view.mirrored)
    model, data = make(box("above", "0 0 2.5"), material="dull")
    assert not look(model, data).mirrored.any()


def test_a_floor_that_is_covered_is_left_out_with_all_it_mirrors():
    model, data = make(box("table", "0 0 1", "2 2 .02") + box("above", "0 0 2.5"))
    view = look(model, data)
    assert names(model, view.seen) == {"table"}
    assert not view.mirrored.any()
    assert not view.sky


def test_the_sky_is_seen_past_the_floors_edge():
    assert not look(*make("")).sky
    assert look(*make("", camera="2.5 0 2")).sky


def test_nothing_is_left_out_where_lights_cast_shadows():
    model, data = make(box("outside", "0 2.5 .1"), shadow="true")
    view = look(model, data)
    assert names(model, view.seen) == {"floor", "outside"} == names(model, view.mirrored)


def test_a_mirror_seen_from_behind_or_in_another_state_gives_way_to_the_next():
    behind = "<geom name='first' type='plane' size='.2 .2 .1' pos='0 0 1' euler='180 0 0' {}/>"
    behind = behind.format("material='shiny' group='1'")
    above = box("above", "0 0 2.5")
    model, data = make("", material="dull")
    floor_last = FLOOR.format(material="shiny")
    model = mujoco.MjModel.from_xml_string(
        f"<mujoco>{ASSETS}<worldbody>{LIGHT.format(shadow='false')}{behind}{floor_last}"
        f"<camera name='eye' pos='.5 0 2' fovy='60'/>{above}</worldbody></mujoco>"
    )
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    assert "above" in names(model, look(model, data).mirrored)
    model.geom("floor").rgba[3] = 0.5  # no mirror any more
    view = look(model, data)
    assert not view.mirrored.any()
    assert not view.reflections


def test_the_first_mirror_is_drawn_even_out_of_view():
    """Otherwise MuJoCo would mirror the scene in the second."""
    first = box("mirror", "0 2.8 .1", more="material='shiny'")
    model, data = make(first, material="shiny")
    assert names(model, look(model, data).seen) == {"floor"}  # the floor is the first
    body = first + FLOOR.format(material="shiny").replace("floor", "second")
    model, data = make(body, material="dull")
    assert "mirror" in names(model, look(model, data).seen)


def test_a_camera_close_to_the_floor_sees_the_sky_through_it():
    """Nearer than the view begins, nothing is drawn."""
    assert look(*make("", camera="0 0 .0001")).sky


def random_scene(seed: int):
    """Boxes, cylinders, wedges, walls, sites and several mirrors, some transparent.

    The camera looks anywhere, from anywhere.
    """
    rng = np.random.default_rng(seed)
    things = []
    for number in range(14):
        kind = rng.choice(["box", "box", "box", "cylinder", "mesh", "ellipsoid"])
        size = rng.uniform(0.02, 0.6, 3) * rng.choice([0.2, 1.0], 3)
        shape = "mesh='wedge'" if kind == "mesh" else f"size='{_text(size)}'"
        position, angles = rng.uniform([-2, -2, 0], [2, 2, 2]), rng.uniform(-180, 180, 3)
        if rng.random() < 0.5:
            angles = np.zeros(3)
        look_ = f"rgba='{_text([*rng.uniform(0.1, 1, 3), rng.choice([1, 1, 1, 0.4])])}'"
        if kind == "box" and rng.random() < 0.1:
            look_ = "material='shiny'"
        things.append(
            f"<geom name='g{number}' type='{kind}' {shape} group='1' pos='{_text(position)}' "
            f"euler='{_text(angles)}' {look_}/>"
        )
    if rng.random() < 0.3:
        things.append("<site type='box' size='.2 .1 .1' pos='.3 .2 1.9' rgba='0 1 0 1' group='1'/>")
    if rng.random() < 0.3:
        wall = "<geom type='plane' size='2 2 .1' pos='2 0 1' euler='0 -90 0' group='1' {}/>"
        things.insert(0, wall.format("material='shiny'" if rng.random() < 0.5 else ""))
    eye = rng.uniform([-1.5, -1.5, 0.005], [1.5, 1.5, 2.5])
    camera = f"{_text(eye)}' euler='{_text(rng.normal(size=3) * [25, 25, 90])}"
    material = "shiny" if rng.random() < 0.8 else "dull"
    return make("".join(things), camera=camera, material=material)


def _text(numbers) -> str:
    return " ".join(f"{number:.4f}" for number in numbers)


@pytest.mark.parametrize("seeds", [range(0, 30), range(30, 60)])
def test_pictures_of_random_scenes_stay_the_same_to_the_last_bit(seeds: range):
    left_out = mirrored = 0
    for seed in seeds:
        model, data = random_scene(seed)
        sim = SimpleNamespace(model=SimpleNamespace(_model=model), data=SimpleNamespace(_data=data))
        camera = SceneCamera(sim, "eye", 96, "exact")
        frame = camera.frame()
        view = camera._visibility.look(data)
        everything = View(view.seen | True, view.seen | True, True, True)
        camera._visibility.look = lambda *_, everything=everything, **__: everything
        assert np.array_equal(camera.frame(), frame), f"seed {seed}"
        left_out += (~(view.seen | view.mirrored)).sum()
        mirrored += view.mirrored.any()
        camera.close()
    assert left_out > 2 * len(seeds)
    assert mirrored > len(seeds) / 4


def test_most_of_the_robot_is_left_out(can_env):
    can_env.reset(seed=0)
    model, data = can_env.world.scene.env.sim.model._model, can_env.world.scene.env.sim.data._data
    visual = model.geom_group == 1
    view = can_env.world.camera._visibility.look(data, with_mirror=False)
    assert view.seen.sum() < 0.35 * visual.sum()
    seen = names(model, view.seen)
    assert {"gripper0_right_hand_visual", "gripper0_right_finger1_visual"} <= seen
    assert not any(name.startswith("robot0_g") for name in seen)


def test_large_meshes_lie_in_their_bounding_boxes(can_env):
    model = can_env.world.scene.env.sim.model._model
    pedestal = [i for i in range(model.ngeom) if model.geom(i).name == "fixed_mount0_pedestal_vis"]
    boxes, triangles = bounding_boxes(model, pedestal[0]), mesh_triangles(model, pedestal[0])
    assert len(boxes) == MAX_PARTS
    inside = np.abs(triangles[:, None] - boxes[None, :, :1]) <= boxes[None, :, 1:] + 1e-6
    assert inside.all((2, 3)).any(1).all()  # every triangle lies in one of them entirely


def test_a_box_hides_what_is_behind_it_as_rays_say():
    """Against casting rays from the camera to random points of random boxes' hulls."""
    rng = np.random.default_rng(0)
    verdicts = []
    for _ in range(400):
        cover = Boxes(
            np.eye(3)[None], np.array([[*rng.uniform(-0.3, 0.3, 2), -1.0]]), np.full((1, 3), 0.3)
        )
        centre = np.array([*rng.uniform(-0.8, 0.8, 2), rng.uniform(-3, -0.6)])
        corners = centre[:, None] + CORNERS * rng.uniform(0.05, 0.3, (3, 1))
        weights = rng.dirichlet(np.full(8, 0.3), 200)
        points = np.concatenate([corners.T, weights @ corners.T])
        steps = np.linspace(0.02, 1, 300)[:, None, None]
        blocked = (np.abs(steps * points - cover.centres[0]) < cover.halves[0]).all(-1).any(0)
        hidden = bool(cover.hide(corners[..., None])[0])
        verdicts.append((hidden, bool(blocked.all())))
    hidden, blocked = np.array(verdicts).T
    assert not (hidden & ~blocked).any()  # never wrong
    assert hidden.sum() > 0.9 * blocked.sum() > 20  # and rarely too careful


def test_the_strip_behind_the_mount_is_found():
    """A quad across the lower third of the picture, 0.2 in front of the camera."""
    low, high, wide = -0.2, -0.2 / 3, 0.5
    corners = np.array([[-wide, low, -0.2], [wide, low, -0.2], [wide, high, -0.2]])
    other = np.array([[-wide, low, -0.2], [wide, high, -0.2], [-wide, high, -0.2]])
    strip = find_strip(np.stack([corners, other]), tangent=1.0, near=0.01)
    assert strip.normal == pytest.approx([0, 1, -1 / 3], abs=0.01)
    assert strip.depth == pytest.approx(0.2)
    behind = np.array([0, -0.6, -1.0])[:, None] + 0.1 * CORNERS
    before = np.array([0, -0.06, -0.1])[:, None] + 0.001 * CORNERS
    across = np.array([0, -0.3, -1.0])[:, None] + 0.1 * CORNERS
    assert strip.hide(np.stack([behind, before, across], -1)).tolist() == [True, False, False]
    clipped = strip.clip(across[..., None])
    assert (strip.normal @ clipped[..., 0] > -1e-9).all()
    assert clipped[1].max() == pytest.approx(across[1].max())
    facing_away = find_strip(np.stack([corners, other])[:, ::-1], tangent=1.0, near=0.01)
    assert not facing_away.hide(behind[..., None])[0]


def test_a_thing_before_a_box_is_seen():
    model, data = make(box("before", "0 0 1.4") + box("table", "0 0 1", "2 2 .02"))
    assert names(model, look(model, data).seen) == {"before", "table"}
