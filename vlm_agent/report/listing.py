"""The runs of a folder, a line each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from vlm_agent.common.errors import UserError
from vlm_agent.common.locks import is_free
from vlm_agent.report.html.records import RunRecord


@dataclass(frozen=True)
class Listed:
    """A run's line.

    Attributes:
        name: Its name.
        state: ``running``, ``ended``, ``stopped`` before its end, or ``damaged``.
        words: Said, or moments learnt.
        total: How many there are to be; ``None`` where that is not said.
        rates: Success of its evaluations, oldest first.
        changed: When something was last recorded.
    """

    name: str
    state: str
    words: int
    total: int | None
    rates: tuple[float, ...]
    changed: datetime


def list_runs(folder: Path) -> list[Listed]:
    """The runs below ``folder/runs``, the one that was last changed first."""
    found = [path.parent for path in (folder / "runs").glob("*/metrics.jsonl")]
    return sorted(map(_listed, found), key=lambda one: one.changed, reverse=True)


def _listed(run: Path) -> Listed:
    changed = datetime.fromtimestamp((run / "metrics.jsonl").stat().st_mtime)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    try:
        last = json.loads(lines[-1]) if lines else {}
    except ValueError:
        last = json.loads(lines[-2]) if len(lines) > 1 else {}  # it is being written
    running = not is_free(run.with_name(f".{run.name}.lock"))
    state = "running" if running else "ended" if (run / "summary.json").is_file() else "stopped"
    try:
        record = RunRecord.load(run)
        learns_words = "episode_return" in last and "stage" not in last
        total = record.recipe.get("total_timesteps") if learns_words else None
        rates = tuple(one["success_rate"] for one in record.evaluations)
    except UserError:
        total, rates, state = None, (), state if running else "damaged"
    return Listed(run.name, state, last.get("timesteps", 0), total, rates, changed)


def runs_table(runs: Sequence[Listed]) -> str:
    """The runs as text."""
    if not runs:
        return "no runs here"
    width = max(len("run"), *(len(run.name) for run in runs))
    lines = [f"{'run':<{width}}  {'state':<8}  {'words':>20}  {'success':<14}  last change"]
    for run in runs:
        words = f"{run.words:,}" + (f" of {run.total:,}" if run.total else "")
        ends = [f"{100 * rate:.0f} %" for rate in (run.rates[:1] + run.rates[1:][-1:])]
        when = f"{run.changed:%Y-%m-%d %H:%M}"
        success = " to ".join(ends)
        lines.append(f"{run.name:<{width}}  {run.state:<8}  {words:>20}  {success:<14}  {when}")
    return "\n".join(lines)
