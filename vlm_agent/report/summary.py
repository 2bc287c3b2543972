"""The words a run ends with."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_agent.report.curves import stage_rates

_ROWS = {"mean_return": "mean return", "mean_length": "mean length"}
"""What is shown below the rates."""


def training_summary(
    summary: Mapping[str, Any], where: Mapping[str, Path], names_modules: bool = False
) -> str:
    """What came of a run, and where everything lies.

    Args:
        summary: The run's ``summary.json``.
        where: Label -> path of what the run leaves; what does not exist is passed over.
        names_modules: Whether the policy's world has code of the user's own.
    """
    lines = ["", f"{summary['timesteps']} words in {summary['seconds'] / 60:.1f} min."]
    evaluations = summary["evaluations"]
    if evaluations:
        first, last = evaluations[0], evaluations[-1]
        lines += ["", f"{'evaluation':<14}{'before':>12}{'after':>12}"]
        rates = {key: key.removesuffix("_rate").replace("_", " ") for key in stage_rates(first)}
        for key, label in ({"success_rate": "success"} | rates | _ROWS).items():
            lines.append(f"{label:<14}{first[key]:>12.3f}{last[key]:>12.3f}")
        lines += _goals(first, last)
        intervals = [f"{e['ci95_low']:.2f}-{e['ci95_high']:.2f}" for e in (first, last)]
        lines.append(f"{'success 95 %':<14}{intervals[0]:>12}{intervals[1]:>12}")
        lines.append(f"({first['num_eval_episodes']} episodes each, Wilson interval)")
    lines.append("")
    lines += [f"{label:<14}{path}" for label, path in where.items() if path.exists()]
    best = where["best policy"]
    if best.exists():
        trust = " --trust_modules true" if names_modules else ""
        command = f"{_command()} eval --policy {best} --num_eval_episodes 10{trust}"
        lines += ["", f"Evaluate it: {command}"]
    return "\n".join(lines)


def _goals(first: Mapping[str, Any], last: Mapping[str, Any]) -> list[str]:
    """Success of each goal, where there are several."""
    before = first.get("success_by_goal", {})
    return [
        f"{goal[:13]:<14}{before.get(goal, float('nan')):>12.3f}{rate:>12.3f}"
        for goal, rate in last.get("success_by_goal", {}).items()
    ]


def _command() -> Path:
    """``vlm-agent`` as it can be typed here, whether or not its environment is activated."""
    command = Path(sys.executable).with_name("vlm-agent")
    return command.relative_to(Path.cwd()) if command.is_relative_to(Path.cwd()) else command
