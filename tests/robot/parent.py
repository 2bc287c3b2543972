"""Run by test_pool.py: a parent with two busy workers, which is then ended in some way."""

import sys

from vlm_agent.robot.config import EnvConfig
from vlm_agent.robot.episode import Episode
from vlm_agent.robot.pool import EnvPool


def main() -> None:
    pool = EnvPool(EnvConfig(task="Lift", frame_size=28), 2, 2)
    pool.reset({0: Episode(0, ()), 1: Episode(1, ())})
    print(*(worker.process.pid for worker in pool._workers), flush=True)
    if sys.argv[1] == "exception":
        pool.start_step({0: 0, 1: 1})
        raise RuntimeError("the parent fails")
    while True:
        pool.step({0: 0, 1: 1})


if __name__ == "__main__":
    main()
