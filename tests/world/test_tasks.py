"""Tasks: four in one bin, several in one process, and a user's own."""

import numpy as np
import pytest

from vlm_agent.common.errors import UserError
from vlm_agent.world.actions import Motion
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.env import LanguageActionEnv
from vlm_agent.world.robosuite.expert import ScriptedExpert
from vlm_agent.world.robosuite.names import name_problems
from vlm_agent.world.robosuite.scene import RobotScene, Stage
from vlm_agent.world.robosuite.scenes import Scenes
from vlm_agent.world.robosuite.tasks import get_task

OWN = "tests.world.own_tasks"


@pytest.fixture(scope="module")
def scenes():
    scenes = Scenes(["PickPlace/can", "PickPlace/milk", "PickPlace/bread", "Lift"])
    yield scenes
    scenes.close()


def put(scene: RobotScene, name: str, place: np.ndarray) -> None:
    """Have an object of robosuite's PickPlace be somewhere, and let it settle a little."""
    thing = next(thing for thing in scene.env.objects if thing.name == name)
    pose = np.concatenate([place, [1.0, 0.0, 0.0, 0.0]])
    scene.env.sim.data.set_joint_qpos(thing.joints[0], pose)
    scene.move(Motion(), 0.03, 1)


def its_bin(scene: RobotScene, name: str) -> np.ndarray:
    number = [thing.name for thing in scene.env.objects].index(name)
    return scene.env.target_bin_placements[number] + [0.0, 0.0, 0.09]


def test_tasks_with_the_same_objects_share_a_simulation(scenes):
    assert set(scenes.by_name) == {"PickPlace", "Lift"}
    found = {scenes.task_of(seed): scenes.about(scenes.task_of(seed)) for seed in range(40)}
    assert set(found) == set(scenes.tasks)
    assert found["PickPlace/can"] is found["PickPlace/milk"] is scenes.by_name["PickPlace"]
    assert found["Lift"] is scenes.by_name["Lift"]


def test_the_seed_alone_chooses_the_task(scenes):
    chosen = [scenes.about(scenes.task_of(seed)).task_name for seed in (3, 14, 15, 3)]
    assert chosen == [scenes.task_of(seed) for seed in (3, 14, 15, 3)]
    assert scenes.about(scenes.task_of(14)).task is get_task(scenes.task_of(14))


def test_the_named_object_alone_counts(scenes):
    scene = scenes.by_name["PickPlace"]
    scene.choose("PickPlace/milk")
    scene.reset(seed=2)
    assert not scene.is_success()
    put(scene, "Can", its_bin(scene, "Can"))
    assert not scene.is_success()
    assert scene.staged_reward() < 0.1
    scene.choose("PickPlace/can")
    assert scene.is_success()
    assert scene.staged_reward() == 1.0
    assert scene.stage(is_success=True) == Stage.PLACED
    scene.choose("PickPlace/milk")
    put(scene, "Milk", its_bin(scene, "Can"))  # into the wrong bin
    assert not scene.is_success()
    put(scene, "Milk", its_bin(scene, "Milk"))
    assert scene.is_success()


def test_the_named_object_alone_is_reached(scenes):
    scene = scenes.by_name["PickPlace"]
    scene.choose("PickPlace/bread")
    scene.reset(seed=2)
    put(scene, "Can", scene.gripper_position)
    assert scene.stage(is_success=False) == Stage.NONE
    far = scene.staged_reward()
    put(scene, "Can", its_bin(scene, "Milk"))
    put(scene, "Bread", scene.gripper_position)
    assert scene.stage(is_success=False) == Stage.REACHED
    assert scene.staged_reward() > far + 0.03


@pytest.mark.parametrize(
    ("tasks", "problem"),
    [
        ([], "tasks: expected one"),
        (["Lift", "Lift"], "'Lift' stands there twice"),
        (["Lift", "PickPlace/milc"], "unknown one-arm.*'PickPlace/milc'.*'PickPlace/milk'"),
    ],
)
def test_tasks_that_cannot_be_are_refused(tasks, problem):
    with pytest.raises(UserError, match=problem):
        Scenes(tasks).close()


def test_a_task_of_ones_own_is_solved_like_any_other():
    env = LanguageActionEnv(EnvConfig(task=f"{OWN}:PushedAside", frame_size=28))
    env.reset(seed=1)
    assert env.world.scene.can_be_restored
    expert, terminated, truncated = ScriptedExpert(env.world), False, False
    while not (terminated or truncated):
        *_, terminated, truncated, info = env.step(expert.act())
    env.close()
    assert terminated
    assert info["stage"] == "placed"


def test_what_ones_own_declares_and_what_it_takes_over():
    assert get_task(f"{OWN}:PushedAside").description == "Put the cube on the left of the table."
    like = get_task(f"{OWN}:Like")
    assert (like.description, like.can_be_restored) == (get_task("Lift").description, False)


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        ("no_such_module:Mine", "no module 'no_such_module'"),
        (":Mine", "expected module:name"),
        (f"{OWN}:Mine", "unknown name in .*'Mine'"),
        (f"{OWN}:a_function", "expected a class that is a robosuite environment of one arm"),
        (f"{OWN}:TwoArms", "of one arm"),
    ],
)
def test_what_is_no_task_is_refused(task, problem):
    assert set(name_problems(task, "Panda")) == {"task"}
    with pytest.raises(UserError, match=f"task: .*{problem}"):
        get_task(task)


def test_a_declaration_that_is_no_task_is_refused():
    with pytest.raises(UserError, match="its vlm_task is 'Lift it.'"):
        get_task(f"{OWN}:Wrong")
