"""Demonstrations: the expert is disturbed by random words, and says what it would do instead."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlm_agent.common.seeding import derive_rng
from vlm_agent.world.episode import Episode
from vlm_agent.world.observations import Observations
from vlm_agent.world.robosuite.env import LanguageActionEnv
from vlm_agent.world.robosuite.expert import Oracle

LONGEST_BURST = 4
"""How many random words in a row a disturbance may have."""


@dataclass(frozen=True)
class Demonstration:
    """An episode of T words with the expert's word for each of its states.

    Attributes:
        episode: Seed and the words that were said, the random ones among them.
        observations: What was seen before each word: frames (T, H, W, 3), facts (T, F).
        expert_actions: What the expert said there, int64 (T,).
        episode_return: Undiscounted sum of the rewards.
        success: Whether the task was solved.
        stage: The highest stage, a lower-case name of :class:`vlm_agent.world.robosuite.scene.Stage`.
    """

    episode: Episode
    observations: Observations
    expert_actions: np.ndarray
    episode_return: float
    success: bool
    stage: str


def demonstrate(env: LanguageActionEnv, seed: int, noise: float = 0.0) -> Demonstration:
    """Play an episode with the expert, which random words lead astray now and then.

    A pupil that only saw the expert's own states would not know how to come back to them; so the
    label is always the expert's word, but with probability ``noise`` a burst of one to
    :data:`LONGEST_BURST` random words happens instead (as in DART, Laskey et al. 2017).

    Args:
        env: The environment.
        seed: Of the episode, and of its noise.
        noise: Probability that a word of the expert begins a burst.
    """
    observation, _ = env.reset(seed=seed)
    oracle, rng = Oracle(env), derive_rng(seed, "noise")
    seen, labels, said = [], [], []
    burst, episode_return, ended = 0, 0.0, False
    while not ended:
        label = oracle.act()
        seen.append(Observations.from_env(observation))
        labels.append(label)
        if burst == 0 and rng.random() < noise:
            burst = int(rng.integers(1, LONGEST_BURST + 1))
        if burst > 0:
            burst -= 1
            said.append(int(rng.integers(len(env.vocabulary))))
        else:
            said.append(label)
        observation, reward, terminated, truncated, info = env.step(said[-1])
        episode_return += reward
        ended = terminated or truncated
    return Demonstration(
        Episode(seed, tuple(said)),
        Observations.stack(seen),
        np.array(labels),
        episode_return,
        terminated,
        info["stage"],
    )
