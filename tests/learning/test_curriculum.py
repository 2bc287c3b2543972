"""Episodes that begin near their end."""

import json

import numpy as np

from tests.learning.worlds import ColourPool
from vlm_agent.learning.curriculum import WINDOW, ReverseCurriculum
from vlm_agent.learning.rollout import RolloutCollector
from vlm_agent.robot.config import EnvConfig
from vlm_agent.robot.episode import Episode
from vlm_agent.robot.pool import EnvPool

EPISODES = [Episode(7, tuple(range(6))), Episode(9, (0,) * 4)]


def curriculum() -> ReverseCurriculum:
    return ReverseCurriculum(EPISODES, seed=0, threshold=0.6, stride=2, patience=1.5)


def test_at_first_only_the_last_words_are_missing():
    starts = [curriculum().start(0, env, 0) for env in range(50)]
    whole = {episode.seed: episode.actions for episode in EPISODES}
    left = [len(whole[start.seed]) - len(start.actions) for start in starts]
    assert set(left) == {1, 2}
    assert all(whole[s.seed][: len(s.actions)] == s.actions for s in starts)
    assert {start.seed for start in starts} == {7, 9}
    # The policy has 1.5 times the missing words, rounded up, and a stride.
    times = {1: 2 + 2, 2: 3 + 2}
    assert [start.horizon - len(start.actions) for start in starts] == [times[n] for n in left]


def test_it_moves_back_when_enough_are_solved():
    lessons = curriculum()
    lessons.learn([True] * 59 + [False] * 41)
    assert lessons.words_left == 2
    lessons.learn([True])  # the oldest success falls out, so the rate stays 59 %
    assert lessons.words_left == 2
    lessons.learn([True] * 5 * WINDOW)  # one rollout; none of it began further back
    assert lessons.words_left == 4
    for _ in range(5):
        lessons.learn([True] * WINDOW)
    assert (lessons.words_left, lessons.share) == (6, 1.0)
    assert () in {lessons.start(0, env, 0).actions for env in range(50)}


def test_it_goes_on_where_it_was():
    lessons, again = curriculum(), curriculum()
    lessons.learn([True] * 130)
    again.load_state_dict(lessons.state_dict())
    lessons.learn([True] * 70)
    again.learn([True] * 70)
    assert again.state_dict() == lessons.state_dict()
    assert again.start(3) == lessons.start(3)


def test_a_rollout_begins_in_the_middle_of_episodes(policy):
    collector = RolloutCollector(ColourPool(3, horizon=8), seed=0, rank=0, curriculum=curriculum())
    _, finished = collector.collect_rollout(policy.eval(), 6)
    whole = {episode.seed: episode.actions for episode in EPISODES}
    assert len(finished) >= 3
    for record in finished:
        begun = whole[record.seed][: len(whole[record.seed]) - 2]
        assert tuple(record.actions[: len(begun)]) == begun
        assert len(record.actions) == min(8, record.horizon)
    assert {len(record.actions) for record in finished} > {8}
    state = json.loads(json.dumps(collector.state_dict()))
    assert state["curriculum"]["words_left"] == 2
    again = RolloutCollector(ColourPool(3, horizon=8), seed=0, rank=0, curriculum=curriculum())
    again.load_state_dict(state)
    for one, other in zip(again.running, collector.running, strict=True):
        assert one.episode == other.episode
        assert other.horizon is not None


def test_a_worker_begins_the_following_episode_where_it_is_asked_to():
    middle = Episode(11, (5, 5, 0))
    config = EnvConfig(task="Lift", frame_size=28, horizon=4)
    with EnvPool(config, 1) as pool:
        expected = pool.reset({0: middle})
        pool.reset({0: Episode(12, (1, 1, 1))})
        led_to = pool.step({0: 1}, {0: middle})
    assert led_to.truncated[0]
    assert np.array_equal(led_to.next_observations.frames, expected.frames)
    assert np.array_equal(led_to.next_observations.facts, expected.facts)
