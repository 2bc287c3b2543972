"""Generalised advantage estimation with a true bootstrap at time limits."""

from __future__ import annotations

import math

import numpy as np


def generalized_advantages(
    rewards_TN: np.ndarray,
    values_TN: np.ndarray,
    next_values_TN: np.ndarray,
    terminated_TN: np.ndarray,
    truncated_TN: np.ndarray,
    gamma: float,
    gae_lambda: float,
    lost_TN: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Advantages and returns (Schulman et al. 2016, eq. 16), float64 (T, N).

    An episode that terminates has no future: its last target is the reward alone. One that is
    truncated has a future nobody watched: its last target adds the value of the observation it
    was cut at (Pardo et al. 2018, sec. 3.2), not of the next episode's first one. The sum over
    later steps ends at both. Of a step in which the episode was lost nothing is known: its
    advantage is 0, its return its value, and the steps before it look as far as that value.

    Args:
        rewards_TN: Reward of step t.
        values_TN: V(s_t).
        next_values_TN: V of the observation that step t led to, before any reset.
        terminated_TN: Step t ended the task.
        truncated_TN: Step t ran into the time limit.
        gamma: Discount.
        gae_lambda: Lambda; 1 gives Monte Carlo returns, 0 one-step targets.
        lost_TN: The episode was lost in step t; none by default.
    """
    alive_TN = 1.0 - np.asarray(terminated_TN, np.float64)
    continues_TN = alive_TN * (1.0 - np.asarray(truncated_TN, np.float64))
    values = np.asarray(values_TN, np.float64)
    targets = rewards_TN + gamma * np.asarray(next_values_TN, np.float64) * alive_TN
    deltas = targets - values
    if lost_TN is not None:
        deltas[lost_TN], continues_TN[lost_TN] = 0.0, 0.0
    advantages = np.zeros_like(deltas)
    running = np.zeros(deltas.shape[1:])
    for t in reversed(range(len(deltas))):
        running = deltas[t] + gamma * gae_lambda * continues_TN[t] * running
        advantages[t] = running
    return advantages, advantages + values


def returns_of_ended_episodes(
    rewards_TN: np.ndarray,
    values_TN: np.ndarray,
    next_values_TN: np.ndarray,
    terminated_TN: np.ndarray,
    truncated_TN: np.ndarray,
    gamma: float,
    lost_TN: np.ndarray | None = None,
) -> np.ndarray:
    """Discounted sums of rewards up to each episode's end, float64 (T, N).

    NaN where the episode has not ended within the T steps: what comes then nobody knows yet; and
    where it was lost. It takes what :func:`generalized_advantages` takes.
    """
    watched = rewards_TN, values_TN, next_values_TN, terminated_TN, truncated_TN, gamma
    _, returns_TN = generalized_advantages(*watched, gae_lambda=1.0, lost_TN=lost_TN)
    if lost_TN is not None:
        returns_TN[lost_TN] = np.nan
    ended_TN = np.asarray(terminated_TN, bool) | np.asarray(truncated_TN, bool)
    returns_TN[~np.logical_or.accumulate(ended_TN[::-1])[::-1]] = np.nan
    return returns_TN


def explained_variance(predicted: np.ndarray, target: np.ndarray) -> float:
    """1 − Var(target − predicted) / Var(target); 1 is perfect, 0 is as good as a constant.

    NaN where the target does not vary and nothing can be explained.
    """
    variance = float(np.var(target))
    return 1.0 - float(np.var(target - predicted)) / variance if variance > 0 else math.nan
