"""Whether a worker's memory and open files stay what they are in long runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import psutil
from tqdm import tqdm

from vlm_agent.common.seeding import derive_rng
from vlm_agent.world.actions import MOTIONS
from vlm_agent.world.config import EnvConfig
from vlm_agent.world.episode import Episode
from vlm_agent.world.pool.pool import EnvPool

NUM_ENVS = 2
WORDS_PER_EPISODE = 40
WARM_UP = 0.1
"""The share of the words after which growth is counted."""


def measure(task: str, robot: str, frame_size: int, words: int) -> dict[str, Any]:
    """Say so many random words in one worker, with a reset every :data:`WORDS_PER_EPISODE`."""
    config = EnvConfig(task=task, robot=robot, frame_size=frame_size)
    steps = max(1, words // NUM_ENVS)
    memory, files, resets = [], [], 0
    with EnvPool(config, NUM_ENVS, 1) as pool:
        worker = psutil.Process(pool.worker_pids()[0])
        for step in tqdm(range(steps), unit="step"):
            if step % WORDS_PER_EPISODE == 0:
                pool.reset({i: Episode(step + i, ()) for i in range(NUM_ENVS)})
                resets += NUM_ENVS
                memory.append(worker.memory_info().rss)
                files.append(worker.num_fds())
            actions = derive_rng(0, "bench", step).integers(len(MOTIONS), size=NUM_ENVS)
            pool.step({i: int(action) for i, action in enumerate(actions)})
    first = round(len(memory) * WARM_UP)
    return {
        "resets": resets,
        "rss_mib": memory[first] / 2**20,
        "rss_growth": float(np.max(memory[first:]) / memory[first] - 1),
        "open_files": files[first],
        "open_files_growth": float(np.max(files[first:]) / files[first] - 1),
    }
