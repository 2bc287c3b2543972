"""A long run whose workers are killed now and then: nothing grows, and nothing changes."""

import os
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.own_world import own_world
from tests.short_runs import fresh_policy, metrics_of, without_times
from vlm_agent import Callback, PPOTrainer, Recipe

SETTINGS = {
    "frame_size": 28,
    "num_envs": 2,
    "num_workers": 1,
    "rollout_steps": 4,
    "batch_size": 8,
    "n_epochs": 1,
    "num_eval_episodes": 0,
    "save_freq": 10**6,
    "max_worker_restarts": 100,
}
UPDATES, WARM = 500, 100


class Watch(Callback):
    """Kills a worker in every eighth update or so, and sees what this process holds."""

    def __init__(self, kills: bool) -> None:
        self.kills, self.killed = kills, 0
        self.rng = np.random.default_rng(0)
        self.held: list[tuple[int, int]] = []

    def on_update_end(self, trainer: PPOTrainer, metrics: dict) -> None:
        process = psutil.Process()
        self.held.append((process.memory_info().rss, process.num_fds()))
        if self.kills and self.killed < 60 and self.rng.random() < 0.125:
            (worker,) = [p for p in process.children() if "spawn_main" in " ".join(p.cmdline())]
            worker.kill()
            self.killed += 1


@pytest.mark.long
def test_500_updates_with_workers_killed(tmp_path: Path, monkeypatch, record_property):
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    runs = []
    with own_world(tmp_path) as world:
        for kills in (False, True):
            folder = str(tmp_path / str(kills))
            recipe = Recipe.load(world, **SETTINGS, output_dir=folder, total_timesteps=8 * UPDATES)
            watch = Watch(kills)
            with recipe.make_pool() as pool:
                PPOTrainer(fresh_policy(recipe), pool, recipe, [watch]).train()
            runs.append((watch, without_times(metrics_of(recipe))))
    (_, straight), (watch, killed) = runs
    assert watch.killed > 40 and len(killed) == UPDATES
    record_property("workers killed", watch.killed)
    assert killed == straight
    memory, files = zip(*watch.held, strict=True)
    assert np.median(memory[-50:]) <= 1.02 * np.median(memory[WARM : WARM + 50])
    assert max(files[-50:]) <= max(files[WARM : WARM + 50])
