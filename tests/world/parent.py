"""Run by test_pool.py: a parent with two workers that are deep in a step when it ends somehow."""

import signal
import sys
import time
from typing import Any

from vlm_agent.world.config import EnvConfig
from vlm_agent.world.env import LanguageActionEnv
from vlm_agent.world.episode import Episode
from vlm_agent.world.pool.pool import EnvPool


class SlowEnv(LanguageActionEnv):
    """Takes ages for a word, so that its worker does not look at its pipe."""

    def step(self, action: int) -> tuple[Any, ...]:
        time.sleep(1000)
        return super().step(action)


def main() -> None:
    # A shell that starts the tests in the background has them ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    pool = EnvPool(EnvConfig(task="Lift", frame_size=28), 2, 2, make_env=SlowEnv)
    pool.reset({0: Episode(0, ()), 1: Episode(1, ())})
    pool.start_step({0: 0, 1: 1})
    print(*pool.worker_pids(), flush=True)
    if sys.argv[1] == "exception":
        raise RuntimeError("the parent fails")
    pool.finish_step()


if __name__ == "__main__":
    # Not from here: the workers import the environment by its module's name.
    from tests.world import parent

    parent.main()
