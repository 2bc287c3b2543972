"""``RunFolders``: where a run writes, what is there already, and what may be replaced."""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path

from vlm_agent.common.errors import UserError
from vlm_agent.common.locks import hold, is_free, release
from vlm_agent.common.whole import cannot_write, hidden, remove, write_whole
from vlm_agent.policy.artifact import check_saved
from vlm_agent.recipe.recipe import Recipe

OPTIMIZER_FILE = "optimizer.safetensors"
PARTIAL = ".partial"
"""What the name of a file or a folder ends in that is being written or deleted."""

logger = logging.getLogger(__name__)


class RunFolders:
    """Where a run writes: ``runs/{run_name}/`` and ``checkpoints/{run_name}_*/``."""

    def __init__(self, recipe: Recipe) -> None:
        self.name = recipe.run.run_name
        self.run = Path(recipe.run.output_dir) / "runs" / self.name
        self.checkpoints = Path(recipe.run.output_dir) / "checkpoints"
        self.metrics = self.run / "metrics.jsonl"
        self.summary = self.run / "summary.json"
        self.curves = self.run / "curves.png"
        self.report = self.run / "report.html"
        self.before = self.run / "before.json"
        self.after = self.run / "after.json"
        self.recipe = self.run / "recipe.yaml"
        self.best = self.checkpoints / f"{self.name}_best"
        self._lock = self.run.with_name(f".{self.name}.lock")  # outside: a run may be overwritten
        self.final = self.checkpoints / f"{self.name}_final"

    def evaluation(self, timesteps: int) -> Path:
        """All episodes of the evaluation after so many timesteps."""
        return self.run / "evaluations" / f"{timesteps}.json"

    def step(self, timesteps: int) -> Path:
        """The checkpoint after so many timesteps."""
        return self.checkpoints / f"{self.name}_step{timesteps}"

    def steps(self, after: int = -1) -> list[Path]:
        """The checkpoints that exist of more than so many timesteps, oldest first."""
        pattern = re.compile(rf"{re.escape(self.name)}_step(\d+)")
        matches = [(pattern.fullmatch(p.name), p) for p in self.checkpoints.glob("*_step*")]
        found = sorted((int(match[1]), path) for match, path in matches if match)
        return [path for timesteps, path in found if timesteps > after]

    def keep_latest(self, count: int) -> None:
        """Delete all checkpoints but the newest ones, the oldest first."""
        for checkpoint in self.steps()[:-count]:
            delete_checkpoint(checkpoint)

    def forget_after(self, timesteps: int) -> None:
        """Delete what a run left that went on from here, so that it can go on in another way."""
        # The newest first: what is left when this is interrupted is a run that ended earlier.
        for checkpoint in reversed(self.steps(after=timesteps)):
            delete_checkpoint(checkpoint)
        for path in self.evaluation(0).parent.glob("*.json"):
            if path.stem.isdecimal() and int(path.stem) > timesteps:
                path.unlink()

    def contents(self) -> dict[str, Path]:
        """What a finished run leaves, with a label for each."""
        return {
            "metrics": self.metrics,
            "curves": self.curves,
            "report": self.report,
            "film before": self.before.with_suffix(".mp4"),
            "film after": self.after.with_suffix(".mp4"),
            "summary": self.summary,
            "recipe": self.recipe,
            "wandb": self.run / "wandb",
            "last policy": (self.steps() or [self.step(0)])[-1],
            "best policy": self.best,
            "final policy": self.final,
        }

    def check_free(self, hold_it: bool = False) -> None:
        """Refuse a run that another process is at, whatever is to be done with it.

        Args:
            hold_it: Keep others away until this process ends.

        Raises:
            UserError: One is.
        """
        taken = f"run_name: another process is at the run {self.name!r} ({self.run}) now"
        if hold_it:
            hold(self._lock, taken)
        elif not is_free(self._lock):
            raise UserError(taken)

    def release(self) -> None:
        """Let others at the run."""
        release(self._lock)

    def check_new(self, recipe: Recipe) -> None:
        """Refuse to write over an earlier run.

        Args:
            recipe: The run that is to begin.

        Raises:
            UserError: A run of this name exists, and the recipe neither resumes nor overwrites it.
        """
        for name in (recipe.model.model_name_or_path, recipe.run.init_from or ""):
            base = Path(name).resolve()
            if recipe.run.overwrite and base in [path.resolve() for path in self._all()]:
                raise UserError(f"overwrite: this run would delete its own model {str(base)!r}")
        fresh = recipe.run.resume_from is None and not recipe.run.overwrite
        if fresh and any(path.exists() for path in self._all()):
            raise UserError(
                f"run_name: there is a run {self.name!r} already ({self.run}); choose another "
                "name, or give --resume_from latest or --overwrite true"
            )

    def prepare(self, recipe: Recipe) -> None:
        """Make the run's folder, with the resolved recipe in it, in place of an overwritten one.

        Raises:
            UserError: It cannot be written.
        """
        if recipe.run.resume_from is None:
            for path in self._all():
                remove(path, ignore_errors=True)
        # What a process that was killed was about to write, or to delete.
        for place, name in ((self.checkpoints, f".{self.name}_*"), (self.run, ".*")):
            for path in place.glob(f"{name}{PARTIAL}"):
                remove(path, ignore_errors=True)
        try:
            self.run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.run, error) from None
        write_whole(self.recipe, recipe.to_yaml())

    def _all(self) -> list[Path]:
        return [self.run, self.best, self.final, *self.steps()]

    def resume_folder(self, recipe: Recipe) -> Path | None:
        """The checkpoint to resume from, if the recipe names one.

        Raises:
            UserError: There is none.
        """
        wanted = recipe.run.resume_from
        if wanted is None:
            return None
        if wanted == "latest":
            return self._latest_whole()
        if Path(wanted).resolve() not in [path.resolve() for path in self.steps()]:
            raise UserError(f"resume_from: {wanted!r} is no checkpoint of the run {self.name!r}")
        self._check(Path(wanted))
        return Path(wanted)

    def _latest_whole(self) -> Path:
        """The newest checkpoint that is what was written; what is passed over is said."""
        passed_over = []
        for path in reversed(self.steps()):
            try:
                self._check(path)
            except UserError as error:
                if "is not whole" not in str(error):
                    raise  # it may be whole, and nobody can tell now
                passed_over.append(str(error).removeprefix("resume_from: "))
                continue
            for problem in passed_over:
                logger.warning("resume_from: passed over: %s", problem)
            return path
        place = f"{self.checkpoints / self.name}_step*"
        if passed_over:
            raise UserError(f"resume_from: no checkpoint {place} is whole: {passed_over[0]}")
        raise UserError(f"resume_from: there is no checkpoint {place}")

    @staticmethod
    def _check(folder: Path) -> None:
        """Refuse a checkpoint from which one cannot go on."""
        try:
            check_saved(folder)
        except UserError as error:
            raise UserError(f"resume_from: {error}") from None
        if not (folder / OPTIMIZER_FILE).is_file():
            raise UserError(
                f"resume_from: no checkpoint to go on from in {str(folder)!r} (no "
                f"{OPTIMIZER_FILE}; one with an optimizer.pt is of an earlier version: begin from "
                "its policy by init_from)"
            )


def settled(recipe: Recipe) -> Recipe:
    """A recipe in which ``resume_from: auto`` is what there is: 'latest', or a beginning.

    What was cut off before its first checkpoint begins anew.
    """
    if recipe.run.resume_from != "auto":
        return recipe
    folders = RunFolders(recipe)
    run = dataclasses.replace(
        recipe.run,
        resume_from="latest" if folders.steps() else None,
        overwrite=recipe.run.overwrite or not (folders.final.exists() or folders.summary.exists()),
    )
    return dataclasses.replace(recipe, run=run)


def delete_checkpoint(folder: Path) -> None:
    """Delete one, so that a part of it is never taken for the whole."""
    partial = hidden(folder)
    remove(partial)
    remove(folder.rename(partial))
