"""Looks that change: what is drawn from a seed, what it changes, and that it can be undone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from vlm_agent.bench.world.looks import EVERYTHING
from vlm_agent.bench.world.stock import StockCamera
from vlm_agent.common.errors import UserError
from vlm_agent.world.actions import MOTIONS, Motion
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.env import LanguageActionEnv
from vlm_agent.world.render.camera import EyeInHandCamera
from vlm_agent.world.robosuite.appearance.disturbances import MOVED_AT, Disturbances
from vlm_agent.world.robosuite.appearance.looks import Looks, scene_editor
from vlm_agent.world.robosuite.appearance.randomize import RANDOMIZE, randomize_problems
from vlm_agent.world.robosuite.expert import ScriptedExpert
from vlm_agent.world.robosuite.scene import RobotScene

TO_THE_CAN = [3, 3, 3, 3, 0]
"""Words after which the can of seed 5 is in the picture."""

MASS = {"body_mass", "body_inertia", "body_subtreemass", "body_invweight0"}
MASS |= {"dof_invweight0", "dof_M0", "stat.meaninertia"}
PAINT, TEXTURE = {"geom_matid", "geom_rgba"}, {"geom_matid"}
LIGHT = {"light_diffuse", "vis.headlight.diffuse", "vis.headlight.ambient"}
THINGS = {"geom_rgba", "geom_pos", "geom_quat", "geom_size", "geom_aabb", "geom_rbound"}
SIZE = {"geom_size", "geom_aabb", "geom_rbound", "geom_pos", "mesh_vert", "bvh_aabb"}
SIZE |= {"site_size", "body_ipos"}

CHANGES: dict[str, tuple[Any, set[str], bool, bool]] = {
    "light_brightness": (0.5, LIGHT, True, False),
    "light_tint": (0.4, LIGHT, True, False),
    "light_turn": (60, {"light_dir"}, True, False),
    "camera_shift": (0.02, {"cam_pos"}, True, False),
    "camera_turn": (5, {"cam_quat"}, True, False),
    "camera_fov": (8, {"cam_fovy"}, True, False),
    "object_colour": ("blue", PAINT, True, False),
    "object_texture": ("checks", TEXTURE, True, False),
    "table_colour": ("#20b0ff", PAINT, True, False),
    "table_texture": ("grid", TEXTURE, True, False),
    "bin_colour": (["any"], PAINT, True, False),
    "bin_texture": (["dots"], TEXTURE, True, False),
    "distractors": (9, THINGS, True, False),
    "object_size": (1.2, SIZE | MASS - {"body_mass", "body_subtreemass"}, True, True),
    "object_mass": (3, MASS, False, False),
    "object_friction": (0.5, {"geom_friction"}, False, False),
    "arm_start": (0.05, set(), True, True),
    "object_moved": (0.05, set(), False, False),
    "motion_scale": (0.8, set(), False, False),
    "motion_angle": (20, set(), False, False),
}
"""Key -> a value, the model's fields that it changes, whether the picture, whether the joints."""


class Stage:
    """A scene with all that can be added to it, and a camera."""

    def __init__(self, task: str, **values: Any) -> None:
        self.values = values
        self.scene = RobotScene(task, edit=scene_editor(EnvConfig(randomize=values)))
        self.camera = EyeInHandCamera(self.scene, 56, "exact")
        self.model = self.scene.env.sim.model._model

    def show(self, seed: int = 5, words: list[int] | None = None, **settings: Any) -> np.ndarray:
        """The picture after these words, under other settings; they are undone afterwards."""
        looks = Looks(self.scene, EnvConfig(**settings))
        looks.reset(seed)
        for word in TO_THE_CAN if words is None else words:
            self.scene.move(MOTIONS[word], 0.03, 4)
        self.joints = np.concatenate(self.scene.physics_state())
        self.fields = all_fields(self.model)
        picture = self.camera.frame().astype(int)
        looks.undo()
        return picture


def all_fields(model: Any) -> dict[str, np.ndarray]:
    """Everything that a model says of a scene, but the pixels of its textures."""
    names = [name for name in dir(model) if isinstance(getattr(model, name), np.ndarray)]
    fields = {name: np.copy(getattr(model, name)) for name in names if name != "tex_data"}
    for name in ("diffuse", "ambient", "specular"):
        fields[f"vis.headlight.{name}"] = np.copy(getattr(model.vis.headlight, name))
    for name in ("extent", "center", "meansize", "meanmass", "meaninertia"):
        fields[f"stat.{name}"] = np.copy(getattr(model.stat, name))
    return fields


def differing(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> set[str]:
    return {name for name in one if one[name].tobytes() != other[name].tobytes()}


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage("PickPlaceCan", **EVERYTHING)
    yield stage
    stage.camera.close()
    stage.scene.close()


@pytest.fixture(scope="module")
def lift() -> Iterator[Stage]:
    ranges = {key: value for key, value in EVERYTHING.items() if not key.startswith("bin")}
    stage = Stage("Lift", **ranges)
    yield stage
    stage.camera.close()
    stage.scene.close()


@pytest.fixture(scope="module")
def changing() -> Iterator[LanguageActionEnv]:
    env = LanguageActionEnv(EnvConfig(frame_size=56, camera="exact", randomize=EVERYTHING))
    yield env
    env.close()


# --- what each setting changes ---------------------------------------------------------------


def test_every_key_is_tried_here_and_in_the_benchmark():
    assert set(CHANGES) == set(RANDOMIZE) == set(EVERYTHING)


@pytest.mark.parametrize("key", CHANGES)
def test_a_key_changes_what_it_says_and_nothing_else(stage, key):
    value, fields, picture_changes, joints_change = CHANGES[key]
    usual = stage.show(words=[])
    usual_fields, usual_joints = stage.fields, stage.joints
    picture = stage.show(words=[], randomize={key: value})
    assert differing(stage.fields, usual_fields) == fields
    assert (np.abs(picture - usual) > 4).any() == picture_changes
    assert np.array_equal(picture, usual) != picture_changes
    assert np.array_equal(stage.joints, usual_joints) != joints_change
    assert np.array_equal(stage.show(words=[]), usual)
    assert not differing(stage.fields, usual_fields)


def test_what_is_not_asked_for_changes_nothing(stage, can_env):
    """Hidden things and unused materials do not show, and the physics are the same to the bit."""
    camera = EyeInHandCamera(can_env.world.scene, 56, "exact")
    can_env.reset(seed=5, options={"actions": TO_THE_CAN})
    for settings in ({}, {"randomize": {"distractors": 0, "object_size": 1, "object_mass": 1}}):
        assert np.array_equal(stage.show(**settings), camera.frame())
        assert np.array_equal(stage.joints, np.concatenate(can_env.world.scene.physics_state()))
    camera.close()


def test_one_range_more_does_not_move_what_is_drawn_for_another(stage):
    stage.show(words=[], randomize={"light_turn": [0, 60], "distractors": [3, 9]})
    fields = stage.fields
    stage.show(words=[], randomize=EVERYTHING | {"light_turn": [0, 60], "distractors": [3, 9]})
    assert np.array_equal(stage.fields["light_dir"], fields["light_dir"])
    hidden = stage.fields["geom_rgba"][:, 3] == 0
    assert np.array_equal(hidden, fields["geom_rgba"][:, 3] == 0)


def test_what_is_drawn_lies_in_its_range_and_differs_between_episodes(stage):
    widths = []
    for seed in range(20):
        stage.show(seed, [], randomize={"camera_fov": [-10, 5]})
        widths.append(stage.fields["cam_fovy"].max() - 75)
    assert -10 <= min(widths) < -6
    assert 1 < max(widths) <= 5


def red_pixels(image: np.ndarray) -> np.ndarray:
    """Where the can is: rows and columns of its pixels."""
    return np.argwhere((image[..., 0] > 150) & (image[..., 1] < 80))


@pytest.mark.parametrize(
    ("settings", "axis", "sign"),
    [({"camera_shift": 0.05}, 1, -1), ({"camera_tilt": 5.0}, 0, 1)],
    ids=["moved to its right", "tilted upwards"],
)
def test_a_moved_camera_sees_the_can_elsewhere(stage, settings, axis, sign):
    usual = red_pixels(stage.show())
    joints = stage.joints
    assert len(usual) > 20
    moved = red_pixels(stage.show(**settings)).mean(0) - usual.mean(0)
    assert sign * moved[axis] > 3
    assert abs(moved[1 - axis]) < 1.5
    assert np.array_equal(stage.joints, joints)


@pytest.mark.parametrize(
    "settings", [{"object_colour": "blue"}, {"randomize": {"object_colour": ["blue"]}}]
)
def test_the_can_takes_another_colour(stage, settings):
    was_red = tuple(red_pixels(stage.show()).T)
    image = stage.show(**settings)
    assert (image[was_red][:, 2] > image[was_red][:, 0]).mean() > 0.9


def test_less_light_makes_a_darker_picture_and_factors_multiply(stage):
    assert stage.show(light=0.5).mean() < 0.75 * stage.show().mean()
    both = stage.show(light=0.5, randomize={"light_brightness": 0.5})
    assert np.array_equal(both, stage.show(light=0.25))


def test_distractors_lie_on_surfaces_and_away_from_what_can_be_moved(stage):
    for seed in range(6):
        stage.show(seed, [], randomize={"distractors": 6})
        can, _ = stage.scene.object_bounds()
        data = stage.scene.env.sim.data._data
        shown = [g for g in range(stage.model.ngeom) if "distractor" in stage.model.geom(g).name]
        shown = [g for g in shown if stage.fields["geom_rgba"][g, 3]]
        assert 4 <= len(shown) <= 6
        for geom in shown:
            assert np.linalg.norm(data.geom_xpos[geom, :2] - can[:2]) > 0.05
            lowest = stage.fields["geom_pos"][geom, 2] - stage.fields["geom_aabb"][geom, 5]
            assert lowest == pytest.approx(0.82, abs=1e-6)  # the bins' floors


# --- physics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stage", "lift"])
def test_a_larger_or_smaller_object_rests_where_it_was_put(name, request):
    """It fills other pixels, has another size, and stands on what it stood on."""
    stage, waiting = request.getfixturevalue(name), [7] * 3
    stage.show(words=waiting)
    centre, half = stage.scene.object_bounds()
    for factor in (0.8, 1.2):
        looks = Looks(stage.scene, EnvConfig(randomize={"object_size": factor}))
        looks.reset(5)
        assert stage.scene.object_position()[2] == stage.scene.resting_height
        there, size = stage.scene.object_bounds()
        above = there[2] - size[2] - (centre[2] - half[2])
        assert -1e-4 < above < 0.011  # as high above the table as robosuite has put it
        for word in waiting:
            stage.scene.move(MOTIONS[word], 0.03, 4)
        there, size = stage.scene.object_bounds()
        assert size == pytest.approx(factor * half, rel=0.02)
        assert there[2] - size[2] == pytest.approx(centre[2] - half[2], abs=1e-3)
        assert there[:2] == pytest.approx(centre[:2], abs=1e-3)
        looks.undo()


def test_a_heavier_object_falls_alike_but_takes_more_to_move(stage):
    """Its inverse weight, which contacts go by, is that of a body compiled with this mass."""
    looks = Looks(stage.scene, EnvConfig(randomize={"object_mass": 4, "object_size": 0.5}))
    can = stage.model.body("Can_main").id
    dof = stage.model.body_dofadr[can]
    before = stage.model.dof_invweight0[dof : dof + 6].copy()
    looks.reset(0)
    ratio = stage.model.dof_invweight0[dof : dof + 6] / before
    looks.undo()
    assert ratio == pytest.approx([1 / 4] * 3 + [1.0] * 3)


def test_motions_are_scaled_and_turned_by_what_is_drawn_at_each_word(stage):
    values = {"motion_scale": [0.5, 0.9], "motion_angle": [5, 30]}
    disturbances = Disturbances(stage.scene, values)
    forward = MOTIONS[0]
    said = [disturbances.perturb(forward, 3, number) for number in range(40)]
    assert said == [disturbances.perturb(forward, 3, number) for number in range(40)]
    assert said[0] != disturbances.perturb(forward, 4, 0)
    lengths = np.array([motion.length(0.03) for motion in said]) / 0.03
    angles = np.degrees(np.arccos([motion.direction[0] for motion in said]))
    assert 0.5 <= lengths.min() < 0.6 < 0.8 < lengths.max() <= 0.9
    assert 5 <= angles.min() < 10 < 25 < angles.max() <= 30
    assert {motion.direction[1] > 0 for motion in said} == {True, False}
    far = disturbances.perturb(Motion((0, 0, 1), distance=0.1, turn=(0, 0, 10)), 3, 0)
    assert far.distance == pytest.approx(0.1 * lengths[0])
    assert far.turn[2] == pytest.approx(10 * lengths[0])
    close = disturbances.perturb(MOTIONS[6], 3, 0)
    assert (close.gripper, close.direction) == ("close", (0, 0, 0))
    assert Disturbances(stage.scene, {}).perturb(forward, 3, 0) is forward


def test_a_word_moves_the_arm_as_far_as_was_drawn(changing, can_env):
    """The environment says the perturbed motion, not the word's own."""
    said = []
    for env in (changing, can_env):
        env.reset(seed=3)
        start = env.world.scene.target_position
        env.step(0)
        said.append(env.world.scene.target_position - start)
    disturbances = Disturbances(changing.world.scene, changing.config.randomize)
    drawn = disturbances.perturb(MOTIONS[0], 3, 0)
    base = changing.world.scene.base_rotation
    assert said[0] == pytest.approx(base @ drawn.direction * drawn.length(0.03), abs=1e-6)
    assert np.linalg.norm(said[0] - said[1]) > 1e-3


@pytest.mark.parametrize(
    "task", ["PickPlaceCan", pytest.param("PickPlace/milk", marks=pytest.mark.long)]
)
def test_the_object_is_moved_once_while_it_is_approached(task):
    """As far as was drawn, on what it lies on; whoever takes the episode up sees it too."""
    env = LanguageActionEnv(task=task, frame_size=28, randomize={"object_moved": 0.06})
    moved = []
    for seed in range(12):
        env.reset(seed=seed)
        places, up = [env.world.scene.object_position()], 4
        for _ in range(MOVED_AT[1] + 2):
            env.step(up)
            places.append(env.world.scene.object_position())
        ways = np.diff(places, axis=0)
        jumps = np.flatnonzero(np.linalg.norm(ways[:, :2], axis=1) > 0.02)
        assert len(jumps) <= 1
        for jump in jumps:
            assert MOVED_AT[0] <= jump <= MOVED_AT[1]
            assert np.linalg.norm(ways[jump, :2]) == pytest.approx(0.06, abs=0.004)
            assert abs(ways[jump, 2]) < 0.01
            middle = env.world.env.bin1_pos[:2]
            distances = [np.linalg.norm(place[:2] - middle) for place in places[jump : jump + 2]]
            assert distances[1] < max(distances[0], 0.08)
        moved.append(len(jumps))
        state = env.digest()
        for taken_up in ([up] * (MOVED_AT[1] + 2),) * 2:  # replayed, then from a snapshot
            env.reset(seed=seed, options={"actions": taken_up})
            assert env.digest() == state
    assert sum(moved) >= (12 if task == "PickPlaceCan" else 6)
    env.close()


def test_the_expert_solves_what_has_been_changed(changing):
    for seed in (0, 10):
        changing.reset(seed=seed)
        expert, ended = ScriptedExpert(changing.world), False
        while not ended:
            *_, terminated, truncated, info = changing.step(expert.act())
            ended = terminated or truncated
        assert info["is_success"]


# --- episodes ----------------------------------------------------------------------------------


def play(env: LanguageActionEnv, seed: int, words: list[int]) -> list[bytes]:
    """What it is like after the reset and after each word, to the last bit."""
    env.reset(seed=seed)
    digests = [env.digest()]
    for word in words:
        env.step(word)
        digests.append(env.digest() + env.privileged_state().tobytes())
    return digests


def test_episodes_are_the_same_in_any_order_and_environment(changing):
    words = {1: [3, 3, 5, 5, 6, 4], 2: [0, 2, 5, 7, 1, 3], 3: [5, 5, 5, 6, 4, 4]}
    first = {seed: play(changing, seed, words[seed]) for seed in (1, 2, 3)}
    again = {seed: play(changing, seed, words[seed]) for seed in (3, 1, 2)}
    assert again == first
    other = LanguageActionEnv(changing.config)
    assert {seed: play(other, seed, words[seed]) for seed in (2, 3)} == {2: first[2], 3: first[3]}
    for _ in range(2):  # by saying the words again, then from what was kept of that
        for seed in (1, 2, 3):
            other.reset(seed=seed, options={"actions": words[seed]})
            assert other.digest() + other.privileged_state().tobytes() == first[seed][-1]
    assert len(other.moments) == 18
    other.close()


def test_all_of_it_can_be_undone(stage):
    stage.show(words=[])
    usual = stage.fields
    looks = Looks(stage.scene, EnvConfig(randomize=EVERYTHING, light=0.7, camera_tilt=3.0))
    for seed in range(4):
        looks.reset(seed)
    looks.undo()
    stage.scene.reset(5)
    assert not differing(all_fields(stage.model), usual)


# --- pictures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stage", "lift"])
def test_exact_frames_are_stock_robosuites_whatever_changes(name, request):
    """The camera is older than the looks, robosuite's is made for each of them."""
    stage = request.getfixturevalue(name)
    exact = EyeInHandCamera(stage.scene, 112, "exact")
    looks, seen = Looks(stage.scene, EnvConfig(randomize=stage.values)), 0
    for seed in range(3):
        looks.reset(seed)
        stock = StockCamera(stage.scene, 112)
        for word in ([], [3, 1, 1], [5, 5, 5], [3, 3, 1]):
            for action in word:
                stage.scene.move(MOTIONS[action], 0.06, 4)
            frame, expected = exact.frame(), stock.frame()
            assert np.array_equal(frame, expected), f"seed {seed}"
            seen += len(np.unique(frame))
        stock.close()
    assert seen > 100
    looks.undo()
    exact.close()


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "key", "sentence"),
    [
        ({"light_brigthness": 1}, "light_brigthness", "did you mean 'light_brightness'"),
        ({"light_turn": [30, 10]}, "light_turn", "reversed, expected [10, 30]"),
        ({"object_size": [0.2, 1]}, "object_size", "[0.2, 1] is out of range: expected [low"),
        ({"object_size": "large"}, "object_size", "'large': expected [low, high] or a number"),
        ({"camera_shift": True}, "camera_shift", "True: expected"),
        ({"camera_shift": [0, 0.01, 0.02]}, "camera_shift", "expected [low, high]"),
        ({"camera_fov": float("nan")}, "camera_fov", "nan: expected"),
        ({"distractors": 2.5}, "distractors", "a whole number, from 0 to 12 (things)"),
        ({"object_colour": "bleu"}, "object_colour", "'bleu'; did you mean 'blue'"),
        ({"object_colour": "#12345"}, "object_colour", "#rrggbb"),
        ({"table_texture": ["own", 3]}, "table_texture", "3: expected names or a list"),
        ({"table_texture": []}, "table_texture", "the list is empty"),
    ],
)
def test_a_wrong_range_is_refused_in_one_sentence(values, key, sentence):
    problems = randomize_problems({"light_tint": [0, 0.1], **values})
    assert list(problems) == [f"randomize.{key}"]
    assert sentence in problems[f"randomize.{key}"]


def test_an_environment_refuses_it_too(lift):
    with pytest.raises(UserError, match="randomize.light_turn: .*reversed"):
        LanguageActionEnv(EnvConfig(task="Lift", randomize={"light_turn": [2, 1]}))
    with pytest.raises(UserError, match="randomize.bin_colour: the task 'Lift' has no bin"):
        Looks(lift.scene, EnvConfig(task="Lift", randomize={"bin_colour": "red"}))
    Looks(lift.scene, EnvConfig(tasks=["Lift", "Stack"], randomize={"bin_colour": "red"}))


def test_ranges_are_checked_without_a_simulator():
    room = "vlm_agent.world.robosuite.appearance.randomize"
    code = f"import sys; import {room}; assert 'mujoco' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
