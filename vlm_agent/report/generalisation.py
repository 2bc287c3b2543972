"""The page of the study of generalisation: its tables and its chart, from its JSON file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm_agent.report.pages import replace_between
from vlm_agent.report.suite import plot_suite

BEGIN = "<!-- made by make generalisation -->"
DRAWN = "can"
"""The suite of the chart."""

MEMORY = "memory"
"""The rows, and part of the stages' names, of policies that see the last pictures."""

END = "<!-- end of what make generalisation made -->"


def generalisation_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Success of each policy in each split, in %, as Markdown: the mean over its seeds."""
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    splits = list(dict.fromkeys((row["split"], row["is_mistake"]) for row in rows))
    cells = {
        (split, policy): [row for row in rows if (row["split"], row["policy"]) == (split, policy)]
        for split, _ in splits
        for policy in policies
    }
    lines = [
        f"| split | {' | '.join(_named(policy, rows) for policy in policies)} |",
        f"|---|{'---|' * len(policies)}",
    ]
    for split, is_mistake in splits:
        told = [_percent(cells[split, policy]) for policy in policies]
        lines.append(
            f"| {split}{' (lower is better)' if is_mistake else ''} | {' | '.join(told)} |"
        )
    asked = [split for split, is_mistake in splits if not is_mistake]
    means = []
    for policy in policies:
        played = [split for split in asked if cells[split, policy]]
        mean = _percent([row for split in played for row in cells[split, policy]])
        # A mean over other splits is another figure: it says so.
        means.append(mean if len(played) in (0, len(asked)) else f"{mean} (of {len(played)})")
    return "\n".join([*lines, f"| **mean** | {' | '.join(means)} |"])


def _named(policy: str, rows: Sequence[Mapping[str, Any]]) -> str:
    seeds = {row["train_seed"] for row in rows if row["policy"] == policy}
    return policy if len(seeds) == 1 else f"{policy}, {len(seeds)} seeds"


def _percent(rows: Sequence[Mapping[str, Any]]) -> str:
    """The mean success, and the lowest and highest seed's where they differ."""
    if not rows:
        return ""
    seeds = sorted({row["train_seed"] for row in rows})
    means = [
        100 * np.mean([row["success_rate"] for row in rows if row["train_seed"] == seed])
        for seed in seeds
    ]
    range_of = f" ({min(means):.1f}–{max(means):.1f})" if len(seeds) > 1 else ""
    return f"{np.mean(means):.1f}{range_of}"


def comparison_lines(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """What each policy gains over another one, seed by seed, as Markdown."""
    lines = [
        "| policy | over | seed | splits | points | episodes won / lost | p |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in comparisons:
        cells = [one["policy"], one["over"], str(one["train_seed"]), str(one["splits"])]
        cells += [f"{100 * one['gain']:+.1f}", f"{one['only_this']} / {one['only_first']}"]
        cells += [f"{one['p_value']:.1g}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def hours_lines(hours: Mapping[str, float]) -> str:
    """What a memory costs: the hours of each of its stages, as Markdown."""
    lines = ["| stage | hours |", "|---|---|"]
    lines += [f"| {name} | {spent:.2f} |" for name, spent in hours.items() if MEMORY in name]
    return "\n".join(lines)


def write_page(results: Mapping[str, Any], page: Path, chart: Path) -> None:
    """Put the tables between the marks; draw one suite, as each policy's first seed played it."""
    rows, told = results["rows"], []
    for suite in dict.fromkeys(row["suite"] for row in rows):
        told.append(f"### `{suite}`")
        told.append(generalisation_table([row for row in rows if row["suite"] == suite]))
        compared = [one for one in results["comparisons"] if one["suite"] == suite]
        if compared:
            told.append(comparison_lines(compared))
        if suite == MEMORY:
            told.append(hours_lines(results["hours"]))
    replace_between(page, BEGIN, END, "\n\n".join(told))
    drawn: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["train_seed"] == 0 and row["suite"] == DRAWN:
            drawn.setdefault(row["policy"], []).append(row)
    if drawn:
        plot_suite(drawn, chart)
