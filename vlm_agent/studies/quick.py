"""``vlm-agent quick_study``: in which setting 2,000 words of PPO help most, over several seeds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from vlm_agent.evaluation.compare import mcnemar
from vlm_agent.evaluation.evaluate import read_result
from vlm_agent.studies.stages import Stage, hardware, run_stages

SEEDS = range(5)
EPISODES = 50

TWICE = ("--rollout_steps", "63")
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "two updates of 1,000 words": TWICE,
    "two updates, learning rate 3e-4": (*TWICE, "--learning_rate", "3e-4"),
    "two updates, a new critic that reads the state": (
        *(*TWICE, "--value_input", "state", "--value_head_depth", "2"),
        *("--value_lambda", "0.95", "--value_epochs", "8"),
    ),
    "one update of 2,000 words": ("--rollout_steps", "125"),
}


class QuickStudy:
    """The stages: the start is evaluated once per seed, the outcome of each setting for itself.

    Args:
        folder: Where everything is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def stages(self) -> Iterator[Stage]:
        """In the order in which they need each other; each seed has its own episodes."""
        for seed in SEEDS:
            yield self._evaluation("starter", seed, self.before(seed))
        for setting, options in SETTINGS.items():
            for seed in SEEDS:
                name = self._name(setting, seed)
                command = ["vlm_agent.train", "--config", "recipes/quick.yaml", "--run_name", name]
                command += ["--seed", str(seed), "--report_to", "none", "--num_eval_episodes", "0"]
                command += ["--output_dir", str(self.folder), *options]
                made = self.folder / "runs" / name / "summary.json"
                training = Stage(f"{setting}, seed {seed}", tuple(command), made)
                yield training
                policy = self.folder / "checkpoints" / f"{name}_step2000"
                after = self.after(setting, seed)
                yield self._evaluation(str(policy), seed, after, training.name)

    def before(self, seed: int) -> Path:
        """The file of the start's evaluation."""
        return self.folder / "evaluations" / f"quick_before_{seed}.json"

    def after(self, setting: str, seed: int) -> Path:
        """The file of an outcome's evaluation."""
        return self.folder / "evaluations" / f"{self._name(setting, seed)}.json"

    def row(self, setting: str) -> dict[str, Any]:
        """Success before and after in each seed, and what the difference is over all of them."""
        before = [_solved(self.before(seed)) for seed in SEEDS]
        after = [_solved(self.after(setting, seed)) for seed in SEEDS]
        rates = np.array([[np.mean(solved) for solved in when] for when in (before, after)])
        gains = rates[1] - rates[0]
        half_width = stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains)
        only_before, only_after, p = mcnemar(list(chain(*before)), list(chain(*after)))
        return {
            "setting": setting,
            "before": rates[0].tolist(),
            "after": rates[1].tolist(),
            "mean_gain": float(gains.mean()),
            "ci95_low": float(gains.mean() - half_width),
            "ci95_high": float(gains.mean() + half_width),
            "only_before": only_before,
            "only_after": only_after,
            "p_value": p,
        }

    def _name(self, setting: str, seed: int) -> str:
        return f"quick_{setting.replace(',', '').replace(' ', '_')}_{seed}"

    def _evaluation(self, policy: str, seed: int, path: Path, *needs: str) -> Stage:
        """The validation episodes that a run of this seed would play itself."""
        command = ["vlm_agent.cli", "eval", "--policy", policy, "--split", "validation"]
        command += ["--num_eval_episodes", str(EPISODES), "--num_envs", "16"]
        command += ["--seed", str(seed), "--greedy", "true", "--json", str(path)]
        return Stage(f"evaluation: {path.stem}", tuple(command), path, needs)


def study(folder: Path, output: Path) -> list[dict[str, Any]]:
    """Run what has not been run, and write what came of it.

    Args:
        folder: Where everything is made.
        output: The JSON file.
    """
    quick = QuickStudy(folder)
    run_stages(list(quick.stages()), folder)
    return write_rows(quick, output)


def write_rows(quick: QuickStudy, output: Path) -> list[dict[str, Any]]:
    """Write what came of a study whose stages have all been run."""
    rows = [quick.row(setting) for setting in SETTINGS]
    written = {"hardware": hardware(), "seeds": list(SEEDS), "episodes": EPISODES, "rows": rows}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(written, indent=1) + "\n")
    return rows


def _solved(path: Path) -> list[bool]:
    return [episode["success"] for episode in read_result(path)["episodes"]]
