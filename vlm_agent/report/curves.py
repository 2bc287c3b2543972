"""Learning curves from ``metrics.jsonl``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATES = "rates"

PANELS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("episode return", ("episode_return",)),
    (RATES, ("success_rate", "success_by_goal")),
    ("episode length (words)", ("episode_length",)),
    ("entropy (nats)", ("entropy",)),
    ("losses", ("policy_loss", "value_loss", "state_loss")),
    ("approximate KL, clip fraction", ("approx_kl", "clip_fraction")),
    ("explained variance", ("explained_variance",)),
    ("shares of the most said words", ("words",)),
    ("imitation loss (nats)", ("loss",)),
    ("share of the expert's words that are said", ("accuracy", "agreement")),
)
"""Title and metrics of each panel; one is drawn if a run has something for it."""

COLUMNS = 4


MOST_WORDS = 10
"""As many are drawn: there are no more colours."""

OTHER_RATES = {"success_rate", "learning_rate", "farthest_success_rate"}
"""Metrics that are called a rate, and are not of a stage."""


def stage_rates(values: Mapping[str, Any]) -> list[str]:
    """The keys of the rates at which an episode's stages were reached, in order."""
    return [key for key in values if key.endswith("_rate") and key not in OTHER_RATES]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The updates of a run, oldest first."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def plot_curves(metrics_path: Path, evaluations: Sequence[dict[str, Any]], output: Path) -> None:
    """Draw a run's curves into one PNG.

    Args:
        metrics_path: The run's ``metrics.jsonl``.
        evaluations: The run's evaluations, drawn with their 95 % intervals.
        output: The PNG to write.
    """
    from matplotlib.figure import Figure  # a second to import, and only a run's end needs it

    updates = read_metrics(metrics_path)
    panels = _panels(updates)
    rows, columns = math.ceil(len(panels) / COLUMNS), min(len(panels), COLUMNS)
    figure = Figure(figsize=(3.5 * columns, 3.25 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, keys) in zip(grid.flat, panels.items(), strict=False):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("timesteps (words)", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        for key in keys:
            _plot_metric(axes, updates, key)
        if title == RATES:
            axes.set_ylim(-0.03, 1.03)
            _plot_evaluations(axes, evaluations)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=7)
    figure.savefig(output, dpi=110)


def _panels(updates: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Title -> metrics of the panels for which there is something to draw; rates always."""
    stages = list(dict.fromkeys(key for update in updates for key in stage_rates(update)))
    panels = {}
    for title, keys in PANELS:
        wanted = [*keys, *reversed(stages)] if title == RATES else keys
        known = [key for key in wanted if any(update.get(key) is not None for update in updates)]
        if known or title == RATES:
            panels[title] = known
    return panels


def _plot_metric(axes: Axes, updates: Sequence[dict[str, Any]], key: str) -> None:
    """Draw a number's curve, or one for each of the numbers that it has by name."""
    points = [(u["timesteps"], u[key]) for u in updates if u.get(key) is not None]
    if points and isinstance(points[0][1], dict):
        names = list(dict.fromkeys(name for _, values in points for name in values))
        if key == "words":
            total = {name: sum(values.get(name, 0.0) for _, values in points) for name in names}
            most = sorted(names, key=lambda name: -total[name])[:MOST_WORDS]
            names = [name for name in names if name in most]
        for name in names:
            known = [(time, values[name]) for time, values in points if name in values]
            axes.plot(*zip(*known, strict=True), marker=".", label=name)
    elif points:
        axes.plot([t for t, _ in points], [v for _, v in points], marker=".", label=key)


def _plot_evaluations(axes: Axes, evaluations: Sequence[dict[str, Any]]) -> None:
    if not evaluations:
        return
    rate = [e["success_rate"] for e in evaluations]
    low = [e["success_rate"] - e["ci95_low"] for e in evaluations]
    high = [e["ci95_high"] - e["success_rate"] for e in evaluations]
    times = [e["timesteps"] for e in evaluations]
    axes.errorbar(times, rate, yerr=[low, high], fmt="ks", capsize=3, label="evaluated success")
