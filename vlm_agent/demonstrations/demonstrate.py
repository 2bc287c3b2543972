"""Demonstrations: the expert is disturbed by random words, and says what it would do instead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vlm_agent.common.processes import in_processes
from vlm_agent.common.seeding import derive_rng
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.env import LanguageActionEnv
from vlm_agent.world.episode import Episode
from vlm_agent.world.facts import Fact, facts_named
from vlm_agent.world.observations import Observations
from vlm_agent.world.registry import declare

LONGEST_BURST = 4
"""How many random words in a row a disturbance may have."""


@dataclass(frozen=True)
class Demonstration:
    """An episode of T words with the expert's word for each of its states.

    Attributes:
        episode: With the words that were said, the random ones among them.
        observations: What was seen before each word: frames (T, H, W, 3), facts (T, F).
        expert_actions: What the expert said there, int64 (T,).
    """

    episode: Episode
    observations: Observations
    expert_actions: np.ndarray


def demonstrate(env: LanguageActionEnv, seed: int, noise: float = 0.0) -> Demonstration:
    """Play an episode with the expert, which random words lead astray now and then.

    A student that only saw the expert's own states would not know how to come back to them; so the
    label is always the expert's word, but with probability ``noise`` a burst of one to
    :data:`LONGEST_BURST` random words happens instead (as in DART, Laskey et al. 2017).

    Args:
        env: The environment.
        seed: Of the episode, and of its noise.
        noise: Probability that a word of the expert begins a burst.
    """
    observation, _ = env.reset(seed=seed)
    expert, rng = env.world.expert(), derive_rng(seed, "noise")
    facts = [fact.name for fact in env.facts]
    seen, labels = [], []
    episode, burst, ended = Episode(seed), 0, False
    while not ended:
        label = expert.act()
        seen.append(Observations.from_env(observation, facts))
        labels.append(label)
        if burst == 0 and rng.random() < noise:
            burst = int(rng.integers(1, LONGEST_BURST + 1))
        said = label
        if burst > 0:
            burst -= 1
            said = int(rng.integers(len(env.vocabulary)))
        observation, reward, terminated, truncated, info = env.step(said)
        episode = episode.after(said, reward, info)
        ended = terminated or truncated
    return Demonstration(episode, Observations.stack(seen), np.array(labels))


def play_in_parallel(
    config: EnvConfig,
    seeds: Sequence[int],
    noise: float = 0.0,
    workers: int = 0,
    facts: Sequence[str] | None = None,
    timeout: float = 600.0,
) -> Iterator[Demonstration]:
    """The expert's episodes of these seeds, in order.

    Args:
        config: The scene.
        seeds: One per episode.
        noise: As for :func:`demonstrate`.
        workers: Processes; 0 for one per core.
        facts: Names of what the observations tell; all by default.
        timeout: Seconds to wait for an episode, when those before it are there.

    Raises:
        UserError: The task has no expert, or a process of it was killed or hangs.
    """
    if not seeds:
        return
    world = declare(config)
    world.check_expert()
    told = world.facts if facts is None else facts_named(facts, world.facts)
    yield from in_processes(
        _play,
        seeds,
        _start,
        (config, noise, told),
        workers=workers,
        timeout=timeout,
        what="the scripted expert",
    )


_env: LanguageActionEnv
_noise: float


def _start(config: EnvConfig, noise: float, facts: Sequence[Fact] | None) -> None:
    """Make a process's environment."""
    global _env, _noise
    _env, _noise = LanguageActionEnv(config, facts=facts), noise


def _play(seed: int) -> Demonstration:
    return demonstrate(_env, seed, _noise)


def play_expert(seed: int, config: EnvConfig) -> tuple[Episode, EnvConfig, tuple[str, ...]]:
    """Let the expert play one episode: the episode, its world and the words it chose from."""
    env = LanguageActionEnv(config)
    played = demonstrate(env, seed)
    env.close()
    return played.episode, config, env.vocabulary.words
