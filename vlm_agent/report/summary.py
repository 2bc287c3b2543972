"""The words a run ends with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_ROWS = (
    ("success_rate", "success"),
    ("reached_rate", "reached"),
    ("grasped_rate", "grasped"),
    ("lifted_rate", "lifted"),
    ("mean_return", "mean return"),
    ("mean_length", "mean length"),
)


def training_summary(
    run_folder: Path,
    evaluations: Sequence[dict[str, Any]],
    checkpoints: Sequence[Path],
    seconds: float,
) -> str:
    """What came of a run, and where everything lies.

    Args:
        run_folder: ``runs/{run_name}``.
        evaluations: The run's evaluations, oldest first.
        checkpoints: The run's ``_step`` checkpoints.
        seconds: How long it took.
    """
    lines = ["", f"Done in {seconds / 60:.1f} min."]
    if evaluations:
        first, last = evaluations[0], evaluations[-1]
        lines += ["", f"{'evaluation':<14}{'before':>12}{'after':>12}"]
        for key, label in _ROWS:
            lines.append(f"{label:<14}{first[key]:>12.3f}{last[key]:>12.3f}")
        intervals = [f"{e['ci95_low']:.2f}-{e['ci95_high']:.2f}" for e in (first, last)]
        lines.append(f"{'success 95 %':<14}{intervals[0]:>12}{intervals[1]:>12}")
        lines.append(f"({first['num_eval_episodes']} episodes each, Wilson interval)")
    folder = checkpoints[-1].parent if checkpoints else None
    best = folder / f"{run_folder.name}_best" if folder else None
    where = {
        "metrics": run_folder / "metrics.jsonl",
        "curves": run_folder / "curves.png",
        "video": run_folder / "episode.mp4",
        "recipe": run_folder / "recipe.yaml",
        "wandb": run_folder / "wandb",
        "last policy": checkpoints[-1] if checkpoints else None,
        "best policy": best,
    }
    lines.append("")
    lines += [f"{k:<14}{v}" for k, v in where.items() if v is not None and v.exists()]
    if best is not None and best.exists():
        command = Path(sys.executable).with_name("vlm-agent")
        if command.is_relative_to(Path.cwd()):
            command = command.relative_to(Path.cwd())
        lines += ["", f"Evaluate it: {command} eval --policy {best} --num_eval_episodes 10"]
    return "\n".join(lines)
