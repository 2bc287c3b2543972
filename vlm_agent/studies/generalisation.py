"""``vlm-agent generalisation``: what policies do in scenes that are not those of their training."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_agent.common.statistics import mcnemar
from vlm_agent.evaluation.splits import find_suite
from vlm_agent.evaluation.suite import read_rows
from vlm_agent.studies.stages import Stage, hardware, read_hours, run_stages
from vlm_agent.studies.study import SEEDS, Study

IMITATION, MORE, PPO, GRPO = "imitation", "imitation, more demonstrations", "PPO", "GRPO"
NARROW = "one scene"
"""The policy that has seen one scene alone: the shipped warm start."""

FLOWS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("can", "general_can_start", {PPO: "general_can", GRPO: "general_can_group"}),
    ("pick", "general_pick_start", {PPO: "general_pick"}),
    ("scaled", "scaled_start", {PPO: "scaled"}),
)
"""What is played, the recipe of the warm start, and those of what goes on from it, per seed."""

MEMORY = (1, 2, 4)
"""How many of the last pictures and words are compared."""

FEWER = ("--num_demo_episodes", "400")
LESS = (
    *("--sft_epochs", "3", "--dagger_rounds", "1", "--dagger_words", "8192"),
    *("--dagger_replay", "0.3"),
)
"""How these policies learn: all of them the same, and less than ``general_pick_start``."""

KEPT = (
    *("suite", "split", "group", "is_mistake", "seen", "mode", "episodes", "successes"),
    *("success_rate", "ci95_low", "ci95_high", "mean_length", "solved"),
)
"""What is taken over of a suite's rows."""


@dataclass(frozen=True)
class Candidate:
    """A policy that plays a suite.

    Attributes:
        label: The name of its rows.
        policy: As ``vlm-agent suite --policy`` takes it.
        seed: Of its training.
        maker: The stage that makes it; ``None`` for one that ships.
        suite: What it plays.
        splits: Those of its splits; all by default.
        table: Where its rows stand, if not with the others of its suite.
    """

    label: str
    policy: str
    seed: int
    maker: str | None
    suite: str
    splits: tuple[str, ...] = ()
    table: str = ""

    @property
    def about(self) -> dict[str, Any]:
        """What its rows have in common."""
        suite = self.table or self.suite
        return {"policy": self.label, "train_seed": self.seed, "suite": suite}


class Generalisation(Study):
    """The stages: imitation, what it is compared with, and the suites of all of them."""

    def training(self) -> Iterator[Stage]:
        """Demonstrations, imitation, PPO and GRPO from it, and imitation of more."""
        for _, start, learners in FLOWS:
            yield self._demos(start)
            yield self._sft(start, shown=start)
            for recipe in learners.values():
                for seed in SEEDS:
                    yield self._ppo(recipe, seed, start=start)
        yield self._demos("general_can_more")
        yield self._sft("general_can_more", "general_can_more", start="general_can_start")
        for pictures in MEMORY:
            name, seen = f"memory_{pictures}", (*FEWER, "--history", str(pictures))
            yield self._demos("general_pick_start", name, seen)
            yield self._sft("general_pick_start", name, name=name, change=(*seen, *LESS))

    def candidates(self) -> Iterator[Candidate]:
        """Who plays, in the order of the rows."""
        yield Candidate(NARROW, "warm_start", 0, None, "can")
        more = "warm start: general_can_more"
        yield Candidate(MORE, self._final("general_can_more"), 0, more, "can")
        for suite, start, learners in FLOWS:
            yield Candidate(IMITATION, self._final(start), 0, f"warm start: {start}", suite)
            for label, recipe in learners.items():
                for seed in SEEDS:
                    name = f"{recipe}_{seed}"
                    yield Candidate(label, self._best(name), seed, f"PPO: {name}", suite)
        for pictures in MEMORY:
            yield Candidate(
                f"history {pictures}",
                self._final(f"memory_{pictures}"),
                0,
                f"warm start: memory_{pictures}",
                "pick",
                ("in distribution", "other sentences"),
                "memory",
            )

    def suites(self) -> Iterator[Stage]:
        """One stage per candidate; a stopped one goes on, split by split."""
        for one in self.candidates():
            path = self.rows_file(one)
            chart = path.with_suffix(".png")  # it is drawn when all splits are there
            command = ["vlm_agent.cli", "suite", "--policy", one.policy]
            command += ["--config", f"recipes/suites/{one.suite}.yaml"]
            command += ["--json", str(path), "--chart", str(chart)]
            if one.splits:
                command += ["--splits", *one.splits]
            needs = (one.maker,) if one.maker else ()
            yield Stage(f"suite: {path.stem}", tuple(command), chart, needs)

    def rows_file(self, one: Candidate) -> Path:
        """Where a candidate's suite writes its rows."""
        label = one.label.replace(",", "").replace(" ", "_")
        return self.folder / "suites" / f"{one.about['suite']}_{label}_{one.seed}.json"


def run_generalisation(folder: Path, output: Path, only: Sequence[str] = ()) -> None:
    """Run what has not been run, stage by stage; write what came of it, however far it came.

    Args:
        folder: Where everything is made.
        output: The JSON file.
        only: Names of the stages to run.
    """
    study = Generalisation(folder)
    try:
        run_stages([*study.training(), *study.suites()], folder, only)
    finally:
        write_generalisation(study, output)


def write_generalisation(study: Generalisation, output: Path) -> dict[str, Any]:
    """Put what has been measured into one JSON file.

    What an earlier version of the file says of a candidate that this folder has no rows of stays.
    """
    earlier = json.loads(output.read_text()) if output.is_file() else {}
    rows: list[dict[str, Any]] = []
    for one in study.candidates():
        splits = find_suite(one.suite).splits
        measured = [row for row in read_rows(study.rows_file(one)) if row["split"] in splits]
        if measured:
            rows += [{**{key: row[key] for key in KEPT}, **one.about} for row in measured]
        else:
            known = earlier.get("rows", [])
            rows += [row for row in known if one.about.items() <= row.items()]
    hours = earlier.get("hours", {}) | {k: round(h, 3) for k, h in read_hours(study.folder).items()}
    written = {
        "hardware": hardware(),
        "hours": {
            stage.name: hours[stage.name]
            for stage in (*study.training(), *study.suites())
            if stage.name in hours
        },
        "rows": rows,
        "comparisons": list(comparisons(rows)),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")
    return written


PAIRS = ((PPO, IMITATION), (PPO, MORE), (GRPO, IMITATION), (PPO, GRPO), (MORE, IMITATION))
"""What is compared with what, on the same episodes."""


def comparisons(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each pair, seed by seed, over all splits in which success was asked for, by McNemar's test.

    A seed of a policy is compared with the same seed of the other, or with its only one. ``gain``
    is the mean over the splits.
    """
    for suite in dict.fromkeys(row["suite"] for row in rows):
        asked = [row for row in rows if row["suite"] == suite and not row["is_mistake"]]
        for one in _pairs(asked):
            yield {"suite": suite, **one}


def _pairs(asked: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for policy, over in PAIRS:
        seeds = {row["train_seed"] for row in asked if row["policy"] == over}
        for seed in sorted({row["train_seed"] for row in asked if row["policy"] == policy}):
            against = seed if seed in seeds or len(seeds) != 1 else min(seeds)
            first = {
                _place(r): r for r in asked if (r["policy"], r["train_seed"]) == (over, against)
            }
            mine = [row for row in asked if (row["policy"], row["train_seed"]) == (policy, seed)]
            pairs = [(first[_place(row)], row) for row in mine if _place(row) in first]
            if pairs:
                yield {"policy": policy, "over": over, "train_seed": seed, **_compared(pairs)}


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    """Which episodes a row is about."""
    return row["split"], row["episodes"], row["mode"]


def _compared(pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    solved = [[bit == "1" for pair in pairs for bit in pair[which]["solved"]] for which in (0, 1)]
    only_first, only_second, p = mcnemar(*solved)
    gains = [after["success_rate"] - before["success_rate"] for before, after in pairs]
    return {
        "splits": len(pairs),
        "gain": sum(gains) / len(gains),
        "only_first": only_first,
        "only_this": only_second,
        "p_value": p,
    }
