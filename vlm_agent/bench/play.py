"""How long the page of ``vlm-agent play`` takes to answer a word, beside the bare world."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np

from vlm_agent.play.server import answer
from vlm_agent.play.session import PlaySession, Table
from vlm_agent.runs.checkpoints import load_policy
from vlm_agent.runs.reporting import mind_of
from vlm_agent.world.env import LanguageActionEnv


def measure(words: int) -> dict[str, Any]:
    """Words of the starter's in turns: by the page's messages, and in the bare world."""
    policy, config, gamma = load_policy("starter")
    session = PlaySession(Table(policy.eval(), config, gamma, None, mind_of))
    bare = LanguageActionEnv(config)
    answered: list[float] = []
    stepped: list[float] = []
    scenes: list[float] = []
    seed, bare_is_over = -1, True
    while len(answered) < words:
        if session.is_over:
            session.begin()
        if bare_is_over or session.episode.seed != seed:
            seed = session.episode.seed
            bare.reset(seed=seed)
        began = time.perf_counter()
        json.dumps(answer(session, '{"do": "advance"}'))
        answered.append(1000 * (time.perf_counter() - began))
        began = time.perf_counter()
        _, _, terminated, truncated, _ = bare.step(session.episode.actions[-1])
        bare_is_over = terminated or truncated
        stepped.append(1000 * (time.perf_counter() - began))
        if len(answered) % 10 == 0:  # as a page shows it, when nobody says anything
            began = time.perf_counter()
            session.scene()
            scenes.append(1000 * (time.perf_counter() - began))
    session.close()
    bare.close()
    answered, stepped = answered[5:], stepped[5:]  # the first ones make buffers
    return {
        "word_ms": float(np.median(answered)),
        "word_ms_p95": float(np.quantile(answered, 0.95)),
        "world_ms": float(np.median(stepped)),
        "scene_ms": float(np.median(scenes)),
        "answer_over_world": float(np.median(answered) / np.median(stepped)),
    }
