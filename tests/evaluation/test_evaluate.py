import math

import pytest

from tests.worlds import ColourPool
from vlm_agent.evaluation import evaluate as evaluation_module
from vlm_agent.evaluation.evaluate import (
    episode_rates,
    evaluate,
    speaker,
    summarize,
    wilson_interval,
)
from vlm_agent.policy.decisions import act
from vlm_agent.rollout.collector import Episode
from vlm_agent.world.actions import DEFAULT_WORDS


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


def test_rates_count_each_stage_as_having_pas_the_ones_before():
    stages = ["none", "reached", "grasped", "lifted", "placed"]
    records = [
        Episode(i, [0] * (i + 1), float(i), stage == "placed", stage)
        for i, stage in enumerate(stages)
    ]
    result = summarize(records, DEFAULT_WORDS, seed=3)
    assert [result[f"{s}_rate"] for s in ("reached", "grasped", "lifted")] == [0.8, 0.6, 0.4]
    assert result["success_rate"] == 0.2
    assert (result["mean_return"], result["mean_length"]) == (2.0, 3.0)
    assert (result["ci95_low"], result["ci95_high"]) == wilson_interval(1, 5)
    assert result["episodes"][1]["words"] == ["forward", "forward"]


@pytest.mark.parametrize("greedy", [True, False])
def test_result_depends_neither_on_the_number_of_environments_nor_on_sharing(policy, greedy):
    policy.eval()
    alone = evaluate(speaker(policy), ColourPool(1), range(5), 7, greedy)
    together = evaluate(speaker(policy), ColourPool(3), range(5), 7, greedy)
    shared = evaluate(speaker(policy), ColourPool(2), [1, 3], 7, greedy)
    assert sorted(alone) == sorted(together) == [0, 1, 2, 3, 4]
    assert alone == together
    assert shared == {n: alone[n] for n in (1, 3)}
    assert len({record.seed for record in alone.values()}) == 5


def test_another_seed_plays_other_episodes(policy):
    policy.eval()
    one = evaluate(speaker(policy), ColourPool(2), range(2), 7, False)
    two = evaluate(speaker(policy), ColourPool(2), range(2), 8, False)
    assert {r.seed for r in one.values()}.isdisjoint(r.seed for r in two.values())
    assert [r.actions for r in one.values()] != [r.actions for r in two.values()]


def test_sampling_draws_another_number_for_every_episode_and_step(policy, monkeypatch):
    drawn = []

    def note(policy, observations, uniforms):
        drawn.extend(uniforms)
        return act(policy, observations, uniforms)

    monkeypatch.setattr(evaluation_module, "act", note)
    evaluate(speaker(policy.eval()), ColourPool(2, horizon=3), range(4), 0, greedy=False)
    assert len(drawn) == len(set(drawn)) == 4 * 3
