"""Advantages within groups, worked out on paper."""

import numpy as np
import pytest

from vlm_agent.ppo.groups import group_advantages

REWARDS = np.array(
    [
        [1.0, 0.0, 2.0, 0.1, 0.1, 0.1],
        [9.0, 4.0, 2.0, 9.0, 0.0, 9.0],
        [9.0, 9.0, 3.0, 9.0, 9.0, 9.0],
    ]
)
"""Two groups of three; what nobody earned is 9."""
LENGTHS = np.array([1, 2, 3, 1, 2, 1])
SAID = np.arange(3)[:, None] < LENGTHS
ENDED = np.arange(3)[:, None] == LENGTHS - 1
DEVIATION = np.sqrt((9 + 0 + 9) / 3)


@pytest.mark.parametrize(
    ("baseline", "by_deviation", "expected"),
    [
        # The returns are 1, 4 and 7, whose mean is 4; of the others 5.5, 4 and 2.5.
        ("mean", False, [-3.0, 0.0, 3.0]),
        ("leave_one_out", False, [-4.5, 0.0, 4.5]),
        ("mean", True, [-3.0 / DEVIATION, 0.0, 3.0 / DEVIATION]),
        ("leave_one_out", True, [-4.5 / DEVIATION, 0.0, 4.5 / DEVIATION]),
    ],
)
def test_every_word_has_its_episodes_advantage(baseline, by_deviation, expected):
    advantages, deviations, flat = group_advantages(REWARDS, ENDED, SAID, 3, baseline, by_deviation)
    assert advantages.dtype == np.float64
    # The second group's returns are all 0.1, whose mean in floating point is not.
    wanted = np.where(SAID, np.array([*expected, 0.0, 0.0, 0.0]), 0.0)
    np.testing.assert_allclose(advantages, wanted, rtol=1e-15)
    assert not advantages[:, 3:].any()
    assert np.mean([0.1, 0.1, 0.1]) != 0.1
    np.testing.assert_allclose(deviations, [DEVIATION, 0.0], atol=1e-15)
    assert flat.tolist() == [False, True]


@pytest.mark.parametrize(
    ("lost", "mean", "leave_one_out", "flat"),
    [
        ([2], [-2.0, 2.0, 0.0, 0.0], [-3.0, 3.0, 0.0, 0.0], False),  # of 2, 6 and 4
        ([1, 3], [24.5, 0.0, -24.5, 0.0], [49.0, 0.0, -49.0, 0.0], False),  # of 51 and 2
        ([1, 2, 3], [0.0] * 4, [0.0] * 4, True),  # nobody is left to compare with
        ([0, 1, 2, 3], [0.0] * 4, [0.0] * 4, True),
    ],
)
def test_lost_members_are_left_out(lost, mean, leave_one_out, flat):
    returns = [51.0, 6.0, 2.0, 4.0] if 3 in lost else [2.0, 6.0, 100.0, 4.0]
    rewards = np.array([returns, [0.0] * 4])
    ended = np.array([[False] * 4, [True] * 4])
    valid = np.ones((2, 4), bool)
    valid[:, lost] = False
    for baseline, expected in (("mean", mean), ("leave_one_out", leave_one_out)):
        told = group_advantages(rewards, ended, valid, 4, baseline, by_deviation=False)
        np.testing.assert_allclose(told.advantages, [expected, expected])
        assert told.flat.tolist() == [flat]


def test_each_round_is_a_group_of_its_own():
    """Two environments, two rounds: the first ends at steps 0 and 3, the second at 1 and 2."""
    ended = np.array([[1, 0], [0, 1], [0, 1], [1, 0]], bool)
    said = np.array([[1, 1], [1, 1], [1, 1], [1, 0]], bool)
    rewards = np.array([[2.0, 3.0], [10.0, 5.0], [0.0, 14.0], [8.0, 99.0]])
    # Round 0: 2 against 8. Round 1: 18 against 14.
    told = group_advantages(rewards, ended, said, 2, "mean", by_deviation=False)
    expected = [[-3.0, 3.0], [2.0, 3.0], [2.0, -2.0], [2.0, 0.0]]
    assert np.array_equal(told.advantages, expected)
    assert np.array_equal(told.deviations, [3.0, 2.0])
