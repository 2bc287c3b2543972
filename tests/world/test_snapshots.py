"""An episode that is taken up again goes on as if its words had been said again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from vlm_agent.common.errors import UserError
from vlm_agent.demonstrations.demonstrate import play_expert
from vlm_agent.world.actions import DEFAULT_WORDS
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.env import LanguageActionEnv
from vlm_agent.world.facts import all_facts
from vlm_agent.world.pool.snapshots import Snapshots
from vlm_agent.world.pool.worker import Frames, WorkerSettings, make_envs
from vlm_agent.world.robosuite.expert import ScriptedExpert
from vlm_agent.world.robosuite.scene import RobotScene

# Grips and lets go, so that the gripper is somewhere on its way.
WORDS = [5, 0, 6, 5, 2, 7, 5, 6, *np.random.default_rng(0).integers(0, 8, 12).tolist()]


def play(
    env: LanguageActionEnv, seed: int, actions: Sequence[int], begun: int = 0
) -> list[tuple[Any, ...]]:
    """Take an episode up after so many words and say the others: what it was like after each."""
    seen: list[tuple[Any, ...]] = []
    observation, info = env.reset(seed=seed, options={"actions": actions[:begun]})
    seen.append((env.digest(), observation, info))
    for action in actions[begun:]:
        observation, *outcome, info = env.step(action)
        seen.append((env.digest(), observation, info, outcome))
    return seen


def assert_goes_on(
    env: LanguageActionEnv, seed: int, actions: Sequence[int], begun: int, said: list[Any]
) -> None:
    """Taken up after ``begun`` words, it is as when all were said one by one."""
    seen = play(env, seed, actions, begun)
    np.testing.assert_equal(seen[0], said[begun][:3])
    np.testing.assert_equal(seen[1:], said[begun + 1 :])


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("Lift", {}),
        ("PickPlaceCan", {"controller_hz": 500}),
        ("Stack", {"robot": "UR5e"}),
        ("Door", {}),
    ],
)
def test_a_snapshot_is_bit_for_bit_where_the_words_lead(task: str, options: dict):
    env = LanguageActionEnv(task=task, frame_size=28, **options)
    said = play(env, 11, WORDS)
    assert not len(env.moments)
    assert_goes_on(env, 11, WORDS, 10, said)
    assert len(env.moments) == 10
    play(env, 12, [4, 4, 6], begun=2)
    assert_goes_on(env, 11, WORDS, 10, said)
    assert len(env.moments) == 12
    env.close()


def test_an_environment_goes_on_from_what_another_of_its_worker_remembers():
    """Over all of an expert's episode: before the can is held, on the way, at the end."""
    config = EnvConfig(frame_size=28)
    settings = WorkerSettings(
        slots=(0, 1),
        config=config,
        gamma=0.99,
        frames=Frames.allocate(2, (28, 28, 3)),
        gpu=None,
        make_env=LanguageActionEnv,
        facts=all_facts(),
        tells_state=False,
    )
    first, second = make_envs(settings).values()
    episode, _, _ = play_expert(7, config)
    actions = episode.actions
    said = play(first, 7, actions)
    assert said[-1][2]["is_success"]
    play(first, 7, actions, begun=len(actions))
    for begun in (len(actions) // 3, 2 * len(actions) // 3, len(actions)):
        assert second.moments.latest(7, actions[:begun])[0] == begun
        assert_goes_on(second, 7, actions, begun, said)
    for env in (first, second):
        env.close()


def test_a_snapshot_of_what_was_restored_is_the_same():
    env = LanguageActionEnv(task="Lift", frame_size=28)
    play(env, 3, WORDS, begun=6)
    env.reset(seed=3, options={"actions": WORDS[:4]})
    _, kept = env.moments.latest(3, WORDS[:4])
    np.testing.assert_equal(asdict(env.world.scene.snapshot()), asdict(kept.world.scene))
    env.close()


def test_tasks_that_count_for_themselves_are_replayed():
    """What has been wiped is no part of MuJoCo's state."""
    env = LanguageActionEnv(task="Wipe", frame_size=28)
    env.reset(seed=3, options={"actions": WORDS[:4]})
    assert not len(env.moments)
    env.close()


class CountingScene(RobotScene):
    """Counts the words that move it."""

    words_moved = 0

    def move(self, *motion: Any) -> None:
        self.words_moved += 1
        super().move(*motion)


def test_what_was_said_before_a_kept_moment_is_not_said_again():
    env = LanguageActionEnv(task="Lift", frame_size=28)
    env.world.scene.__class__ = CountingScene
    for actions, words in (([1, 2, 3], 3), ([1, 2, 3], 0), ([1, 2], 0), ([1, 2, 4, 5], 2)):
        env.world.scene.words_moved = 0
        observation, _ = env.reset(seed=3, options={"actions": np.array(actions)})
        assert env.world.scene.words_moved == words
        assert (observation["step"], observation["last_action"]) == (len(actions), actions[-1])
    env.reset(seed=4, options={"actions": [1, 2]})
    assert env.world.scene.words_moved == 2 + 2, "another seed is another episode"
    with pytest.raises(UserError, match=r"action 1\.5 is out of range"):
        env.reset(seed=4, options={"actions": [1, 1.5]})
    env.close()


def test_the_stage_once_reached_is_kept():
    """What was grasped and let go again had been grasped, also for who takes it up there."""
    env = LanguageActionEnv(task="Lift", frame_size=28)
    expert, actions, info = ScriptedExpert(env.world), [], env.reset(seed=3)[1]
    while info["stage"] != "grasped":
        actions.append(expert.act())
        *_, info = env.step(actions[-1])
    actions += [DEFAULT_WORDS.index("open gripper")] * 3
    for kept in (0, len(actions)):
        assert len(env.moments) == kept
        _, info = env.reset(seed=3, options={"actions": actions})
        assert info["stage"] == "grasped"
        assert not env.world.scene.is_grasped()
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
