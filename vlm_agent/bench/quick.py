"""``vlm-agent quick_study``: in which setting 2,000 words of PPO help most, over several seeds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from vlm_agent.bench.stages import Stage, hardware, run_stages
from vlm_agent.learning.comparison import mcnemar
from vlm_agent.learning.evaluation import read_result

SEEDS = range(5)

SETTINGS: Mapping[str, tuple[str, ...]] = {
    "as the recipe has it": (),
    "learning rate 3e-5": ("--learning_rate", "3e-5"),
    "learning rate 3e-4": ("--learning_rate", "3e-4"),
    "one update of 2,000 words": ("--rollout_steps", "125"),
    "all weights, the vision tower too": ("--freeze_vision", "false"),
}


def _stages(folder: Path) -> Iterator[tuple[str, int, Stage]]:
    for number, (setting, options) in enumerate(SETTINGS.items()):
        for seed in SEEDS:
            name = f"quick_{number}_{seed}"
            command = ["vlm_agent.train", "--config", "recipes/quick.yaml", "--run_name", name]
            command += ["--seed", str(seed), "--report_to", "none", *options]
            command += ["--output_dir", str(folder)]
            made = folder / "runs" / name / "summary.json"
            yield setting, seed, Stage(f"{setting}, seed {seed}", tuple(command), made)


def study(folder: Path, output: Path) -> list[dict[str, Any]]:
    """Run what has not been run, and write what came of it.

    Each run plays the same 50 held-out episodes before and after; of another seed, others.

    Args:
        folder: Where everything is made.
        output: The JSON file.
    """
    stages = list(_stages(folder))
    run_stages([stage for *_, stage in stages], folder)
    rows = [_row(name, [s for n, _, s in stages if n == name]) for name in SETTINGS]
    written = {"hardware": hardware(), "seeds": list(SEEDS), "rows": rows}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(written, indent=1) + "\n")
    return rows


def _row(setting: str, stages: list[Stage]) -> dict[str, Any]:
    """Success before and after in each seed, and what the difference is over all of them."""
    before: list[list[bool]] = []
    after: list[list[bool]] = []
    for stage in stages:
        files = sorted(
            (stage.makes.parent / "evaluations").glob("*.json"), key=lambda path: int(path.stem)
        )
        for path, solved in ((files[0], before), (files[-1], after)):
            solved.append([episode["success"] for episode in read_result(path)["episodes"]])
    rates = np.array([[np.mean(solved) for solved in when] for when in (before, after)])
    gains = rates[1] - rates[0]
    interval = stats.t.interval(0.95, len(gains) - 1, gains.mean(), stats.sem(gains))
    only_before, only_after, p = mcnemar(list(chain(*before)), list(chain(*after)))
    return {
        "setting": setting,
        "before": rates[0].tolist(),
        "after": rates[1].tolist(),
        "mean_gain": float(gains.mean()),
        "ci95_low": float(interval[0]),
        "ci95_high": float(interval[1]),
        "only_before": only_before,
        "only_after": only_after,
        "p_value": p,
    }
