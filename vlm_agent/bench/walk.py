"""Episodes to measure on: a scripted expert's, with wrong words mixed in."""

from __future__ import annotations

from collections.abc import Iterator

from vlm_agent.common.seeding import derive_rng
from vlm_agent.world.actions import MOTIONS
from vlm_agent.world.robosuite.env import LanguageActionEnv
from vlm_agent.world.robosuite.expert import ScriptedExpert

WRONG_WORDS = 0.15
"""The share of random words."""


def walk(env: LanguageActionEnv, words: int, seed: int = 0) -> Iterator[str]:
    """Say so many words, episode after episode; the stage reached so far, after each of them.

    Where the expert knows no way (a task without an object), all words are random.
    """
    ended, episode = True, 0
    for word in range(words):
        if ended:
            env.reset(seed=episode)
            expert, episode = ScriptedExpert(env), episode + 1
        rng = derive_rng(seed, "bench", word)
        lost = env.scene.task.target is None or rng.random() < WRONG_WORDS
        action = int(rng.integers(len(MOTIONS))) if lost else expert.act()
        *_, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
        yield info["stage"]
