"""What it costs that everything about a scene's looks and physics is drawn anew in each episode."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from tqdm import tqdm

from vlm_agent.common.seeding import derive_rng
from vlm_agent.world.actions import MOTIONS
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.env import LanguageActionEnv

EVERYTHING: dict[str, Any] = {
    "light_brightness": [0.5, 1.5],
    "light_tint": [0, 0.35],
    "light_turn": [0, 50],
    "camera_shift": [0, 0.015],
    "camera_turn": [0, 5],
    "camera_fov": [-6, 6],
    "object_colour": ["own", "any"],
    "object_texture": ["own", "plain", "checks", "dots"],
    "table_colour": ["own", "any"],
    "table_texture": ["own", "checks", "grid", "dots", "crosses"],
    "bin_colour": ["own", "any"],
    "bin_texture": ["own", "checks", "crosses"],
    "distractors": [0, 6],
    "object_size": [0.85, 1.15],
    "object_mass": [0.5, 3],
    "object_friction": [0.5, 1.5],
    "arm_start": [0, 0.04],
    "object_moved": [0, 0.03],
    "motion_scale": [0.85, 1.15],
    "motion_angle": [0, 10],
}
"""All that can be drawn, in ranges in which a can stays a can."""

EPISODE = 40
"""Words of an episode, about as many as an expert says."""


def measure(frame_size: int, words: int) -> dict[str, Any]:
    """Say the same random words in the usual scene and in the one that changes, turn by turn.

    Resets count: that is where looks are drawn.
    """
    envs = {
        "usual": LanguageActionEnv(EnvConfig(frame_size=frame_size)),
        "changing": LanguageActionEnv(EnvConfig(frame_size=frame_size, randomize=EVERYTHING)),
    }
    seconds = {name: [0.0, 0.0] for name in envs}
    for env in envs.values():  # what is done once only
        env.reset(seed=0)
    for word in tqdm(range(words), unit="word"):
        action = int(derive_rng(0, "bench", word).integers(len(MOTIONS)))
        for name in np.roll(list(envs), word):
            began = time.perf_counter()
            if word % EPISODE == 0:
                envs[name].reset(seed=word)
            reset = time.perf_counter()
            envs[name].step(action)
            seconds[name][0] += reset - began
            seconds[name][1] += time.perf_counter() - reset
    for env in envs.values():
        env.close()
    total = {name: sum(parts) for name, parts in seconds.items()}
    episodes = -(-words // EPISODE)
    return {
        **{f"{name}_words_per_s": words / total[name] for name in envs},
        "slowdown": total["changing"] / total["usual"],
        **{f"{name}_reset_ms": 1e3 * reset / episodes for name, (reset, _) in seconds.items()},
        **{f"{name}_word_ms": 1e3 * step / words for name, (_, step) in seconds.items()},
    }
