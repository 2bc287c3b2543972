"""Advantages within groups of episodes that began the same: GRPO and RLOO, without a critic."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np


class GroupAdvantages(NamedTuple):
    """What groups tell of a rollout's words.

    Attributes:
        advantages: Of each word, float64 (T, N); 0 where nothing is learnt from it.
        deviations: Standard deviation of the returns of each group, float64 (R x N / K,).
        flat: Groups that tell nothing, since all returns that are known are equal, bool, as many.
    """

    advantages: np.ndarray
    deviations: np.ndarray
    flat: np.ndarray


def group_advantages(
    rewards_TN: np.ndarray,
    ended_TN: np.ndarray,
    valid_TN: np.ndarray,
    size: int,
    baseline: Literal["mean", "leave_one_out"] = "mean",
    by_deviation: bool = True,
) -> GroupAdvantages:
    """How much better each episode went than those that began as it did.

    Every environment has played R whole episodes. A group is what K environments side by side
    played in the same round. The return of an episode is the undiscounted sum of the rewards of
    its valid words; each of these words has the episode's advantage: the return minus the mean of
    the group's (Shao et al. 2024, GRPO), or of the others' (Ahmadian et al. 2024, RLOO), which is
    K / (K − 1) times as much. It may be divided by the standard deviation of the group (of the
    population, with K below the sum). Episodes without valid words are no members of their groups.

    Args:
        rewards_TN: Reward of step t.
        ended_TN: The last word of each episode.
        valid_TN: What counts: not the words of episodes that were lost, nor steps without a word.
        size: K; N is a multiple of it.
        baseline: What a return is compared with.
        by_deviation: Whether to divide.
    """
    round_TN = np.cumsum(ended_TN, 0) - ended_TN  # of an environment that waits: R
    (rounds,) = np.unique(np.sum(ended_TN, 0))
    steps, envs = np.nonzero(valid_TN)
    episode_of_word = round_TN[steps, envs], envs
    returns_RN = np.zeros((rounds, valid_TN.shape[1]))
    np.add.at(returns_RN, episode_of_word, np.asarray(rewards_TN, np.float64)[steps, envs])
    known_RN = np.zeros(returns_RN.shape, bool)
    known_RN[episode_of_word] = True

    returns_GK, known_GK = returns_RN.reshape(-1, size), known_RN.reshape(-1, size)
    members_G1 = known_GK.sum(1, keepdims=True)
    mean_G1 = returns_GK.sum(1, keepdims=True) / np.maximum(members_G1, 1)
    better_GK = np.where(known_GK, returns_GK - mean_G1, 0.0)
    deviation_G1 = np.sqrt(np.square(better_GK).sum(1, keepdims=True) / np.maximum(members_G1, 1))
    highest_G = np.where(known_GK, returns_GK, -np.inf).max(1)
    flat_G = highest_G <= np.where(known_GK, returns_GK, np.inf).min(1)
    if baseline == "leave_one_out":
        better_GK = better_GK * members_G1 / np.maximum(members_G1 - 1, 1)
    if by_deviation:
        better_GK = better_GK / np.where(deviation_G1 > 0, deviation_G1, 1.0)
    better_GK[flat_G] = 0.0  # to the last bit, which a mean of equal numbers may miss

    advantages_TN = np.zeros(valid_TN.shape)
    advantages_TN[steps, envs] = better_GK.reshape(returns_RN.shape)[episode_of_word]
    return GroupAdvantages(advantages_TN, deviation_G1[:, 0], flat_G)
