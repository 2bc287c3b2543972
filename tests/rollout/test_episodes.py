"""Rollouts of whole episodes, in groups that begin the same."""

import json

import numpy as np
import pytest

from tests.worlds import ColourPool, ScriptedPool, UnequalPool
from vlm_agent.common.errors import UserError
from vlm_agent.rollout.curriculum import MovingStart, ReverseCurriculum
from vlm_agent.rollout.episodes import EpisodeCollector
from vlm_agent.rollout.sources import FreshEpisodes, GroupedEpisodes
from vlm_agent.world.episode import Episode


def collector_for(pool, size: int = 2, groups: int = 1) -> EpisodeCollector:
    return EpisodeCollector(pool, GroupedEpisodes(FreshEpisodes(0), size), seed=0, groups=groups)


def test_who_is_done_waits_for_the_others(policy):
    """Two rounds: lengths 1 and 3, 2 and 1, 1 and 1."""
    script = ["t.t", ".tt", ".l ", "t  "]
    pool = ScriptedPool(script)
    buffer, episodes = collector_for(pool, size=3).collect_episodes(policy.eval(), 2)
    assert pool.words_said == [4, 3, 2]
    assert np.array_equal(buffer.said, [[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0]])
    assert np.array_equal(buffer.valid, buffer.said)
    assert np.array_equal(buffer.terminated, [[1, 0, 1], [0, 1, 1], [0, 0, 0], [1, 0, 0]])
    assert np.array_equal(buffer.truncated, [[0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0]])
    assert np.array_equal(buffer.rewards, [[10, 11, 12], [20, 21, 22], [30, 31, 0], [40, 0, 0]])
    returns = [10, 12, 11 + 21, 22, 31, 20 + 30 + 40]
    assert [episode.episode_return for episode in episodes] == returns
    assert list(episodes[-1].actions) == buffer.actions[1:, 0].tolist()
    assert len(buffer.observations.facts) == len(buffer.log_probs) == 4


class CountingPool(UnequalPool):
    """Counts the episodes that it begins."""

    begun = 0

    def _begin(self, slot, episode):
        self.begun += 1
        super()._begin(slot, episode)


def test_no_episode_is_begun_that_nobody_plays(policy):
    pool = CountingPool(4)
    collector_for(pool).collect_episodes(policy.eval(), 3)
    assert pool.begun == 12


def test_members_of_a_group_play_one_episode_with_words_of_their_own(policy):
    collector = collector_for(ColourPool(6), size=3)
    seeds, words = [], []
    for _ in range(2):
        _, episodes = collector.collect_episodes(policy.eval(), 2)
        assert len(episodes) == 12
        seeds += [episode.seed for episode in episodes]
        words += [episode.actions for episode in episodes]
    # Each round ends with all of its episodes, in the order of the environments.
    assert [seeds[i : i + 3] for i in range(0, 24, 3)] == [[seed] * 3 for seed in seeds[::3]]
    assert len(set(seeds)) == 8
    assert len(set(words)) > 20


@pytest.mark.parametrize("groups", [2, 3])
def test_turns_change_nothing_but_the_batch(policy, groups):
    whole, ended = collector_for(UnequalPool(6)).collect_episodes(policy.eval(), 2)
    buffer, again = collector_for(UnequalPool(6), groups=groups).collect_episodes(policy, 2)
    played = [sorted((e.seed, e.actions) for e in episodes) for episodes in (ended, again)]
    assert played[0] == played[1]
    assert np.array_equal(buffer.said, whole.said)
    assert not whole.said.all()
    assert np.array_equal(buffer.actions[whole.said], whole.actions[whole.said])
    assert np.allclose(buffer.log_probs[whole.said], whole.log_probs[whole.said], atol=1e-5)


def said_in(collector: EpisodeCollector, policy) -> list[tuple[int, tuple[int, ...]]]:
    return [(e.seed, e.actions) for e in collector.collect_episodes(policy.eval(), 1)[1]]


def test_an_interrupted_rollout_leaves_no_trace(policy):
    def stop():
        raise KeyboardInterrupt

    straight, stopped = collector_for(UnequalPool(4)), collector_for(UnequalPool(4))
    with pytest.raises(KeyboardInterrupt):
        stopped.collect_episodes(policy.eval(), 2, stop)
    for _ in range(2):
        assert said_in(stopped, policy) == said_in(straight, policy)


def test_state_survives_json(policy):
    straight = collector_for(UnequalPool(4))
    said_in(straight, policy)
    state = json.loads(json.dumps(straight.state_dict()))
    resumed = collector_for(UnequalPool(4))
    resumed.load_state_dict(state)
    assert state["running"] == []
    assert said_in(resumed, policy) == said_in(straight, policy)


def test_a_lost_episode_teaches_nothing_and_the_next_round_begins(policy):
    """In environment 0 the first episode is lost in its second word, in 1 the second at once."""
    pool = ScriptedPool(["..", "xt", ".x", "t "])
    buffer, episodes = collector_for(pool).collect_episodes(policy.eval(), 2)
    assert np.array_equal(buffer.lost, [[1, 0], [1, 0], [0, 1], [0, 0]])
    assert np.array_equal(buffer.said, [[1, 1], [1, 1], [1, 1], [1, 0]])
    assert np.array_equal(buffer.valid, buffer.said & ~buffer.lost)
    assert buffer.lost_episodes == 2
    assert [len(episode.actions) for episode in episodes] == [2, 2]


def test_an_episode_that_never_ends_is_an_error(policy):
    pool = ColourPool(2, horizon=99)
    pool.config = type(pool.config)(horizon=3)
    with pytest.raises(UserError, match=r"advantage: .* after its 6 words \(horizon: 3"):
        collector_for(pool).collect_episodes(policy.eval(), 2)


def test_groups_of_a_curriculum_begin_at_one_moment():
    shown = [Episode(7, tuple(range(6))), Episode(9, (0,) * 4)]
    lessons = ReverseCurriculum(shown, seed=0, threshold=0.6, stride=2, patience=1.5)
    source = GroupedEpisodes(lessons, 4)
    starts = [source.next_episode(0, env, 5) for env in range(80)]
    assert starts == [start for start in starts[::4] for _ in range(4)]
    assert len(set(starts)) > 2
    assert all(start.prefix_length > 0 for start in starts)
    (told,) = source.callbacks()
    assert isinstance(told, MovingStart)
    told.curriculum.learn([True] * 50)
    again = GroupedEpisodes(
        ReverseCurriculum(shown, seed=0, threshold=0.6, stride=2, patience=1.5), 4
    )
    again.load_state_dict(source.state_dict())
    assert again.source.steps_from_success == lessons.steps_from_success == 4
