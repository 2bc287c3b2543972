"""Episodes that begin near their end."""

import json

import numpy as np

from tests.conftest import ROOT
from tests.short_runs import metrics_of, trainer_for
from tests.worlds import ColourPool
from vlm_agent.rollout.collector import RolloutCollector
from vlm_agent.rollout.curriculum import WINDOW, MovingStart, ReverseCurriculum
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.episode import Episode
from vlm_agent.world.pool.pool import EnvPool

EPISODES = [Episode(7, tuple(range(6))), Episode(9, (0,) * 4)]


def curriculum() -> ReverseCurriculum:
    return ReverseCurriculum(EPISODES, seed=0, threshold=0.6, stride=2, patience=1.5)


def test_at_first_only_the_last_words_are_missing():
    starts = [curriculum().next_episode(0, env, 0) for env in range(50)]
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
    solved = int(0.6 * WINDOW)
    lessons.learn([False] * (WINDOW - solved + 1) + [True] * (solved - 1))
    assert lessons.steps_from_success == 2
    lessons.learn([True])  # a failure falls out
    assert lessons.steps_from_success == 4
    for _ in range(2):
        lessons.learn([True] * WINDOW)
    assert (lessons.steps_from_success, lessons.share) == (6, 1.0)
    assert () in {lessons.next_episode(0, env, 0).actions for env in range(50)}


def test_one_rollout_moves_it_one_stride():
    lessons = curriculum()
    lessons.learn([True] * 5 * WINDOW)  # none of them began further back
    assert lessons.steps_from_success == 4


def test_it_moves_forth_when_too_few_are_solved():
    lessons = curriculum()
    for _ in range(2):
        lessons.learn([True] * WINDOW)
    assert lessons.steps_from_success == 6
    enough = int(0.3 * WINDOW)  # half of the threshold
    lessons.learn([True] * enough + [False] * (WINDOW - enough))
    assert lessons.steps_from_success == 6
    lessons.learn([False])  # a success falls out
    assert lessons.steps_from_success == 4
    for _ in range(3):
        lessons.learn([False] * WINDOW)
    assert lessons.steps_from_success == 2


def test_every_other_episode_begins_farthest():
    whole = Episode(7, tuple(range(6)) * 5)
    lessons = ReverseCurriculum([whole], seed=0, threshold=0.6, stride=4, patience=1.5)
    for _ in range(4):
        lessons.learn([True] * WINDOW)
    begun = [len(lessons.next_episode(0, env, 0).actions) for env in range(2000)]
    left = np.bincount([30 - n for n in begun], minlength=21)
    assert left[0] == 0
    assert len(left) == 21
    # A fourth of one half among the farthest four, and a twentieth of the other among all twenty.
    assert np.allclose(left[1:17] / 2000, 0.5 / 20, atol=0.015)
    assert np.allclose(left[17:] / 2000, 0.5 / 4 + 0.5 / 20, atol=0.03)


def farthest(lessons: ReverseCurriculum, seed: int, length: int) -> list[int]:
    """After how many words an episode of that seed would have begun farthest."""
    return [n for n in range(length) if lessons.is_farthest(Episode(seed, prefix_length=n))]


def test_only_episodes_from_where_the_start_is_now_are_counted():
    lessons = curriculum()
    lessons.learn([True] * WINDOW)  # three or four words are missing now
    assert [lessons.is_farthest(Episode(7, prefix_length=begun)) for begun in range(6)] == [
        False,
        False,
        True,
        True,
    ] + [False] * 2
    # Of the short one, that is its beginning; it stays so when the others begin even earlier.
    assert [lessons.is_farthest(Episode(9, prefix_length=begun)) for begun in range(4)] == [
        True,
        True,
        False,
        False,
    ]
    lessons.learn([True] * WINDOW)
    assert [lessons.is_farthest(Episode(9, prefix_length=begun)) for begun in range(4)] == [
        True,
        False,
        False,
        False,
    ]


def test_it_goes_on_where_it_was():
    lessons, again = curriculum(), curriculum()
    lessons.learn([True] * (WINDOW + WINDOW // 2))
    lessons.learn([True] * 5)
    again.load_state_dict(lessons.state_dict())
    lessons.learn([True] * 70)
    again.learn([True] * 70)
    assert again.state_dict() == lessons.state_dict()
    assert again.next_episode(0, 3, 0) == lessons.next_episode(0, 3, 0)


def collector() -> RolloutCollector:
    return RolloutCollector(ColourPool(3, horizon=8), curriculum(), seed=0)


def test_a_rollout_begins_in_the_middle_of_episodes(policy):
    mine = collector()
    _, finished = mine.collect_rollout(policy.eval(), 6)
    whole = {episode.seed: episode.actions for episode in EPISODES}
    assert len(finished) >= 3
    for episode in finished:
        begun = whole[episode.seed][: len(whole[episode.seed]) - 2]
        assert episode.actions[: len(begun)] == begun
        assert curriculum().is_farthest(episode)
        assert len(episode.actions) == min(8, episode.horizon)
        assert episode.length == len(episode.actions) - episode.prefix_length < 6
    assert {len(episode.actions) for episode in finished} > {8}
    state = json.loads(json.dumps(mine.state_dict()))
    assert state["source"]["steps_from_success"] == 2
    again = collector()
    again.load_state_dict(state)
    assert again.running == mine.running
    assert all(episode.horizon is not None for episode in mine.running)


def test_of_the_farthest_starts_only_training_learns_and_logs(recipe_for):
    trainer = trainer_for(recipe_for())
    lessons = curriculum()
    lessons.learn([True] * WINDOW)  # three or four words are missing now
    near = Episode(7, (0,) * 6, success=True, prefix_length=5)
    far = Episode(7, (0,) * 6, success=False, prefix_length=2)
    moving = MovingStart(lessons)
    moving.on_rollout_end(trainer, None, [near, near, near, far])
    assert trainer.metrics == {"curriculum_share": 4 / 6, "farthest_success_rate": 0.0}
    assert lessons.state_dict() == {"steps_from_success": 4, "recent": [False]}
    moving.on_rollout_end(trainer, None, [far] * WINDOW)
    assert trainer.metrics["curriculum_share"] == 2 / 6


def test_a_run_with_a_curriculum_counts_the_policys_own_words(recipe_for):
    shown = {"task": "Lift", "frame_size": 28, "horizon": 40, "seed": 4, "demo_noise": 0.1}
    shown |= {"demonstrations": str(ROOT / "tests/demonstrations/format_1")}
    recipe = recipe_for(**shown, num_demo_episodes=3, curriculum="reverse", run_name="starter")
    trainer_for(recipe, pool=ColourPool(4, horizon=40)).train(64)
    rows = metrics_of(recipe)
    assert all(row["curriculum_share"] > 0 for row in rows)
    lengths = [row["episode_length"] for row in rows if row["episode_length"] is not None]
    assert lengths
    assert max(lengths) <= 2 * 3 + 3  # patience and stride, and none of the expert's words


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
