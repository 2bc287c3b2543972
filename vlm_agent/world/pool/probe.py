"""Whether a world replays: a few words are said twice, and the bytes compared."""

from __future__ import annotations

from vlm_agent.common.seeding import derive_rng
from vlm_agent.world.env import LanguageActionEnv

SEEDS, WORDS = range(4), 4
"""The episodes that are played twice, and how many words of each."""


def replays(env: LanguageActionEnv) -> bool:
    """Whether an episode is its seed and its words, as far as a few words can tell."""
    if env.world.spec.replays is not None:
        return env.world.spec.replays
    return all(_play(env, seed) == _play(env, seed) for seed in SEEDS)


def _play(env: LanguageActionEnv, seed: int) -> list[bytes]:
    """What the states of an episode's beginning are like."""
    env.reset(seed=seed)
    digests, ended = [env.digest()], False
    for word in derive_rng(seed, "probe").integers(len(env.vocabulary), size=WORDS):
        if not ended:
            _, _, terminated, truncated, _ = env.step(word)
            ended = terminated or truncated
            digests.append(env.digest())
    return digests
