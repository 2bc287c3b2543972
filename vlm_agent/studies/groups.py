"""``vlm-agent group_study``: what GRPO gains on a sparse reward, and PPO with as many words."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlm_agent.common.statistics import wilson_interval
from vlm_agent.evaluation.compare import compare
from vlm_agent.evaluation.evaluate import read_result
from vlm_agent.runs.folders import PARTIAL
from vlm_agent.studies.stages import Stage, hardware, read_hours, run_stages
from vlm_agent.studies.study import STARTER, Row, Study

RUNS = {"GRPO": "group", "PPO": "group_ppo"}
"""How each is called, and its recipe."""

SPARSE = ("--reward", "sparse")


class GroupStudy(Study):
    """Two runs of one seed, and the policies that they begin and end with."""

    def training(self) -> Iterator[Stage]:
        """One run each."""
        for recipe in RUNS.values():
            yield self._ppo(recipe)

    def rows(self) -> Iterator[Row]:
        """The start, and each run's end once it is there; all in the scene of the runs."""
        yield Row(STARTER, "starter", change=SPARSE)
        for name, recipe in RUNS.items():
            yield Row(name, self._best(f"{recipe}_0"), train_seed=0, change=SPARSE)

    def _best(self, name: str) -> str:
        """Where a run ended, whether or not it was better before."""
        steps = (self.folder / "checkpoints").glob(f"{name}_step*")
        whole = [path for path in steps if path.suffix != PARTIAL]
        return str(max(whole, key=lambda path: int(path.name.rpartition("_step")[2])))


def study(folder: Path, output: Path) -> dict[str, Any]:
    """Run what has not been run, and write what came of it.

    Args:
        folder: Where everything is made.
        output: The JSON file.
    """
    groups = GroupStudy(folder)
    run_stages(list(groups.training()), folder)
    stages = [*groups.training(), *groups.evaluations()]
    run_stages(stages, folder)
    hours = read_hours(folder)
    written = {
        "hardware": hardware(),
        "hours": {stage.name: round(hours.get(stage.name, 0.0), 3) for stage in stages},
        **outcome(groups),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(written, indent=1) + "\n")
    return written


def outcome(groups: GroupStudy) -> dict[str, Any]:
    """Success of each policy, and its gains with their 95 % intervals, over the start and PPO."""
    results = []
    for row in groups.rows():
        result = read_result(groups.folder / "evaluations" / row.file)
        results.append({**result, "policy": row.label})
    start, group, ppo = results
    told = ("policy", "num_eval_episodes", "success_rate", "ci95_low", "ci95_high", "mean_length")
    return {
        "words": {name: _words(groups.folder / "runs" / f"{r}_0") for name, r in RUNS.items()},
        "rows": [{key: result[key] for key in told} for result in results],
        "comparisons": [_gain(start, group), _gain(start, ppo), _gain(ppo, group)],
    }


def _words(run: Path) -> int:
    return json.loads((run / "summary.json").read_text())["timesteps"]


def _gain(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    row = compare([first, second])[1]
    solved = [[episode["success"] for episode in one["episodes"]] for one in (first, second)]
    low, high = paired_interval(*solved)
    told = {key: row[key] for key in ("only_first", "only_this", "p_value")}
    names = {"policy": second["policy"], "over": first["policy"]}
    return {**names, "gain": row["difference"], "ci95_low": low, "ci95_high": high, **told}


def paired_interval(first: Sequence[bool], second: Sequence[bool]) -> tuple[float, float]:
    """The 95 % interval of how much higher the second success rate is, over the same episodes.

    Newcombe (1998), method 8: the Wilson intervals of both rates, put together as their
    correlation φ says.
    """
    pairs = list(zip(first, second, strict=True))
    both, neither = pairs.count((True, True)), pairs.count((False, False))
    only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
    sums = (both + only_first, neither + only_second, both + only_second, neither + only_first)
    phi = (both * neither - only_first * only_second) / math.sqrt(max(math.prod(sums), 1))
    rates = (sums[0] / len(pairs), sums[2] / len(pairs))
    (low1, high1), (low2, high2) = (wilson_interval(sums[i], len(pairs)) for i in (0, 2))

    def width(down: float, up: float) -> float:
        return math.sqrt(max(down**2 - 2 * phi * down * up + up**2, 0.0))

    difference = rates[1] - rates[0]
    return (
        difference - width(rates[1] - low2, high1 - rates[0]),
        difference + width(high2 - rates[1], rates[0] - low1),
    )
