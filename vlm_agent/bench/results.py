"""``vlm-agent results``: from nothing to the README's table, stage by stage.

Each stage is a command that anyone can type. What is there already is not made again, so a study
that was stopped goes on where it was; deleting what a stage made has it made again. What another
recipe made, or was made from what another one made, has to be deleted.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlm_agent.bench.stages import Stage, hardware, read_hours, run_stages
from vlm_agent.learning.checkpoints import PARTIAL
from vlm_agent.learning.comparison import compare
from vlm_agent.learning.evaluation import read_result
from vlm_agent.robot.config import EnvConfig

TEST_EPISODES = 200
ABLATION_EPISODES = 100
SEEDS = (0, 1, 2)
STARTER, WARM = "starter policy", "warm start"
CAN, LIFT = "PickPlaceCan", "Lift"
HORIZONS = {CAN: 120, LIFT: 60}
ROW_NAMES = ("policy", "task", "train_seed", "mode", "change")
COMPARISON_NAMES = ("policy", "task", "train_seed", "mode")

DEMO_SETTINGS = frozenset(field.name for field in dataclasses.fields(EnvConfig)) | {
    "seed",
    "action_words",
    "demo_noise",
    "num_demo_episodes",
}
"""What decides demonstrations, of all that their recipe says."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the results: who is evaluated, and how.

    Attributes:
        label: The name of the row.
        policy: What ``vlm-agent eval --policy`` takes.
        task: The task.
        mode: ``greedy`` or ``sampled``.
        train_seed: Of the training run; ``None`` where nothing was trained.
        change: Options that change the scene, or what the policy is told.
        episodes: How many test episodes.
    """

    label: str
    policy: str
    task: str = CAN
    mode: str = "greedy"
    train_seed: int | None = None
    change: tuple[str, ...] = ()
    episodes: int = TEST_EPISODES

    @property
    def file(self) -> str:
        """The name of the evaluation's file."""
        parts = (self.label, self.task, self.mode, str(self.train_seed), *self.change)
        return "_".join(part.strip("-").replace(" ", "-") for part in parts) + ".json"


ROBUSTNESS: Mapping[str, tuple[str, ...]] = {
    "controller at 500 Hz": ("--controller_hz", "500"),
    "camera tilted by 2°": ("--camera_tilt", "2"),
    "camera shifted by 1 cm": ("--camera_shift", "0.01"),
    "blue can": ("--object_colour", "blue"),
    "light at 60 %": ("--light", "0.6"),
}
ABLATIONS: Mapping[str, tuple[str, ...]] = {
    "prompt alone (a grey picture)": ("--ablate", "image"),
    "picture alone (constant facts)": ("--ablate", "prompt"),
}


class Study:
    """The stages and the rows.

    Args:
        folder: Where everything is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def training(self) -> Iterator[Stage]:
        """Demonstrations, warm starts, PPO."""
        yield self._demos("warm_start")
        yield self._sft("starter", shown="warm_start")
        yield self._sft("warm_start", shown="warm_start")
        for seed in SEEDS:
            yield self._ppo("full_tiny", seed, start="starter")
        yield self._ppo("best", start="warm_start")
        yield self._demos("lift_warm_start")
        yield self._sft("lift_warm_start", shown="lift_warm_start")
        yield self._ppo("lift_best", start="lift_warm_start")
        yield self._ppo("lift")
        yield self._ppo("lift_curriculum", shown="lift_warm_start")
        yield self._ppo("can_curriculum", shown="warm_start")

    def rows(self) -> Iterator[Row]:
        """Everything that is evaluated."""
        starter, warm = self._final("starter"), self._final("warm_start")
        best = self._best("best_0")
        yield Row("random words", "random", mode="sampled")
        yield Row("scripted expert", "oracle")
        yield Row("untrained model", "tiny")
        for mode in ("greedy", "sampled"):
            yield Row(STARTER, starter, mode=mode, train_seed=0)
            for seed in SEEDS:
                policy = self._best(f"full_tiny_{seed}")
                yield Row("PPO from the starter policy", policy, mode=mode, train_seed=seed)
            yield Row(WARM, warm, mode=mode, train_seed=0)
            yield Row("PPO from the warm start", best, mode=mode, train_seed=0)
        yield Row(WARM, self._final("lift_warm_start"), LIFT, train_seed=0)
        yield Row("PPO from the warm start", self._best("lift_best_0"), LIFT, train_seed=0)
        yield Row("PPO from random weights", self._best("lift_0"), LIFT, train_seed=0)
        policy = self._best("lift_curriculum_0")
        yield Row("PPO with the reverse curriculum", policy, LIFT, train_seed=0)
        policy = self._best("can_curriculum_0")
        yield Row("PPO with the reverse curriculum", policy, CAN, train_seed=0)
        for change in (*ROBUSTNESS.values(), *ABLATIONS.values()):
            label = "PPO from the warm start"
            yield Row(label, best, CAN, "greedy", 0, change, ABLATION_EPISODES)

    def evaluations(self) -> Iterator[Stage]:
        """One stage per row."""
        makers = dict(self._policies())
        for row in self.rows():
            path = self.folder / "evaluations" / row.file
            command = ["vlm_agent.cli", "eval", "--policy", row.policy, "--split", "test"]
            command += ["--num_eval_episodes", str(row.episodes), "--num_envs", "16"]
            command += ["--greedy", str(row.mode == "greedy").lower(), *row.change]
            # Training may have had a shorter horizon; random words have no scene of their own.
            command += ["--task", row.task, "--horizon", str(HORIZONS[row.task])]
            command += ["--json", str(path)]
            needs = (makers[row.policy],) if row.policy in makers else ()
            yield Stage(f"evaluation: {row.file}", tuple(command), path, needs)

    def _policies(self) -> Iterator[tuple[str, str]]:
        """Each policy that is trained, and the name of the stage that makes it."""
        for stage in self.training():
            kind, _, name = stage.name.partition(": ")
            if kind != "demonstrations":
                yield self._best(name) if kind == "PPO" else self._final(name), stage.name

    def _demonstrations(self, name: str) -> Path:
        return self.folder / "demonstrations" / name

    def _final(self, name: str) -> str:
        return str(self.folder / "checkpoints" / f"{name}_final")

    def _best(self, name: str) -> str:
        return str(self.folder / "checkpoints" / f"{name}_best")

    def _demos(self, recipe: str) -> Stage:
        folder = self._demonstrations(recipe)
        command = ("vlm_agent.cli", "demos", *self._config(recipe), "--demonstrations", str(folder))
        name, makes = f"demonstrations: {recipe}", folder / "README.md"
        return Stage(name, command, makes, settings=DEMO_SETTINGS, folder=folder)

    def _sft(self, recipe: str, shown: str) -> Stage:
        demonstrations = ("--demonstrations", str(self._demonstrations(shown)))
        command = ("vlm_agent.sft", *self._config(recipe), *demonstrations)
        final, needs = Path(self._final(recipe)), (f"demonstrations: {shown}",)
        return Stage(f"warm start: {recipe}", command, final, needs)

    def _ppo(
        self, recipe: str, seed: int = 0, start: str | None = None, shown: str | None = None
    ) -> Stage:
        """PPO from the warm start named ``start``, or with the demonstrations named ``shown``."""
        name, needs = f"{recipe}_{seed}", []
        command = ["vlm_agent.train", *self._config(recipe), "--run_name", name]
        command += ["--seed", str(seed), "--report_to", "none"]
        if start is not None:
            command += ["--init_from", self._final(start)]
            needs.append(f"warm start: {start}")
        if shown is not None:
            command += ["--demonstrations", str(self._demonstrations(shown))]
            needs.append(f"demonstrations: {shown}")
        steps = (self.folder / "checkpoints").glob(f"{name}_step*")
        is_saved = any(path.suffix != PARTIAL for path in steps)
        anew = ("--overwrite", "true")
        return Stage(
            f"PPO: {name}",
            tuple(command),
            makes=self.folder / "runs" / name / "summary.json",
            needs=tuple(needs),
            anew=anew,
            go_on=("--resume_from", "latest") if is_saved else anew,
        )

    def _config(self, recipe: str) -> tuple[str, ...]:
        return ("--config", f"recipes/{recipe}.yaml", "--output_dir", str(self.folder))


def run_study(folder: Path, output: Path) -> None:
    """Run what has not been run, and write the results.

    Args:
        folder: Where everything is made.
        output: The JSON file.
    """
    study = Study(folder)
    run_stages([*study.training(), *study.evaluations()], folder)
    write_results(study, output)


def write_results(study: Study, output: Path) -> None:
    """Put what has been evaluated so far into one JSON file.

    What an earlier version of the file holds of this study, and the folder does not, stays in it,
    so that a part of the results can be made anew without the hours of the others. A comparison
    goes when one of its two rows is another than it was.
    """
    earlier = json.loads(output.read_text()) if output.is_file() else {}
    results = {}
    for row in study.rows():
        path = study.folder / "evaluations" / row.file
        if path.is_file():
            results[row] = read_result(path)
    stages = {stage.name for stage in (*study.training(), *study.evaluations())}
    hours = {name: round(spent, 3) for name, spent in read_hours(study.folder).items()}
    rows = [_row(row, result) for row, result in results.items()]
    comparisons, curves = list(_comparisons(results)), list(_curves(study))
    order = [tuple(_about(row).values()) for row in study.rows()]
    known = [row for row in earlier.get("rows", []) if _key(row, ROW_NAMES) in order]
    held = _still_true(earlier.get("comparisons", []), known, rows)
    runs = [stage.name.removeprefix("PPO: ") for stage in study.training()]
    drawn = [curve for curve in earlier.get("curves", []) if curve["run"] in runs]
    written: dict[str, Any] = {
        "commit": _git("rev-parse", "HEAD"),
        "hardware": hardware(),
        # The quick study may have used the same folder.
        "hours": {k: h for k, h in (earlier.get("hours", {}) | hours).items() if k in stages},
        "seeds": {"train": list(SEEDS), "evaluation": 0},
        "rows": _merged(known, rows, ROW_NAMES),
        "comparisons": _merged(held, comparisons, COMPARISON_NAMES),
        "curves": _merged(drawn, curves, ("run",)),
    }
    for row_of in ("rows", "comparisons"):
        written[row_of].sort(key=lambda row: order.index(_key({"change": "none"} | row, ROW_NAMES)))
    written["curves"].sort(key=lambda curve: runs.index(curve["run"]))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")


def _still_true(
    comparisons: list[dict[str, Any]], known: list[dict[str, Any]], made: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Earlier comparisons of rows that are there and came out as they were, if made again."""
    there = {_key(row, COMPARISON_NAMES) for row in known if row["change"] == "none"}
    there -= {
        _key(row, COMPARISON_NAMES) for row in made if row not in known and row["change"] == "none"
    }
    return [one for one in comparisons if {_key(one, COMPARISON_NAMES), _start_key(one)} <= there]


def _merged(
    earlier: list[dict[str, Any]], made: list[dict[str, Any]], names: tuple[str, ...]
) -> list[dict[str, Any]]:
    """What was made, and what was there under other names."""
    new = {_key(one, names) for one in made}
    return [one for one in earlier if _key(one, names) not in new] + made


def _key(one: Mapping[str, Any], names: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(one[name] for name in names)


def _start_key(comparison: Mapping[str, Any]) -> tuple[Any, ...]:
    """The row that a comparison is with, as :data:`COMPARISON_NAMES` say; starts have seed 0."""
    return _key({**comparison, "policy": comparison["start"], "train_seed": 0}, COMPARISON_NAMES)


def _about(row: Row) -> dict[str, Any]:
    """What a row is known by, under :data:`ROW_NAMES`."""
    changes = {options: name for name, options in {**ROBUSTNESS, **ABLATIONS}.items()}
    change = changes.get(row.change, "none")
    values = (row.label, row.task, row.train_seed, row.mode, change)
    return dict(zip(ROW_NAMES, values, strict=True))


def _row(row: Row, result: dict[str, Any]) -> dict[str, Any]:
    return {
        **_about(row),
        "episodes": result["num_eval_episodes"],
        "success_rate": result["success_rate"],
        "ci95_low": result["ci95_low"],
        "ci95_high": result["ci95_high"],
        "mean_length": result["mean_length"],
    }


def _comparisons(results: Mapping[Row, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """PPO against what it started from, on the same episodes, both greedy.

    Sampled words would not tell: a policy samples at the temperature it was trained at.
    """
    starts = {"PPO from the starter policy": STARTER, "PPO from the warm start": WARM}
    greedy = {row: result for row, result in results.items() if row.mode == "greedy"}
    by_label = {(row.label, row.task): r for row, r in greedy.items() if not row.change}
    for row, result in greedy.items():
        start = by_label.get((starts.get(row.label, ""), row.task))
        if row.change or start is None:
            continue
        against = compare([start, result])[1]
        yield {
            "policy": row.label,
            "task": row.task,
            "start": starts[row.label],
            "train_seed": row.train_seed,
            "mode": row.mode,
            **{key: against[key] for key in ("difference", "only_first", "only_this", "p_value")},
        }


def _curves(study: Study) -> Iterator[dict[str, Any]]:
    """The validation success of each run of PPO over its words."""
    rows = {Path(row.policy).name: row for row in study.rows() if not row.change}
    for stage in study.training():
        if stage.name.startswith("PPO: ") and stage.makes.is_file():
            summary = json.loads(stage.makes.read_text())
            row = rows[f"{summary['run_name']}_best"]
            evaluations = summary["evaluations"]
            keys = ("timesteps", "success_rate", "ci95_low", "ci95_high")
            yield {
                "run": summary["run_name"],
                "policy": row.label,
                "task": row.task,
                "train_seed": row.train_seed,
                "episodes": evaluations[0]["num_eval_episodes"],
                "hours": round(summary["seconds"] / 3600, 3),
                **{key: [evaluation[key] for evaluation in evaluations] for key in keys},
                **_start_reached(stage.makes.parent / "metrics.jsonl"),
            }


def _start_reached(metrics: Path) -> dict[str, float]:
    """With a curriculum: how much of the longest demonstration was left to the policy at last."""
    last = json.loads(metrics.read_text().splitlines()[-1])
    return {key: last[key] for key in ("curriculum_share",) if key in last}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)  # noqa: S607
    return done.stdout.strip()
