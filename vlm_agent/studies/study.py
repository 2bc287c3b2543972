"""``Study``: what is trained and evaluated for the table of docs/results.md, stage by stage.

Each stage is a command that anyone can type. What is there already is not made again, so a study
that was stopped goes on where it was; deleting what a stage made has it made again. What another
recipe made, or was made from what another one made, has to be deleted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vlm_agent.studies.stages import Stage, resumable
from vlm_agent.world.config import EnvConfig

TEST_EPISODES = 200
ABLATION_EPISODES = 100
SEEDS = (0, 1, 2)
STARTER, WARM = "starter policy", "warm start"
CAN, LIFT = "PickPlaceCan", "Lift"
HORIZONS = {CAN: 120, LIFT: 60}

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
        yield Row("scripted expert", "expert")
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

    def _demos(self, recipe: str, name: str | None = None, change: Sequence[str] = ()) -> Stage:
        """Demonstrations of a recipe's name, or of another one's with a changed recipe."""
        name = name or recipe
        folder = self._demonstrations(name)
        command = ["vlm_agent.cli", "demos", *self._config(recipe)]
        command += ["--demonstrations", str(folder), *change]
        makes = folder / "README.md"
        return Stage(
            f"demonstrations: {name}",
            tuple(command),
            makes,
            settings=DEMO_SETTINGS,
            folder=folder,
        )

    def _sft(
        self,
        recipe: str,
        shown: str,
        start: str | None = None,
        name: str | None = None,
        change: Sequence[str] = (),
    ) -> Stage:
        """A warm start from the demonstrations named ``shown`` and the policy named ``start``."""
        command = ["vlm_agent.sft", *self._config(recipe)]
        command += ["--demonstrations", str(self._demonstrations(shown))]
        if name is not None:
            command += ["--run_name", name]
        needs = [f"demonstrations: {shown}"]
        if start is not None:
            command += ["--init_from", self._final(start)]
            needs.append(f"warm start: {start}")
        name = name or recipe
        makes = Path(self._final(name))
        stage = Stage(f"warm start: {name}", (*command, *change), makes, tuple(needs))
        return resumable(stage, name)

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
        summary = self.folder / "runs" / name / "summary.json"
        stage = Stage(f"PPO: {name}", tuple(command), summary, tuple(needs))
        return resumable(stage, name)

    def _config(self, recipe: str) -> tuple[str, ...]:
        return ("--config", f"recipes/{recipe}.yaml", "--output_dir", str(self.folder))
