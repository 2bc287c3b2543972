"""Run by test_pool.py: how many files are open after a pool, and after a restart."""

import gc
import os
import signal
from pathlib import Path

from vlm_agent.world.config import EnvConfig
from vlm_agent.world.episode import Episode
from vlm_agent.world.pool.pool import EnvPool


def open_files(restart: bool) -> int:
    with EnvPool(EnvConfig(task="Lift", frame_size=28), 1, 1) as pool:
        pool.reset({0: Episode(0)})
        if restart:
            os.kill(pool.worker_pids()[0], signal.SIGKILL)
        pool.step({0: 0})
        assert pool.restarts == [int(restart)]
    del pool
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


if __name__ == "__main__":
    print(open_files(restart=False), open_files(restart=True))
