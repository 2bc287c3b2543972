"""The words a run ends with."""

from __future__ import annotations

import sys
from collections.abc import Mapping
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


def training_summary(summary: Mapping[str, Any], where: Mapping[str, Path]) -> str:
    """What came of a run, and where everything lies.

    Args:
        summary: The run's ``summary.json``.
        where: Label -> path of what the run leaves; what does not exist is passed over.
    """
    lines = ["", f"{summary['timesteps']} words in {summary['seconds'] / 60:.1f} min."]
    evaluations = summary["evaluations"]
    if evaluations:
        first, last = evaluations[0], evaluations[-1]
        lines += ["", f"{'evaluation':<14}{'before':>12}{'after':>12}"]
        for key, label in _ROWS:
            lines.append(f"{label:<14}{first[key]:>12.3f}{last[key]:>12.3f}")
        intervals = [f"{e['ci95_low']:.2f}-{e['ci95_high']:.2f}" for e in (first, last)]
        lines.append(f"{'success 95 %':<14}{intervals[0]:>12}{intervals[1]:>12}")
        lines.append(f"({first['num_eval_episodes']} episodes each, Wilson interval)")
    lines.append("")
    lines += [f"{label:<14}{path}" for label, path in where.items() if path.exists()]
    best = where["best policy"]
    if best.exists():
        lines += ["", f"Evaluate it: {_command()} eval --policy {best} --num_eval_episodes 10"]
    return "\n".join(lines)


def _command() -> Path:
    """``vlm-agent`` as it can be typed here, whether or not its environment is activated."""
    command = Path(sys.executable).with_name("vlm-agent")
    return command.relative_to(Path.cwd()) if command.is_relative_to(Path.cwd()) else command
