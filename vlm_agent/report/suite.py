"""A suite's table, and its chart: success in distribution against each split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]

COLOURS = {
    "distribution": "#4d4d4d",
    "vision": "#2c7fb8",
    "semantics": "#7a5195",
    "execution": "#d95f02",
}
"""Of the groups of splits."""


def mean_success(rows: Rows) -> float:
    """The mean over the splits in which success is what was asked for; NaN without any."""
    rates = [row["success_rate"] for row in rows if not row["is_mistake"]]
    return float(np.mean(rates)) if rates else float("nan")


def suite_table(rows: Rows) -> str:
    """One policy's rows as Markdown."""
    lines = ["| split | seen in training | success | 95 % | words |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [
            f"{row['split']}{' (lower is better)' if row['is_mistake'] else ''}",
            row["seen"],
            f"{100 * row['success_rate']:.1f} % ({row['successes']} of {row['episodes']})",
            f"{100 * row['ci95_low']:.1f}–{100 * row['ci95_high']:.1f}",
            f"{row['mean_length']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, f"| mean | | {100 * mean_success(rows):.1f} % | | |"])


def plot_suite(policies: Mapping[str, Rows], output: Path) -> None:
    """Draw each split's success with its 95 % interval, one mark per policy.

    Args:
        policies: Rows of the same splits, by the policies' names.
        output: The picture's file.
    """
    first = next(iter(policies.values()))
    names = [row["split"] for row in first]
    height = 1.4 + 0.28 * len(names)
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots()
    places = {name: -number for number, name in enumerate(names)}
    marks = "os^Dv"
    for number, (policy, rows) in enumerate(policies.items()):
        shift = 0.18 * ((len(policies) - 1) / 2 - number)
        for row in (row for row in rows if row["split"] in places):
            rate = 100 * row["success_rate"]
            error = [[rate - 100 * row["ci95_low"]], [100 * row["ci95_high"] - rate]]
            axes.errorbar(
                rate,
                places[row["split"]] + shift,
                xerr=np.maximum(error, 0),
                fmt=marks[number % len(marks)],
                color=COLOURS[row["group"]],
                markerfacecolor=COLOURS[row["group"]] if number == 0 else "white",
                capsize=2,
                label=policy if row is rows[0] else None,
            )
        inside = [row for row in rows if row["group"] == "distribution"]
        if inside:
            rate = 100 * inside[0]["success_rate"]
            axes.axvline(rate, linestyle=":", linewidth=1, color=COLOURS["distribution"])
    axes.set_yticks(list(places.values()), names)
    for label, row in zip(axes.get_yticklabels(), first, strict=True):
        label.set_color(COLOURS[row["group"]])
    axes.set_xlim(0, 102)
    axes.set_xlabel("success in test episodes, % (with 95 % intervals; dotted: in distribution)")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower left")
    figure.savefig(output, dpi=120)
