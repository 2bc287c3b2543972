"""Episodes to measure on: a scripted expert's, with wrong words mixed in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlm_agent.common.seeding import derive_rng
from vlm_agent.world.env import LanguageActionEnv
from vlm_agent.world.robosuite.scene import RobotScene
from vlm_agent.world.robosuite.world import RobotWorld

WRONG_WORDS = 0.15
"""The share of random words."""


def walk(env: LanguageActionEnv, words: int, seed: int = 0) -> Iterator[str]:
    """Say so many words, episode after episode; the stage reached so far, after each of them.

    Where the expert knows no way (a task without an object), all words are random.
    """
    expert: Any = env.world.expert() if env.world.spec.has_expert else None
    ended, episode = True, 0
    for word in range(words):
        if ended:
            env.reset(seed=episode)
            episode += 1
        rng = derive_rng(seed, "bench", word)
        lost = expert is None or rng.random() < WRONG_WORDS
        action = int(rng.integers(len(env.vocabulary))) if lost else expert.act()
        *_, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
        yield info["stage"]


def scene_of(env: LanguageActionEnv) -> RobotScene:
    """The robosuite scene of an environment."""
    assert isinstance(env.world, RobotWorld)
    return env.world.scene
