"""A run of two processes, one of which dies, freezes, hangs or raises in its training."""

import os
import signal
import sys
import time
from pathlib import Path

from vlm_agent import Callback, PPOTrainer
from vlm_agent.cli.entry import run_command
from vlm_agent.common.errors import TrainingError


class Fails(Callback):
    def __init__(self, how: str, rank: int, folder: Path) -> None:
        self.how, self.rank, self.folder = how, rank, folder

    def on_update_end(self, trainer: PPOTrainer, metrics: dict) -> None:
        if trainer.accelerator.process_index != self.rank:
            return
        (self.folder / "failed").write_text(str(os.getpid()))
        if self.how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "freezes":
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.how == "hangs":
            time.sleep(1000)
        raise TrainingError("this process has had enough")


def main() -> None:
    from vlm_agent.distributed import watch
    from vlm_agent.recipe.command_line import load_recipe
    from vlm_agent.runs.begin import Run, start_policy

    how, rank, folder = sys.argv.pop(1), int(sys.argv.pop(1)), Path(sys.argv.pop(1))
    watch.LOST_AFTER_S = 4.0
    recipe = load_recipe()
    run, policy = Run(recipe), start_policy(recipe)
    with recipe.make_pool() as pool, run.watch():
        PPOTrainer(policy, pool, recipe, [Fails(how, rank, folder)], run=run).train()


if __name__ == "__main__":
    sys.exit(run_command(main))
