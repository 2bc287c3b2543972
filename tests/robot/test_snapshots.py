"""An episode that is taken up again goes on as if its words had been said again."""

from __future__ import annotations

import numpy as np
import pytest

from vlm_agent.robot.config import EnvConfig
from vlm_agent.robot.env import LanguageActionEnv
from vlm_agent.robot.scene import Stage
from vlm_agent.robot.snapshots import Snapshots
from vlm_agent.robot.worker import Frames, WorkerSettings, make_envs


def _take_up(env: LanguageActionEnv, seed: int, actions: list[int]) -> list[bytes]:
    """Say the first words at once, the last ten one by one: what came out of each."""
    observation, info = env.reset(seed=seed, options={"actions": actions[:-10]})
    seen = [env.digest(), repr((observation, info)).encode()]
    for action in actions[-10:]:
        observation, *outcome = env.step(action)
        seen += [env.digest(), repr((observation, outcome)).encode()]
    return seen


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("Lift", {}),
        ("PickPlaceCan", {"controller_hz": 500}),
        ("Stack", {"robot": "UR5e"}),
        ("Door", {}),
    ],
)
def test_a_snapshot_is_bit_for_bit_what_a_replay_leads_to(task: str, options: dict):
    env = LanguageActionEnv(task=task, frame_size=28, **options)
    # Grips and lets go, so that the gripper is somewhere on its way.
    actions = [5, 0, 6, 5, 2, 7, 5, 6, *np.random.default_rng(0).integers(0, 8, 12).tolist()]
    replayed = _take_up(env, 11, actions)
    assert len(env.moments) == 10

    env.reset(seed=12, options={"actions": [4, 4, 6]})
    assert _take_up(env, 11, actions) == replayed
    assert len(env.moments) == 13

    env.moments = Snapshots()
    assert _take_up(env, 11, actions) == replayed
    env.close()


def test_what_was_said_before_a_kept_moment_is_not_said_again(monkeypatch):
    env = LanguageActionEnv(task="Lift", frame_size=28)
    said = []
    monkeypatch.setattr(env.scene, "move", lambda *motion: said.append(motion))
    monkeypatch.setattr(env.scene, "snapshot", lambda: None)
    monkeypatch.setattr(env.scene, "restore", lambda snapshot: None)
    for actions, words in (([1, 2, 3], 3), ([1, 2, 3], 0), ([1, 2], 0), ([1, 2, 4, 5], 2)):
        said.clear()
        observation, _ = env.reset(seed=3, options={"actions": actions})
        assert len(said) == words
        assert (observation["step"], observation["last_action"]) == (len(actions), actions[-1])
    env.reset(seed=4, options={"actions": [1, 2]})
    assert len(said) == 4, "another seed is another episode"
    env.close()


def test_the_stage_once_reached_is_kept():
    env = LanguageActionEnv(task="Lift", frame_size=28)
    env.reset(seed=3, options={"actions": [1]})
    env.scene.stage = lambda success: Stage.LIFTED  # type: ignore[method-assign]
    env.reset(seed=3, options={"actions": [1, 2]})
    del env.scene.stage
    _, info = env.reset(seed=3, options={"actions": [1, 2]})
    assert info["stage"] == "lifted"
    env.close()


def test_the_moments_used_longest_ago_make_room():
    moments: Snapshots[str] = Snapshots(room=2)
    moments.keep(0, [1], "a")
    moments.keep(0, [1, 2], "b")
    assert moments.latest(0, [1]) == (1, "a")
    moments.keep(1, [1], "c")
    assert len(moments) == 2
    assert moments.latest(0, [1, 2]) == (1, "a")
    assert moments.latest(1, [1, 5]) == (1, "c")
    assert moments.latest(2, [1]) == (0, None)


def test_the_environments_of_a_worker_share_their_moments():
    config = EnvConfig(task="Lift", frame_size=28)
    settings = WorkerSettings((0, 1), config, 0.99, Frames.allocate(2, 28), None, LanguageActionEnv)
    first, second = make_envs(settings).values()
    _take_up(first, 5, [1] * 12)
    assert second.moments.latest(5, [1, 1])[0] == 2
    for env in (first, second):
        env.close()
