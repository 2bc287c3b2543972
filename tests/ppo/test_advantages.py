import numpy as np
import pytest

from vlm_agent.distributed.reductions import normalize_over_ranks
from vlm_agent.ppo.advantages import (
    explained_variance,
    generalized_advantages,
    returns_of_ended_episodes,
)


def test_by_hand_with_truncation_and_termination_in_one_batch():
    """Two environments, three steps, gamma 0.5, lambda 0.5; every number worked out on paper.

    Environment 0 terminates at step 1; environment 1 is truncated at step 1, where the value of
    its last observation is 8.
    """
    rewards = np.array([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]])
    values = np.array([[0.5, 0.5], [1.0, 1.0], [2.0, 2.0]])
    next_values = np.array([[1.0, 1.0], [99.0, 8.0], [6.0, 6.0]])
    terminated = np.array([[0, 0], [1, 0], [0, 0]], bool)
    truncated = np.array([[0, 0], [0, 1], [0, 0]], bool)
    advantages, returns = generalized_advantages(
        rewards, values, next_values, terminated, truncated, 0.5, 0.5
    )
    # step 2: 4 + 0.5 * 6 - 2 = 5 in both
    # step 1: terminated 2 - 1 = 1 (the 99 must not count); truncated 2 + 0.5 * 8 - 1 = 5
    # step 0: 1 + 0.5 * 1 - 0.5 = 1, plus 0.25 * the step after
    expected = np.array([[1.25, 2.25], [1.0, 5.0], [5.0, 5.0]])
    assert np.array_equal(advantages, expected)
    assert np.array_equal(returns, expected + values)


def test_a_lost_step_teaches_nothing_and_those_before_it_look_as_far_as_its_value():
    """The episode is lost in step 1, another one begins in step 2; gamma 0.5, lambda 0.5."""
    rewards, values = np.array([[1.0], [0.0], [4.0]]), np.array([[0.5], [3.0], [2.0]])
    next_values = np.array([[3.0], [77.0], [6.0]])
    nothing = np.zeros((3, 1), bool)
    lost = np.array([[0], [1], [0]], bool)
    watched = rewards, values, next_values, nothing, lost, 0.5
    advantages, returns = generalized_advantages(*watched, 0.5, lost)
    # step 0: 1 + 0.5 * 3 - 0.5 = 2, and nothing of what came later
    assert advantages.tolist() == [[2.0], [0.0], [4 + 0.5 * 6 - 2]]
    assert returns.tolist() == [[2.5], [3.0], [7.0]]
    known = returns_of_ended_episodes(*watched, lost)
    assert known[0, 0] == 1 + 0.5 * 3
    assert np.isnan(known[1:]).all()


@pytest.mark.parametrize("seed", range(5))
def test_against_the_definition_as_a_sum(seed: int):
    """A_t = sum over k of (gamma lambda)^k delta_{t+k}, up to the episode's end."""
    rng = np.random.default_rng(seed)
    steps, envs, gamma, lam = 17, 3, 0.97, 0.9
    rewards, values, next_values = rng.normal(size=(3, steps, envs))
    terminated = rng.random((steps, envs)) < 0.15
    truncated = (rng.random((steps, envs)) < 0.15) & ~terminated
    advantages, _ = generalized_advantages(
        rewards, values, next_values, terminated, truncated, gamma, lam
    )
    for n in range(envs):
        for t in range(steps):
            total, weight = 0.0, 1.0
            for k in range(t, steps):
                future = 0.0 if terminated[k, n] else gamma * next_values[k, n]
                total += weight * (rewards[k, n] + future - values[k, n])
                weight *= gamma * lam
                if terminated[k, n] or truncated[k, n]:
                    break
            assert advantages[t, n] == pytest.approx(total, abs=1e-12)


def test_lambda_one_gives_discounted_returns():
    rewards = np.array([[1.0], [2.0], [3.0]])
    values = np.array([[7.0], [8.0], [9.0]])
    nothing = np.zeros((3, 1), bool)
    next_values = np.array([[8.0], [9.0], [10.0]])
    _, returns = generalized_advantages(rewards, values, next_values, nothing, nothing, 0.5, 1.0)
    assert np.allclose(returns[:, 0], [1 + 1 + 0.75 + 1.25, 2 + 1.5 + 2.5, 3 + 5])


def test_float32_input_is_summed_in_float64():
    rewards = np.full((1000, 1), 0.1, np.float32)
    zeros = np.zeros((1000, 1), np.float32)
    none = np.zeros((1000, 1), bool)
    _, returns = generalized_advantages(rewards, zeros, zeros, none, none, 1.0, 1.0)
    assert returns.dtype == np.float64
    assert returns[0, 0] == pytest.approx(1000 * float(np.float32(0.1)), rel=1e-12)


def test_explained_variance():
    target = np.array([1.0, 2.0, 3.0, 4.0])
    assert explained_variance(target, target) == 1.0
    assert explained_variance(target + 5.0, target) == 1.0
    assert explained_variance(np.zeros(4), target) == 0.0
    assert explained_variance(-target, target) == pytest.approx(1 - 4.0)
    assert np.isnan(explained_variance(target, np.ones(4)))


def test_returns_are_known_up_to_the_last_end():
    """Ten words in episodes of four, of which one runs into the time limit: by hand."""
    rewards = np.arange(10.0)[:, None]
    terminated, truncated = np.zeros((10, 1), bool), np.zeros((10, 1), bool)
    truncated[3], terminated[7] = True, True
    values = np.random.default_rng(0).normal(size=(10, 1))  # cancel
    next_values = np.append(values[1:], [[0.0]], axis=0)
    next_values[3] = 5.0
    watched = rewards, values, next_values, terminated, truncated
    returns = returns_of_ended_episodes(*watched, gamma=0.5)
    at_limit = 3.0 + 0.5 * 5.0
    assert returns[3] == pytest.approx(at_limit)
    assert returns[0] == pytest.approx(0 + 0.5 * 1 + 0.25 * 2 + 0.125 * at_limit)
    assert returns[4] == pytest.approx(4 + 0.5 * 5 + 0.25 * 6 + 0.125 * 7)
    assert np.isnan(returns[8:]).all()


@pytest.mark.parametrize("steps", [1, 8])
@pytest.mark.parametrize("ends", [False, True])
def test_extreme_rollouts_have_finite_advantages(steps: int, ends: bool):
    """Equal rewards, one word, all episodes ending at once; normalised as for an update."""
    rewards = np.full((steps, 1), 1e4, np.float32)
    values = np.full((steps, 1), -1e4, np.float32)
    over = np.full((steps, 1), ends)
    advantages, returns = generalized_advantages(
        rewards, values, values, over, np.zeros_like(over), gamma=1.0, gae_lambda=1.0
    )
    future = 0.0 if ends else -1e4
    for t in range(steps):
        left = 1 if ends else steps - t
        assert returns[t, 0] == pytest.approx(left * 1e4 + future, rel=1e-12)
    normalized = normalize_over_ranks(advantages.reshape(-1))
    assert np.isfinite(normalized).all()
    if steps == 1 or ends:
        assert (normalized == 0).all()
