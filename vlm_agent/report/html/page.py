"""``write_page``: a report as one HTML file that needs no network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from vlm_agent.common.statistics import mcnemar
from vlm_agent.common.whole import write_whole
from vlm_agent.report.html.records import CURVES, RunRecord, differing_settings

ASSETS = Path(__file__).parent / "assets"


def write_page(
    records: Sequence[RunRecord],
    output: Path,
    players: Mapping[str, Sequence[dict[str, Any]]] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write the report of one run or several.

    Args:
        records: The runs.
        output: The file.
        players: Episodes to look at, see :func:`episode_players`, by the run's name.
        notes: What is to be said of the episodes, and why some are missing.

    Raises:
        UserError: The file cannot be written.
    """
    from plotly.offline import get_plotlyjs  # half a second, and only a report needs it

    words = {record.name: _words(record) for record in records}
    data = {
        "charts": _charts(records),
        "evaluations": {record.name: _rates(record) for record in records},
        "times": {record.name: record.times() for record in records},
        "players": players or {},
        "words": words,
    }
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        (ASSETS / "page.html.jinja").read_text()
    )
    page = template.render(
        title=", ".join(record.name for record in records),
        runs=[_about(record) for record in records],
        tables=[_evaluation_rows(record) for record in records],
        several=len(records) > 1,
        differences=differing_settings(records),
        recipes={record.name: record.recipe for record in records},
        notes=notes,
        data=_json(data),
        plotly=get_plotlyjs().replace("</script", "<\\/script"),
        style=(ASSETS / "page.css").read_text(),
        script=(ASSETS / "page.js").read_text(),
    )
    write_whole(output, page)


def _json(data: Any) -> str:
    """JSON that can stand in a page's script: nothing in it ends that, or begins a comment."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _words(record: RunRecord) -> list[str]:
    shares = [row["words"] for row in record.metrics if isinstance(row.get("words"), dict)]
    return list(shares[0]) if shares else []


def _charts(records: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """What each chart shows: its title, and the runs' curves."""
    charts = []
    for title, names in CURVES:
        curves = [
            {
                "run": record.name,
                "name": curve.name,
                "words": curve.words,
                "hours": curve.hours,
                "values": curve.values,
                "smoothed": curve.smoothed,
            }
            for record in records
            for curve in record.curves(names)
        ]
        if curves:
            charts.append({"title": title, "curves": curves})
    return charts


def _rates(record: RunRecord) -> list[dict[str, Any]]:
    keys = ("timesteps", "success_rate", "ci95_low", "ci95_high")
    return [{key: one[key] for key in keys} for one in record.evaluations]


def _about(record: RunRecord) -> dict[str, Any]:
    """A run's line in the first table."""
    rated = [one for one in record.evaluations if one["episodes"]]
    about: dict[str, Any] = {
        "name": record.name,
        "task": record.recipe.get("env") or record.recipe.get("task"),
        "model": record.recipe.get("model_name_or_path"),
        "words": record.summary.get("timesteps")
        or (record.metrics[-1]["timesteps"] if record.metrics else 0),
        "minutes": record.summary.get("seconds", 0.0) / 60,
        "ended": bool(record.summary),
        "memory": record.summary.get("peak_memory_gb", {}),
        "first": rated[0] if rated else None,
        "last": rated[-1] if len(rated) > 1 else None,
        "paired": None,
    }
    if len(rated) > 1 and _seeds(rated[0]) == _seeds(rated[-1]):
        solved = [[episode["success"] for episode in one["episodes"]] for one in rated]
        only_before, only_after, p = mcnemar(solved[0], solved[-1])
        about["paired"] = {"only_before": only_before, "only_after": only_after, "p": p}
    return about


def _seeds(evaluation: Mapping[str, Any]) -> list[int]:
    return [episode["seed"] for episode in evaluation["episodes"]]


def _evaluation_rows(record: RunRecord) -> dict[str, Any]:
    """Every evaluation of a run, with the goals' rates where there are several."""
    goals = dict.fromkeys(
        goal for one in record.evaluations for goal in one.get("success_by_goal", {})
    )
    stages = dict.fromkeys(
        key.removesuffix("_rate")
        for one in record.evaluations
        for key in one
        if key.endswith("_rate") and key != "success_rate"
    )
    return {
        "name": record.name,
        "goals": list(goals),
        "stages": list(stages),
        "rows": record.evaluations,
    }
