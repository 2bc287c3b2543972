"""``vlm-agent results``: run the study, and put what came of it into one JSON file."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlm_agent.evaluation.compare import compare
from vlm_agent.evaluation.evaluate import read_result
from vlm_agent.studies.stages import hardware, read_hours, run_stages
from vlm_agent.studies.study import ABLATIONS, ROBUSTNESS, SEEDS, STARTER, WARM, Row, Study

ROW_NAMES = ("policy", "task", "train_seed", "mode", "change")
COMPARISON_NAMES = ("policy", "task", "train_seed", "mode")


def run_study(folder: Path, output: Path) -> None:
    """Run what has not been run, and write the results.

    Args:
        folder: Where everything is made.
        output: The JSON file.
    """
    study = Study(folder)
    run_stages([*study.training(), *study.evaluations()], folder)
    write_results(study, output)


def write_results(study: Study, output: Path) -> None:
    """Put what has been evaluated so far into one JSON file.

    What an earlier version of the file holds of this study, and the folder does not, stays in it,
    so that a part of the results can be made anew without the hours of the others. A comparison
    goes when one of its two rows is another than it was.
    """
    earlier = json.loads(output.read_text()) if output.is_file() else {}
    results = {}
    for row in study.rows():
        path = study.folder / "evaluations" / row.file
        if path.is_file():
            results[row] = read_result(path)
    stages = {stage.name for stage in (*study.training(), *study.evaluations())}
    hours = {name: round(spent, 3) for name, spent in read_hours(study.folder).items()}
    rows = [_row(row, result) for row, result in results.items()]
    comparisons, curves = list(_comparisons(results)), list(_curves(study))
    order = [tuple(_about(row).values()) for row in study.rows()]
    known = [row for row in earlier.get("rows", []) if _key(row, ROW_NAMES) in order]
    held = _still_true(earlier.get("comparisons", []), known, rows)
    runs = [stage.name.removeprefix("PPO: ") for stage in study.training()]
    drawn = [curve for curve in earlier.get("curves", []) if curve["run"] in runs]
    written: dict[str, Any] = {
        "commit": _git("rev-parse", "HEAD"),
        "hardware": hardware(),
        # The quick study may have used the same folder.
        "hours": {k: h for k, h in (earlier.get("hours", {}) | hours).items() if k in stages},
        "seeds": {"train": list(SEEDS), "evaluation": 0},
        "rows": _merged(known, rows, ROW_NAMES),
        "comparisons": _merged(held, comparisons, COMPARISON_NAMES),
        "curves": _merged(drawn, curves, ("run",)),
    }
    for row_of in ("rows", "comparisons"):
        written[row_of].sort(key=lambda row: order.index(_key({"change": "none"} | row, ROW_NAMES)))
    written["curves"].sort(key=lambda curve: runs.index(curve["run"]))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")


def _still_true(
    comparisons: list[dict[str, Any]], known: list[dict[str, Any]], made: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Earlier comparisons of rows that are there and came out as they were, if made again."""
    there = {_key(row, COMPARISON_NAMES) for row in known if row["change"] == "none"}
    there -= {
        _key(row, COMPARISON_NAMES) for row in made if row not in known and row["change"] == "none"
    }
    return [one for one in comparisons if {_key(one, COMPARISON_NAMES), _start_key(one)} <= there]


def _merged(
    earlier: list[dict[str, Any]], made: list[dict[str, Any]], names: tuple[str, ...]
) -> list[dict[str, Any]]:
    """What was made, and what was there under other names."""
    new = {_key(one, names) for one in made}
    return [one for one in earlier if _key(one, names) not in new] + made


def _key(one: Mapping[str, Any], names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(one[name] for name in names)


def _start_key(comparison: Mapping[str, Any]) -> tuple[Any, ...]:
    """The row that a comparison is with, as :data:`COMPARISON_NAMES` say; starts have seed 0."""
    return _key({**comparison, "policy": comparison["start"], "train_seed": 0}, COMPARISON_NAMES)


def _about(row: Row) -> dict[str, Any]:
    """What a row is known by, under :data:`ROW_NAMES`."""
    changes = {options: name for name, options in {**ROBUSTNESS, **ABLATIONS}.items()}
    change = changes.get(row.change, "none")
    values = (row.label, row.task, row.train_seed, row.mode, change)
    return dict(zip(ROW_NAMES, values, strict=True))


def _row(row: Row, result: dict[str, Any]) -> dict[str, Any]:
    return {
        **_about(row),
        "episodes": result["num_eval_episodes"],
        "success_rate": result["success_rate"],
        "ci95_low": result["ci95_low"],
        "ci95_high": result["ci95_high"],
        "mean_length": result["mean_length"],
    }


def _comparisons(results: Mapping[Row, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """PPO against what it started from, on the same episodes, both greedy.

    Sampled words would not tell: a policy samples at the temperature it was trained at.
    """
    starts = {"PPO from the starter policy": STARTER, "PPO from the warm start": WARM}
    greedy = {row: result for row, result in results.items() if row.mode == "greedy"}
    by_label = {(row.label, row.task): r for row, r in greedy.items() if not row.change}
    for row, result in greedy.items():
        start = by_label.get((starts.get(row.label, ""), row.task))
        if row.change or start is None:
            continue
        against = compare([start, result])[1]
        yield {
            "policy": row.label,
            "task": row.task,
            "start": starts[row.label],
            "train_seed": row.train_seed,
            "mode": row.mode,
            **{key: against[key] for key in ("difference", "only_first", "only_this", "p_value")},
        }


def _curves(study: Study) -> Iterator[dict[str, Any]]:
    """The validation success of each run of PPO over its words."""
    rows = {Path(row.policy).name: row for row in study.rows() if not row.change}
    for stage in study.training():
        if stage.name.startswith("PPO: ") and stage.makes.is_file():
            summary = json.loads(stage.makes.read_text())
            row = rows[f"{summary['run_name']}_best"]
            evaluations = summary["evaluations"]
            keys = ("timesteps", "success_rate", "ci95_low", "ci95_high")
            yield {
                "run": summary["run_name"],
                "policy": row.label,
                "task": row.task,
                "train_seed": row.train_seed,
                "episodes": evaluations[0]["num_eval_episodes"],
                "hours": round(summary["seconds"] / 3600, 3),
                **{key: [evaluation[key] for evaluation in evaluations] for key in keys},
                **_start_reached(stage.makes.parent / "metrics.jsonl"),
            }


def _start_reached(metrics: Path) -> dict[str, float]:
    """With a curriculum: how much of the longest demonstration was left to the policy at last."""
    last = json.loads(metrics.read_text().splitlines()[-1])
    return {key: last[key] for key in ("curriculum_share",) if key in last}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)  # noqa: S607
    return done.stdout.strip()
