import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from scipy.spatial.transform import Rotation

from vlm_agent.common.errors import UserError
from vlm_agent.world.actions import DEFAULT_WORDS, MOTIONS
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.env import LanguageActionEnv
from vlm_agent.world.episode import Episode, load_episode, replay, save_episode
from vlm_agent.world.registry import make_env
from vlm_agent.world.robosuite.control import ArmControl
from vlm_agent.world.robosuite.expert import ScriptedExpert
from vlm_agent.world.robosuite.scene import PRIVILEGED_STATE, RobotScene

WORD = {word: index for index, word in enumerate(DEFAULT_WORDS)}


def play_expert(env: LanguageActionEnv, seed: int) -> tuple[list[int], list[float], list[dict]]:
    _, info = env.reset(seed=seed)
    expert, actions, rewards, infos, ended = ScriptedExpert(env.world), [], [], [info], False
    while not ended:
        actions.append(expert.act())
        _, reward, terminated, truncated, info = env.step(actions[-1])
        rewards.append(reward)
        infos.append(info)
        ended = terminated or truncated
    return actions, rewards, infos


@pytest.mark.parametrize("name", ["Lift", "LanguageAction"])
def test_gymnasium_accepts_the_environment(name: str):
    env = gymnasium.make(f"vlm_agent/{name}-v0", frame_size=56, horizon=5)
    check_env(env.unwrapped)
    env.close()


def test_default_frame_is_112_pixels_uint8():
    env = gymnasium.make("vlm_agent/PickPlaceCan-v0").unwrapped
    observation, _ = env.reset(seed=0)
    assert observation["image"].shape == (112, 112, 3)
    assert observation["image"].dtype == np.uint8
    env.close()


@pytest.mark.parametrize(
    ("word", "axis", "sign"),
    [
        ("forward", 0, 1),
        ("backward", 0, -1),
        ("left", 1, 1),
        ("right", 1, -1),
        ("up", 2, 1),
        ("down", 2, -1),
    ],
)
def test_each_direction_moves_the_gripper_by_steps(can_env, word: str, axis: int, sign: int):
    can_env.reset(seed=0)
    for _ in range(2):  # gravity and the first motion settle
        can_env.step(WORD["close gripper"])
    start = can_env.world.scene.gripper_position
    for _ in range(3):
        can_env.step(WORD[word])
    moved = can_env.world.scene.gripper_position - start
    assert sign * moved[axis] == pytest.approx(3 * can_env.config.step_size, abs=0.02)
    assert np.abs(np.delete(moved, axis)).max() < 0.015


def test_the_gripper_words_close_and_open_the_fingers(can_env):
    can_env.reset(seed=0)
    for word, fact, opening in [("close gripper", 1, 0.005), ("open gripper", 0, 0.038)]:
        for _ in range(4):
            observation, *_ = can_env.step(WORD[word])
        finger = can_env.world.scene.env.sim.data.qpos[7]
        assert abs(finger - opening) < 0.006
        assert observation["gripper"] == fact


def test_facts_count_words(can_env):
    observation, info = can_env.reset(seed=0)
    assert (observation["last_action"], observation["step"]) == (len(DEFAULT_WORDS), 0)
    assert info["seed"] == 0
    observation, *_ = can_env.step(WORD["left"])
    assert (observation["last_action"], observation["step"]) == (WORD["left"], 1)
    assert observation["words_left"] == can_env.config.horizon - 1


def test_an_episode_may_have_less_time_than_the_scene_gives(can_env):
    can_env.reset(seed=0, options={"actions": [0, 0], "horizon": 4})
    observation, _, _, truncated, _ = can_env.step(WORD["left"])
    assert (observation["words_left"], truncated) == (1, False)
    *_, truncated, _ = can_env.step(WORD["left"])
    assert truncated
    observation, _ = can_env.reset(seed=0, options={"horizon": 10_000})
    assert observation["words_left"] == can_env.config.horizon


@pytest.mark.parametrize("horizon", [-3, 0, 2.5, "5"])
def test_a_time_that_is_no_number_of_words_is_refused(can_env, horizon: object):
    with pytest.raises(UserError, match=f"horizon: {horizon!r}: expected a whole number"):
        can_env.reset(seed=0, options={"horizon": horizon})


def test_what_is_over_is_begun_again_before_anything_is_said(can_env):
    can_env.reset(seed=0, options={"horizon": 1})
    *_, truncated, _ = can_env.step(WORD["left"])
    assert truncated
    for _ in range(2):
        with pytest.raises(ResetNeeded):
            can_env.step(WORD["left"])
    observation, _ = can_env.reset(seed=0, options={"actions": [0, 0], "horizon": 2})
    assert observation in can_env.observation_space  # the time was up when it was taken up
    with pytest.raises(ResetNeeded):
        can_env.step(WORD["left"])
    can_env.reset(seed=0)
    assert can_env.step(WORD["left"])[0]["step"] == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: LanguageActionEnv(horizn=3),
        lambda: make_env("Lift", horizn=3),
        lambda: gymnasium.make("vlm_agent/Lift-v0", horizn=3),
    ],
    ids=["LanguageActionEnv", "make_env", "gymnasium.make"],
)
def test_a_setting_that_does_not_exist_is_refused_with_the_nearest(make):
    with pytest.raises(UserError, match="unknown setting 'horizn'; did you mean 'horizon'"):
        make()


def test_a_section_refuses_what_it_does_not_have():
    with pytest.raises(ValueError, match="horizn"):
        EnvConfig(horizn=3)


def test_seed_decides_the_scene(can_env):
    first = can_env.reset(seed=1)[0]["image"]
    other = can_env.reset(seed=2)[0]["image"]
    again = can_env.reset(seed=1)[0]["image"]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_expert_solves_the_task_and_progress_adds_up(can_env):
    """The words suffice, all stages are passed, and potential-based rewards telescope."""
    _, rewards, infos = play_expert(can_env, seed=7)
    assert infos[-1]["is_success"]
    stages = [info["stage"] for info in infos]
    assert list(dict.fromkeys(stages)) == ["none", "reached", "grasped", "lifted", "placed"]
    potentials = np.array([info["staged_reward"] for info in infos])
    assert potentials[-1] == 1.0
    gamma, bonus = can_env.gamma, can_env.config.success_bonus
    by_hand = gamma * potentials[1:] - potentials[:-1]
    by_hand[-1] += bonus
    assert np.allclose(rewards, by_hand, atol=1e-12)
    discounted = sum(gamma**t * r for t, r in enumerate(rewards))
    n = len(rewards)
    assert discounted == pytest.approx(gamma**n - potentials[0] + gamma ** (n - 1) * bonus)


def tell(env: LanguageActionEnv) -> dict[str, float]:
    """What a critic may know now, by its names."""
    state = env.privileged_state()
    assert state.dtype == np.float32
    return dict(zip(env.world.spec.privileged_names, state, strict=True))


def test_a_critic_is_told_where_things_are(can_env):
    actions, _, infos = play_expert(can_env, seed=7)
    can_env.reset(seed=7)
    told = [tell(can_env)]
    for action in actions:
        can_env.step(action)
        told.append(tell(can_env))
    # The places after the last word, in metres, from the simulator itself.
    world, sim = can_env.world.scene.env, can_env.world.scene.env.sim
    can = sim.data.body_xpos[world.obj_body_id["Can"]]
    hand = sim.data.get_site_xpos(
        can_env.world.scene.robot.gripper["right"].important_sites["grip_site"]
    )
    bin_ = world.target_bin_placements[world.object_id]
    last = told[-1]
    for n, axis in enumerate("xyz"):
        assert last[f"object_{axis}"] == pytest.approx(10 * (can - hand)[n], abs=1e-3)
        assert last[f"goal_{axis}"] == pytest.approx(10 * (bin_ - can)[n], abs=1e-3)
    assert last["abs_object_x"] == abs(last["object_x"])
    assert last["abs_object_y"] == abs(last["object_y"])
    flat = np.hypot(last["object_x"], last["object_y"])
    assert last["object_distance_xy"] == pytest.approx(flat, rel=1e-5)
    assert last["object_distance"] == pytest.approx(np.hypot(flat, last["object_z"]), rel=1e-5)
    assert told[0]["object_height"] == 0
    assert max(t["object_height"] for t in told) > 1  # it was carried a decimetre above its bin
    for t, info in zip(told, infos, strict=True):
        assert t["gripper_height"] == pytest.approx(t["object_height"] - t["object_z"], abs=1e-4)
        assert t["staged_reward"] == pytest.approx(info["staged_reward"])
    closed, grasped = (np.array([t[key] for t in told]) for key in ("gripper_closed", "grasped"))
    assert closed[0] == grasped[0] == grasped[-1] == 0
    assert grasped[closed == 0].mean() < 0.1 < 0.5 < grasped[closed == 1].mean()
    gaps = np.array([t["finger_gap"] for t in told])
    can_env.reset(seed=7)
    can_env.step(WORD["close gripper"])
    in_the_air = tell(can_env)
    assert (in_the_air["gripper_closed"], in_the_air["grasped"]) == (1, 0)
    assert gaps[closed == 1].min() < 0.75 * gaps.max()


def test_what_a_task_does_not_have_is_zero_for_a_critic():
    for task, missing in (
        ("Lift", ("goal_x", "goal_y", "goal_z")),
        ("Door", PRIVILEGED_STATE[:12]),
    ):
        env = LanguageActionEnv(EnvConfig(task=task, frame_size=28))
        info = env.reset(seed=0)[1]
        told = tell(env)
        env.close()
        assert not any(told[name] for name in missing)
        assert told["finger_gap"] > 0
        assert told["staged_reward"] == pytest.approx(info["staged_reward"])


def test_episode_replays_bit_for_bit(can_env, tmp_path):
    actions, _, infos = play_expert(can_env, seed=7)
    path = tmp_path / "episode.json"
    save_episode(path, Episode(7, tuple(actions)), can_env.config, DEFAULT_WORDS)
    episode, config, words = load_episode(path)
    assert (config, words) == (can_env.config, DEFAULT_WORDS)
    first = [o["image"] for o in replay(can_env, episode)]
    assert tell(can_env)["staged_reward"] == np.float32(infos[-1]["staged_reward"])
    can_env.reset(seed=3)
    for word in ("down", "close gripper", "close gripper", "left"):  # another episode between
        can_env.step(WORD[word])
    second = [o["image"] for o in replay(can_env, episode)]
    assert len(first) == len(actions) + 1
    assert np.array_equal(first, second)


def test_reset_can_take_an_episode_up_where_it_stood(can_env):
    actions = [WORD[w] for w in ("forward", "down", "close gripper", "close gripper", "left")]
    can_env.reset(seed=4)
    for action in actions[:4]:
        before, *_ = can_env.step(action)
    expected = can_env.step(actions[4])
    taken_up, _ = can_env.reset(seed=4, options={"actions": actions[:4]})
    assert np.array_equal(taken_up["image"], before["image"])
    assert {k: v for k, v in taken_up.items() if k != "image"} == {
        k: v for k, v in before.items() if k != "image"
    }
    after = can_env.step(actions[4])
    assert np.array_equal(after[0]["image"], expected[0]["image"])
    np.testing.assert_equal(after[1:], expected[1:])


def test_lift_staged_and_sparse_rewards():
    env = LanguageActionEnv(EnvConfig(task="Lift", frame_size=56, reward="staged"))
    actions, rewards, infos = play_expert(env, seed=0)
    assert infos[-1]["stage"] == "placed"
    assert rewards == [info["staged_reward"] for info in infos[1:]]
    sparse = LanguageActionEnv(EnvConfig(task="Lift", frame_size=56, reward="sparse"))
    sparse.reset(seed=0)
    assert [sparse.step(a)[1] for a in actions] == [0.0] * (len(actions) - 1) + [1.0]
    env.close()
    sparse.close()


def test_time_limit_truncates_and_success_does_not():
    env = LanguageActionEnv(EnvConfig(task="Lift", frame_size=56, horizon=3))
    env.reset(seed=0)
    ends = [env.step(WORD["up"])[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]
    actions, _, _ = play_expert(LanguageActionEnv(EnvConfig(task="Lift", frame_size=56)), seed=0)
    just_enough = LanguageActionEnv(EnvConfig(task="Lift", frame_size=56, horizon=len(actions)))
    just_enough.reset(seed=0)
    *_, terminated, truncated, _ = [just_enough.step(a) for a in actions][-1]
    assert (terminated, truncated) == (True, False)


@pytest.mark.parametrize("action", [8, -1, 100, 1.0, "up"])
def test_a_word_out_of_range_is_refused(can_env, action: object):
    can_env.reset(seed=0)
    with pytest.raises(UserError, match="the words are 0 to 7"):
        can_env.step(action)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "PickPlaceCam"}, "'PickPlaceCam'.*'PickPlaceCan'"),
        ({"task": "TwoArmLift"}, "a robosuite task for two arms"),
        ({"robot": "Pnda"}, "'Pnda'.*'Panda'"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(settings: dict, message: str):
    with pytest.raises(UserError, match=message):
        LanguageActionEnv(EnvConfig(**settings))


def test_a_gripper_without_motors_is_no_obstacle():
    env = LanguageActionEnv(EnvConfig(task="Wipe", frame_size=56))
    env.reset(seed=0)
    env.step(WORD["close gripper"])
    env.close()


def test_pushing_against_the_table_does_not_wind_the_target_up(can_env):
    can_env.reset(seed=0)
    for _ in range(20):
        can_env.step(WORD["down"])
    bottom = can_env.world.scene.gripper_position[2]
    for _ in range(4):
        can_env.step(WORD["up"])
    assert can_env.world.scene.gripper_position[2] - bottom > 0.02


@pytest.mark.parametrize(("controller_hz", "calls"), [(100, 20), (500, 100)])
def test_the_controller_runs_at_its_own_rate(controller_hz: int, calls: int):
    config = EnvConfig(task="Lift", frame_size=56, controller_hz=controller_hz)
    env = LanguageActionEnv(config)
    env.reset(seed=0)
    counted = env.world.scene.physics.control = CountedControl(
        env.world.scene.robot, env.world.scene.arm
    )
    env.step(WORD["left"])  # 4 control steps of 25 physics steps
    assert (counted.runs, counted.goals) == (calls, 4)
    env.close()


class CountedControl(ArmControl):
    """Counts what it is asked for."""

    runs = goals = 0

    def run(self) -> None:
        self.runs += 1
        super().run()

    def set_goal(self, pose: np.ndarray, grip: np.ndarray) -> None:
        self.goals += 1
        super().set_goal(pose, grip)


@pytest.mark.parametrize("robot", ["Panda", "Jaco"])
def test_at_500_hz_a_word_is_robosuites_own_steps_to_the_last_bit(robot: str):
    """The same goals given to ``env.step``, with all its observables and histories."""
    scene = RobotScene("Lift", robot, controller_hz=500)
    words = ["down", "left", "close gripper", "close gripper", "forward", "up", "open gripper"]
    ours, stock = [], []
    scene.reset(3)
    site = scene.env.sim.data.site_xmat[scene.robot.eef_site_id[scene.arm]]
    upright = Rotation.from_matrix(np.array(site).reshape(3, 3)).as_rotvec()
    goals = []
    for word in words:
        motion = MOTIONS[WORD[word]]
        scene.move(motion, 0.03, 4)
        grip = [1.0 if scene.gripper_closed else -1.0] * scene.robot.gripper[scene.arm].dof
        goals.append(np.concatenate([scene.target_position, upright, grip]))
        ours.append(np.concatenate(scene.physics_state()))
    scene.reset(3)
    for goal in goals:
        for _ in range(4):
            scene.env.step(goal)
        stock.append(np.concatenate(scene.physics_state()))
    assert np.array_equal(ours, stock)
    scene.close()
