"""What runs left on disk, as a report shows it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vlm_agent.common.errors import UserError

SMOOTHING = 0.7
"""Of a smoothed curve each point is this share the one before, and else the number itself."""

CURVES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("success", ("success_rate",)),
    ("episode return", ("episode_return",)),
    ("episode length (words)", ("episode_length",)),
    ("stages reached", ("*_rate",)),
    ("entropy (nats)", ("entropy",)),
    ("policy loss", ("policy_loss",)),
    ("value loss", ("value_loss",)),
    ("approximate KL", ("approx_kl", "staleness_kl")),
    ("clip fraction", ("clip_fraction",)),
    ("explained variance", ("explained_variance",)),
    ("cross-entropy", ("loss",)),
    ("share of the expert's words", ("accuracy", "agreement")),
    ("gradient norm", ("grad_norm",)),
    ("words per second", ("words_per_s",)),
)
"""Title and metrics of each chart; a run without them has none."""

NO_STAGES = {"success_rate", "learning_rate", "farthest_success_rate"}

SHARES = {"scoring words": "model_share", "waiting for the world": "waiting_share"}
"""What the trainer's time in a rollout went into."""

WORLD_SHARES = {"physics": "physics_share", "rendering": "rendering_share"}
"""What the time of the world's processes went into, meanwhile."""


@dataclass(frozen=True)
class Curve:
    """Numbers of one run over its course.

    Attributes:
        name: The metric's.
        words: Words said, or moments learnt, by then.
        hours: Hours of rollouts and updates by then; none where nobody measured them.
        values: The numbers.
        smoothed: The same, smoothed.
    """

    name: str
    words: list[float]
    hours: list[float]
    values: list[float]
    smoothed: list[float]


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        folder: ``runs/NAME``.
        name: Its name.
        metrics: The updates, oldest first.
        evaluations: The evaluations with their episodes, oldest first.
        recipe: Its resolved settings.
        summary: What it ended with; empty while it runs.
    """

    folder: Path
    name: str
    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    recipe: dict[str, Any]
    summary: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> RunRecord:
        """Read a run's folder.

        Raises:
            UserError: It is none.
        """
        lines = folder / "metrics.jsonl"
        if not lines.is_file():
            raise UserError(f"no run in {str(folder)!r}: there is no metrics.jsonl")
        files = [path for path in (folder / "evaluations").glob("*.json") if path.stem.isdecimal()]
        try:
            evaluations = [
                {"timesteps": int(path.stem), **json.loads(path.read_text())}
                for path in sorted(files, key=lambda path: int(path.stem))
            ]
            metrics = [json.loads(line) for line in lines.read_text().splitlines()]
            summary = folder / "summary.json"
            ended = json.loads(summary.read_text()) if summary.is_file() else {}
            recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
        except (ValueError, OSError, yaml.YAMLError) as error:
            raise UserError(f"the run in {str(folder)!r} cannot be read: {error}") from None
        return cls(folder, folder.resolve().name, metrics, evaluations, recipe, ended)

    def curve(self, name: str) -> Curve | None:
        """One metric's numbers, where there are any."""
        rows = [row for row in self.metrics if isinstance(row.get(name), int | float)]
        if not rows:
            return None
        values = [float(row[name]) for row in rows]
        words = [row["timesteps"] for row in rows]
        clock = self._clock()
        hours = [clock[id(row)] for row in rows] if clock else []
        return Curve(name, words, hours, values, smoothed(values))

    def _clock(self) -> dict[int, float]:
        """Hours of rollouts and updates by each of the metrics' rows."""
        if not all("rollout_s" in row and "update_s" in row for row in self.metrics):
            return {}
        hours, clock = 0.0, {}
        for row in self.metrics:
            hours += (row["rollout_s"] + row["update_s"]) / 3600
            clock[id(row)] = hours
        return clock

    def curves(self, names: Sequence[str]) -> list[Curve]:
        """The curves of some metrics; ``*_rate`` are those of the stages."""
        keys = dict.fromkeys(key for row in self.metrics for key in row)
        stages = [key for key in keys if key.endswith("_rate") and key not in NO_STAGES]
        wanted = [key for name in names for key in (stages if name == "*_rate" else [name])]
        return [curve for name in wanted if (curve := self.curve(name)) is not None]

    def times(self) -> dict[str, float]:
        """Minutes of the trainer, and of a process of the world, by what they went into."""
        shares = SHARES | WORLD_SHARES
        spent = dict.fromkeys((*SHARES, "learning", *WORLD_SHARES), 0.0)
        for row in self.metrics:
            for label, key in shares.items():
                spent[label] += row.get("rollout_s", 0.0) * row.get(key, 0.0) / 60
            spent["learning"] += row.get("update_s", 0.0) / 60
        return {label: minutes for label, minutes in spent.items() if minutes > 0}


def smoothed(values: Sequence[float]) -> list[float]:
    """Exponentially, without leaning towards the first number."""
    mean, weight, result = 0.0, 0.0, []
    for value in values:
        mean = SMOOTHING * mean + (1 - SMOOTHING) * value
        weight = SMOOTHING * weight + 1 - SMOOTHING
        result.append(mean / weight)
    return result


def differing_settings(records: Sequence[RunRecord]) -> dict[str, list[Any]]:
    """The recipes' keys in which runs differ, but for their names, with each one's value."""
    keys = dict.fromkeys(key for record in records for key in record.recipe)
    found = {key: [record.recipe.get(key) for record in records] for key in keys}
    own = ("run_name", "output_dir", "overwrite", "resume_from")
    return {
        key: values
        for key, values in found.items()
        if key not in own and any(value != values[0] for value in values)
    }
