"""Whether a slower controller changes what words achieve: the scripted expert under both."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats
from tqdm import tqdm

from vlm_agent.common.errors import UserError
from vlm_agent.world.config import PHYSICS_HZ, EnvConfig
from vlm_agent.world.env import LanguageActionEnv
from vlm_agent.world.robosuite.tasks import get_task


def measure(task: str, robot: str, frame_size: int, words: int) -> dict[str, Any]:
    """Play episodes of the same seeds with both controllers, as many as ``words`` allows.

    The longer of two episodes of a seed counts.
    """
    if get_task(task).target is None:
        raise UserError(f"--task {task}: the scripted expert knows no way to solve it")
    rates = {"ours": EnvConfig().controller_hz, "stock": PHYSICS_HZ}
    envs = {
        name: LanguageActionEnv(
            EnvConfig(task=task, robot=robot, frame_size=frame_size, controller_hz=rate)
        )
        for name, rate in rates.items()
    }
    lengths: dict[str, list[int]] = {name: [] for name in rates}
    successes: dict[str, list[bool]] = {name: [] for name in rates}
    seconds = dict.fromkeys(rates, 0.0)
    said = seed = 0
    with tqdm(total=words, unit="word") as bar:
        while said < words or seed < 2:
            for name, env in envs.items():
                length, success, spent = _play(env, seed)
                lengths[name].append(length)
                successes[name].append(success)
                seconds[name] += spent
            longer = max(lengths[name][-1] for name in rates)
            said, seed = said + longer, seed + 1
            bar.update(longer)
    for env in envs.values():
        env.close()
    differences = np.subtract(lengths["ours"], lengths["stock"])
    interval = stats.t.interval(
        0.95, seed - 1, differences.mean(), differences.std(ddof=1) / np.sqrt(seed)
    )
    return {
        "episodes": seed,
        **{f"{name}_controller_hz": rate for name, rate in rates.items()},
        **{f"{name}_successes": int(sum(successes[name])) for name in rates},
        "successes_of_both": int(np.logical_and(successes["ours"], successes["stock"]).sum()),
        **{f"{name}_mean_length": float(np.mean(lengths[name])) for name in rates},
        "length_difference": float(differences.mean()),
        "length_difference_ci95_low": float(interval[0]),
        "length_difference_ci95_high": float(interval[1]),
        "physics_speedup": (seconds["stock"] / sum(lengths["stock"]))
        / (seconds["ours"] / sum(lengths["ours"])),
    }


def _play(env: LanguageActionEnv, seed: int) -> tuple[int, bool, float]:
    """One episode of the expert: its length, whether it succeeded, seconds of physics."""
    env.reset(seed=seed)
    expert, began = env.world.expert(), env.seconds["physics"]
    length, ended = 0, False
    while not ended:
        *_, terminated, truncated, _ = env.step(expert.act())
        length, ended = length + 1, terminated or truncated
    return length, terminated, env.seconds["physics"] - began
