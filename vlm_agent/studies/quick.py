"""``vlm-agent quick_study``: what the 2,000 words of the quick recipe bring, over several seeds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from vlm_agent.common.statistics import mcnemar
from vlm_agent.evaluation.evaluate import read_result
from vlm_agent.studies.stages import Stage, hardware, run_stages

SEEDS = range(5, 10)
"""Of the runs. The recipe was settled on with others."""

EPISODES = 100
START = "beginner"


class QuickStudy:
    """The stages: each seed has its own episodes, played by the start and by what it became.

    Args:
        folder: Where everything is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def stages(self) -> Iterator[Stage]:
        """In the order in which they need each other."""
        for seed in SEEDS:
            yield self._evaluation(START, seed, self.before(seed))
            name = f"quick_{seed}"
            command = ["vlm_agent.train", "--config", "recipes/quick.yaml", "--run_name", name]
            command += ["--seed", str(seed), "--report_to", "none", "--num_eval_episodes", "0"]
            command += ["--output_dir", str(self.folder)]
            made = self.folder / "runs" / name / "summary.json"
            training = Stage(f"PPO: {name}", tuple(command), made)
            yield training
            policy = self.folder / "checkpoints" / f"{name}_step2000"
            yield self._evaluation(str(policy), seed, self.after(seed), training.name)

    def before(self, seed: int) -> Path:
        """The file of the start's evaluation."""
        return self.folder / "evaluations" / f"quick_before_{seed}.json"

    def after(self, seed: int) -> Path:
        """The file of the outcome's evaluation."""
        return self.folder / "evaluations" / f"quick_after_{seed}.json"

    def results(self) -> dict[str, Any]:
        """Success before and after in each seed, and what the difference is over all of them."""
        before = [_solved(self.before(seed)) for seed in SEEDS]
        after = [_solved(self.after(seed)) for seed in SEEDS]
        rates = np.array([[np.mean(solved) for solved in when] for when in (before, after)])
        gains = rates[1] - rates[0]
        half_width = stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains)
        only_before, only_after, p = mcnemar(list(chain(*before)), list(chain(*after)))
        return {
            "before": rates[0].tolist(),
            "after": rates[1].tolist(),
            "mean_gain": float(gains.mean()),
            "ci95_low": float(gains.mean() - half_width),
            "ci95_high": float(gains.mean() + half_width),
            "only_before": only_before,
            "only_after": only_after,
            "p_value": p,
        }

    def _evaluation(self, policy: str, seed: int, path: Path, *needs: str) -> Stage:
        """The validation episodes that a run of this seed would play itself, and as many more."""
        command = ["vlm_agent.cli", "eval", "--policy", policy, "--split", "validation"]
        command += ["--num_eval_episodes", str(EPISODES), "--num_envs", "16"]
        command += ["--seed", str(seed), "--greedy", "true", "--json", str(path)]
        return Stage(f"evaluation: {path.stem}", tuple(command), path, needs)


def study(folder: Path, output: Path) -> dict[str, Any]:
    """Run what has not been run, and write what came of it.

    Args:
        folder: Where everything is made.
        output: The JSON file.
    """
    quick = QuickStudy(folder)
    run_stages(list(quick.stages()), folder)
    return write_results(quick, output)


def write_results(quick: QuickStudy, output: Path) -> dict[str, Any]:
    """Write what came of a study whose stages have all been run."""
    about = {"hardware": hardware(), "seeds": list(SEEDS), "episodes": EPISODES}
    written = about | quick.results()
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(written, indent=1) + "\n")
    return written


def _solved(path: Path) -> list[bool]:
    return [episode["success"] for episode in read_result(path)["episodes"]]
