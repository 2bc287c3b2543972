import math

import numpy as np
import pytest

from tests.worlds import ColourPool
from vlm_agent import Evaluation, compare, evaluate
from vlm_agent.common.errors import UserError
from vlm_agent.common.statistics import wilson_interval
from vlm_agent.evaluation.evaluate import episode_rates, play, speaker
from vlm_agent.world.actions import DEFAULT_WORDS
from vlm_agent.world.episode import Episode


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (10, 10), (57, 200)])
def test_wilson_interval_against_the_formula(k: int, n: int):
    z, p = 1.959963984540054, k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = wilson_interval(k, n)
    assert (low, high) == pytest.approx((max(0, centre - half), min(1, centre + half)), abs=1e-12)


def test_no_episodes_say_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert set(episode_rates([]).values()) == {None}


def test_rates_count_each_stage_as_having_passed_the_ones_before():
    stages = ["none", "reached", "grasped", "lifted", "placed"]
    episodes = tuple(
        Episode(i, (0,) * (i + 1), None, 0, float(i), stage == "placed", stage)
        for i, stage in enumerate(stages)
    )
    evaluation = Evaluation(episodes, DEFAULT_WORDS, {"seed": 3}, tuple(stages[1:]))
    result = evaluation.to_dict()
    assert evaluation.success_rate == 0.2
    assert evaluation.interval == wilson_interval(1, 5)
    assert [result[f"{s}_rate"] for s in ("reached", "grasped", "lifted")] == [0.8, 0.6, 0.4]
    assert result["success_rate"] == 0.2
    assert (result["mean_return"], result["mean_length"]) == (2.0, 3.0)
    assert (result["ci95_low"], result["ci95_high"]) == wilson_interval(1, 5)
    assert result["episodes"][1]["words"] == ["forward", "forward"]


@pytest.mark.parametrize("greedy", [True, False])
def test_result_depends_neither_on_the_number_of_environments_nor_on_sharing(policy, greedy):
    policy.eval()
    alone = play(speaker(policy), ColourPool(1), range(5), 7, greedy)
    together = play(speaker(policy), ColourPool(3), range(5), 7, greedy)
    shared = play(speaker(policy), ColourPool(2), [1, 3], 7, greedy)
    assert sorted(alone) == sorted(together) == [0, 1, 2, 3, 4]
    assert alone == together
    assert shared == {n: alone[n] for n in (1, 3)}
    assert len({record.seed for record in alone.values()}) == 5


def test_another_seed_plays_other_episodes(policy):
    policy.eval()
    one = play(speaker(policy), ColourPool(2), range(2), 7, False)
    two = play(speaker(policy), ColourPool(2), range(2), 8, False)
    assert {r.seed for r in one.values()}.isdisjoint(r.seed for r in two.values())
    assert [r.actions for r in one.values()] != [r.actions for r in two.values()]


def test_sampling_draws_another_number_for_every_episode_and_step():
    drawn = []

    def note(observations, uniforms):
        drawn.extend(uniforms)
        return np.zeros(len(uniforms), np.int64)

    play(note, ColourPool(2, horizon=3), range(4), 0, greedy=False)
    assert len(drawn) == len(set(drawn)) == 4 * 3


def test_a_policy_is_evaluated_on_the_episodes_of_a_split(policy):
    pool = ColourPool(3)
    result = evaluate(policy, pool, 5, seed=7, greedy=False)
    expected = play(speaker(policy.eval()), ColourPool(2), range(5), 7, greedy=False)
    assert list(result.episodes) == [expected[n] for n in range(5)]
    assert result.about == {"split": "validation", "greedy": False, "seed": 7}
    assert not policy.training
    assert evaluate(policy.train(), pool, 1).episodes
    assert policy.training  # as it was


def test_environments_that_tell_other_facts_are_refused(policy):
    pool = ColourPool(1)
    pool.facts = ("gripper", "weather")
    with pytest.raises(UserError, match="make the pool with facts=policy.facts"):
        evaluate(policy, pool, 1)


def test_what_cannot_be_played_is_refused(policy):
    with pytest.raises(UserError, match="num_episodes: 0: expected at least one"):
        evaluate(policy, ColourPool(1), 0)
    with pytest.raises(UserError, match="split: unknown split 'tset'; did you mean 'test'"):
        evaluate(policy, ColourPool(1), 1, split="tset")
    with pytest.raises(UserError, match="there is nothing to compare"):
        compare([])
