"""Iterations of PPO in one of some processes: ``python -m vlm_agent.bench.iterations SETTINGS``.

``bench loop`` starts it, by ``accelerate launch`` or alone, on cores of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlm_agent.common.shipped import SHIPPED

ITERATION: dict[str, Any] = {
    "model_name_or_path": "tiny",
    "freeze_vision": True,
    "frame_size": 112,
    "scoring": "first_token",
    "total_timesteps": 10**9,
    "n_epochs": 4,
    "num_eval_episodes": 0,
    "save_freq": 10**9,
    "report_to": [],
    "overwrite": True,
}
"""A recipe of the tiny policy in the usual scene."""


@contextmanager
def trainer_of(recipe: Any, model_cores: Collection[int] = ()) -> Iterator[Any]:
    """A trainer of a fresh policy.

    Args:
        recipe: The run.
        model_cores: Where to move this process to once its environments have theirs.
    """
    from vlm_agent.ppo.trainer import PPOTrainer
    from vlm_agent.runs.begin import Run, start_policy

    run = Run(recipe)
    with recipe.make_pool() as pool:
        pool.wait_until_ready()
        if model_cores:
            os.sched_setaffinity(0, model_cores)
        yield PPOTrainer(start_policy(recipe), pool, recipe, run=run)


def iterate(trainer: Any, count: int) -> dict[str, float]:
    """Words per second of some iterations, as :meth:`PPOTrainer.train` has them.

    One goes before, to warm up.
    """
    from vlm_agent.runs.callbacks import Callback

    class Clock(Callback):
        """When an iteration ended, what was said by then, and how long was waited."""

        def __init__(self) -> None:
            self.seen: list[tuple[float, int, float]] = []

        def on_update_end(self, trainer: Any, metrics: dict[str, Any]) -> None:
            waited = metrics.get("rank_waiting_share", 0.0)
            self.seen.append((time.perf_counter(), trainer.timesteps, waited))
            trainer.should_stop = len(self.seen) > count

    clock = Clock()
    trainer.callbacks.callbacks.insert(0, clock)
    trainer.train()
    (began, before, _), *_, (ended, after, _) = clock.seen
    shares = [waited for _, _, waited in clock.seen[1:]]
    return {
        "words_per_s": (after - before) / (ended - began),
        "waiting_share": sum(shares) / len(shares),
    }


def measure_apart(
    folder: Path,
    recipe: dict[str, Any],
    iterations: int,
    cores: Sequence[Sequence[int]],
    model_cores: Sequence[int] = (),
) -> dict[str, float]:
    """:func:`iterate` in processes of their own.

    Args:
        folder: Where they write.
        recipe: Settings beside those of :data:`ITERATION`; ``total_timesteps`` of one process.
        iterations: How many.
        cores: Those of each process.
        model_cores: Those of the model, if it has others.

    Raises:
        RuntimeError: They have failed; what they said.
    """
    file = folder.with_suffix(".json")
    settings = {
        "recipe": {
            **recipe,
            "output_dir": str(folder),
            "total_timesteps": recipe["total_timesteps"] * len(cores),
        },
        "iterations": iterations,
        "cores": cores,
        "model_cores": model_cores,
        "file": str(file),
    }
    script = ["-m", "vlm_agent.bench.iterations", json.dumps(settings)]
    if len(cores) > 1:
        config = SHIPPED / "accelerate_configs" / "cpu_2proc.yaml"
        launch = ["--config_file", str(config), "--main_process_port", "0"]
        launch += ["--num_processes", str(len(cores)), "--num_cpu_threads_per_process", "1"]
        script = ["-m", "accelerate.commands.launch", *launch, *script]
    environ = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, *script], env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])
    found: dict[str, float] = json.loads(file.read_text())
    return found


def main(words: list[str]) -> None:
    """Run, and have rank 0 write what came of it.

    Args:
        words: One JSON object: ``recipe``, ``iterations``, ``file``; ``cores`` by rank and, if the
            model has others, ``model_cores``.
    """
    settings = json.loads(words[0])
    rank = int(os.environ.get("RANK", "0"))
    os.sched_setaffinity(0, settings["cores"][rank])  # before torch counts them

    from vlm_agent.recipe.recipe import Recipe

    recipe = Recipe.load(**{**ITERATION, **settings["recipe"]})
    with trainer_of(recipe, settings["model_cores"]) as trainer:
        figures = iterate(trainer, settings["iterations"])
        if trainer.accelerator.is_main_process:
            Path(settings["file"]).write_text(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
