"""How long a frame takes, and whether it is stock robosuite's."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import numpy as np
from tqdm import tqdm

from vlm_agent.bench.world.stock import StockCamera
from vlm_agent.bench.world.walk import scene_of, walk
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.env import LanguageActionEnv
from vlm_agent.world.render.camera import EyeInHandCamera
from vlm_agent.world.render.gl import renderer_name
from vlm_agent.world.robosuite.scene import Stage


def measure(task: str, robot: str, frame_size: int, words: int) -> dict[str, Any]:
    """Draw the state after each of so many words three times, in changing order."""
    env = LanguageActionEnv(EnvConfig(task=task, robot=robot, frame_size=28))
    cameras: dict[str, StockCamera | EyeInHandCamera] = {
        "stock": StockCamera(scene_of(env), frame_size),
        "exact": EyeInHandCamera(scene_of(env), frame_size, "exact"),
        "fast": EyeInHandCamera(scene_of(env), frame_size, "fast"),
    }
    names = list(cameras)
    seconds = dict.fromkeys(names, 0.0)
    stages: Counter[str] = Counter()
    exact_diffs, fast_diffs = [], []
    for state, stage in enumerate(tqdm(walk(env, words), total=words, unit="state")):
        frames = {}
        for name in np.roll(names, state):
            began = time.perf_counter()
            frames[name] = cameras[name].frame()
            seconds[name] += time.perf_counter() - began
        stock = frames["stock"].astype(int)
        exact_diffs.append(np.abs(frames["exact"] - stock).max())
        fast_diffs.append(np.abs(frames["fast"] - stock))
        stages[stage] += 1
    figures = {
        "renderer": renderer_name(),
        "states": words,
        "states_with_grasp": sum(
            n for stage, n in stages.items() if Stage[stage.upper()] >= Stage.GRASPED
        ),
        **{f"{name}_ms": seconds[name] / words * 1e3 for name in names},
        "speedup_exact": seconds["stock"] / seconds["exact"],
        "speedup_fast": seconds["stock"] / seconds["fast"],
        "max_abs_diff_exact": int(max(exact_diffs)),
        "mean_abs_diff_fast": float(np.mean(fast_diffs)),
        "max_abs_diff_fast": int(np.max(fast_diffs)),
    }
    for camera in cameras.values():
        camera.close()
    env.close()
    return figures
