"""The table and learning curve of docs/results.md, from the results' JSON file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from vlm_agent.report.pages import replace_between

BEGIN, END = "<!-- results: made by make results -->", "<!-- end of results -->"
SOURCE = "Source"
"""The key in the picture's metadata under which stands what it was drawn from."""


def results_table(results: Mapping[str, Any]) -> str:
    """The rows as Markdown tables: policies, then what the best one does elsewhere."""
    plain = [row for row in results["rows"] if row["change"] == "none"]
    changed = [row for row in results["rows"] if row["change"] != "none"]
    compared = {_key(row): row for row in results["comparisons"]}
    lines = [
        "| policy | task | mode | training seed | success | 95 % | words | over its start |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in plain:
        against = compared.get(_key(row))
        gain = ""
        if against is not None:
            gain = f"{100 * against['difference']:+.1f} points, p = {against['p_value']:.1g}"
        seed = "" if row["train_seed"] is None else str(row["train_seed"])
        cells = [row["policy"], row["task"], row["mode"], seed, *_figures(row), gain]
        lines.append("| " + " | ".join(cells) + " |")
    if changed:
        lines += ["", f"| {changed[0]['policy']}, greedy | success | 95 % | words |"]
        lines.append("|---|---|---|---|")
        for row in changed:
            lines.append("| " + " | ".join([row["change"], *_figures(row)]) + " |")
    return "\n".join(lines)


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["policy"], row["task"], row["train_seed"], row["mode"]


def _figures(row: Mapping[str, Any]) -> list[str]:
    solved = round(row["success_rate"] * row["episodes"])
    return [
        f"{100 * row['success_rate']:.1f} % ({solved} of {row['episodes']})",
        f"{100 * row['ci95_low']:.1f}–{100 * row['ci95_high']:.1f}",
        f"{row['mean_length']:.1f}",
    ]


def write_page(results: Mapping[str, Any], page: Path) -> None:
    """Put the table between its two marks."""
    replace_between(page, BEGIN, END, results_table(results))


def curves_digest(curves: Sequence[Mapping[str, Any]]) -> str:
    """What a picture of these curves carries in its metadata."""
    return hashlib.sha256(json.dumps(curves, sort_keys=True).encode()).hexdigest()


def plot_learning_curves(results: Mapping[str, Any], output: Path) -> None:
    """Draw each run's success on the validation episodes over its words, with 95 % intervals.

    One picture per task; a policy of the table has its colour, which its training seeds share.
    """
    curves = results["curves"]
    tasks = list(dict.fromkeys(curve["task"] for curve in curves))
    policies = list(dict.fromkeys(curve["policy"] for curve in curves))
    figure = Figure(figsize=(10, 5), layout="constrained")
    pictures = figure.subplots(ncols=max(1, len(tasks)), sharey=True, squeeze=False)[0]
    for axes, task in zip(pictures, tasks, strict=False):
        named: set[str] = set()
        for curve in (curve for curve in curves if curve["task"] == task):
            which = policies.index(curve["policy"])
            name = f"{curve['policy']} ({curve['episodes']} episodes)"
            label = None if name in named else name
            named.add(name)
            words = [n / 1000 for n in curve["timesteps"]]
            # Hollow marks of different shapes: curves that lie at 0 can be told apart.
            style = {"color": f"C{which}", "marker": "osD^v"[which % 5], "fillstyle": "none"}
            axes.plot(words, curve["success_rate"], label=label, **style)
            bounds = curve["ci95_low"], curve["ci95_high"]
            axes.fill_between(words, *bounds, alpha=0.12, color=style["color"])
        axes.set(title=task, xlabel="words of PPO, in thousands", ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
        # Below, where no curve is hidden.
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    pictures[0].set_ylabel("success, validation episodes")
    figure.savefig(output, dpi=110, metadata={SOURCE: curves_digest(curves)})
