"""What a run records: ``metrics.jsonl`` always, and accelerate's trackers as the recipe says."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL import Image

from vlm_agent.common.errors import UserError
from vlm_agent.common.whole import cannot_write, write_whole
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.runs.callbacks import Callback
from vlm_agent.runs.folders import RunFolders
from vlm_agent.runs.trackers.guarded import GuardedTracker

if TYPE_CHECKING:
    from vlm_agent.runs.trainer import Trainer


class MetricsFile:
    """``metrics.jsonl``: one object per update, in the main process.

    Args:
        path: The file.
        is_main_process: Whether this process writes it.
    """

    def __init__(self, path: Path, is_main_process: bool = True) -> None:
        self.path = path
        self.is_main_process = is_main_process

    def keep_until(self, timesteps: int) -> None:
        """Forget what was recorded later than that; used when a run is resumed."""
        self.keep(lambda row: row["timesteps"] <= timesteps)

    def keep(self, condition: Callable[[dict[str, Any]], bool]) -> None:
        """Forget the updates of which a condition does not hold."""
        if self.is_main_process:
            kept = [row for row in self._rows() if condition(row)]
            write_whole(self.path, "".join(_line(row) for row in kept))

    def _rows(self) -> list[dict[str, Any]]:
        """What was recorded; a last line that a killed run has left half is none."""
        *lines, last = self.path.read_text().split("\n") if self.path.is_file() else [""]
        rows = [json.loads(line) for line in lines]
        with contextlib.suppress(ValueError):
            rows.append(json.loads(last))
        return rows

    def write(self, metrics: dict[str, Any]) -> None:
        """Record one update; a callback may have added numbers of NumPy or torch.

        Raises:
            UserError: The file cannot be written.
        """
        if self.is_main_process:
            try:
                with self.path.open("a") as file:
                    file.write(_line(metrics))
            except OSError as error:
                raise cannot_write(self.path, error) from error


def _line(metrics: dict[str, Any]) -> str:
    """One line of JSON, which has no word for what is not finite: that is null."""
    plain = json.loads(json.dumps(metrics, default=float), parse_constant=lambda _: None)
    return json.dumps(plain, allow_nan=False) + "\n"


def flat(values: dict[str, Any]) -> dict[str, float]:
    """The numbers among values, as trackers take them: nested ones as ``outer/inner``."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= {f"{key}/{inner}": v for inner, v in flat(value).items()}
        elif isinstance(value, int | float):
            found[key] = value
        elif getattr(value, "shape", None) == ():  # a scalar of NumPy or torch
            found[key] = float(value)
    return found


NO_CURVES = ("seed", "greedy", "timesteps", "num_eval_episodes")
"""What an evaluation says that is the same each time."""


class Recorder(Callback):
    """Writes each update to ``metrics.jsonl`` and, with the evaluations, to the trackers."""

    def on_update_end(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """Record the update."""
        trainer.run.metrics.write(metrics)
        trainer.accelerator.log(flat(metrics), step=metrics["timesteps"])

    def on_evaluate(self, trainer: Trainer, evaluation: Any) -> None:
        """Record the evaluation."""
        rates = {k: v for k, v in trainer.evaluations[-1].items() if k not in NO_CURVES}
        trainer.accelerator.log(flat({"eval": rates}), step=trainer.timesteps)


def show_outputs(
    accelerator: Accelerator, recipe: Recipe, folders: RunFolders, evaluations: Sequence[Any]
) -> None:
    """Give trackers that can show them the prompt, the evaluations, films and curves.

    Args:
        accelerator: Has the trackers.
        recipe: The run.
        folders: Where its outputs lie.
        evaluations: The rates of each evaluation, oldest first.
    """
    told = {"wandb": _show_to_wandb, "tensorboard": _show_to_tensorboard}
    for tracker in accelerator.trackers:
        if isinstance(tracker, GuardedTracker) and tracker.name in told:
            tracker.tell(partial(told[tracker.name], recipe, folders, evaluations))


def _show_to_wandb(
    recipe: Recipe, folders: RunFolders, evaluations: Sequence[Any], made: Any
) -> None:
    import wandb  # only here: slow to come

    shown: dict[str, Any] = {"prompt": wandb.Html(f"<pre>{escape(recipe.template.source)}</pre>")}
    if evaluations:
        keys = [key for key, value in evaluations[0].items() if not isinstance(value, dict)]
        rows = [[one.get(key) for key in keys] for one in evaluations]
        shown["evaluations"] = wandb.Table(columns=keys, data=rows)
    for name in ("before", "after"):
        if (film := folders.run / f"{name}.mp4").is_file():
            shown[f"film {name}"] = wandb.Video(str(film), format="mp4")
    if folders.curves.is_file():
        shown["curves"] = wandb.Image(str(folders.curves))
    made.tracker.log(shown)


def _show_to_tensorboard(
    recipe: Recipe, folders: RunFolders, evaluations: Sequence[Any], made: Any
) -> None:
    writer = made.tracker
    writer.add_text("prompt", f"```\n{recipe.template.source}\n```")
    if evaluations:
        keys = [key for key, value in evaluations[0].items() if not isinstance(value, dict)]
        lines = [
            keys,
            ["---"] * len(keys),
            *([one.get(key) for key in keys] for one in evaluations),
        ]
        table = "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
        writer.add_text("evaluations", table)
    if folders.curves.is_file():
        picture = np.asarray(Image.open(folders.curves).convert("RGB"))
        writer.add_image("curves", picture, dataformats="HWC")


def make_trackers(recipe: Recipe) -> list[Any]:
    """The recipe's trackers: names that accelerate knows, or trackers of the user's own.

    Raises:
        UserError: One is not installed, or there is no such class.
    """
    return [_make_tracker(name, recipe) for name in recipe.tracking.report_to if name != "none"]


def _make_tracker(name: str, recipe: Recipe) -> Any:
    if ":" not in name:
        if find_spec(name) is None:
            raise UserError(f"report_to: {name} is not installed; pip install {name}, or none")
        return name
    module, _, attribute = name.partition(":")
    try:
        tracker = getattr(import_module(module), attribute, None)
    except ImportError as error:
        raise UserError(
            f"report_to: {name!r}: {error}; is the folder of {module!r} on PYTHONPATH?"
        ) from None
    if tracker is None:
        raise UserError(f"report_to: {name!r}: the module {module!r} has no {attribute!r}")
    if not (isinstance(tracker, type) and issubclass(tracker, GeneralTracker)):
        raise UserError(f"report_to: {name!r} is no subclass of accelerate.tracking.GeneralTracker")
    # As accelerate makes its own; a tracker that writes asks for the folder.
    needs_folder = getattr(tracker, "requires_logging_directory", False)
    folder = [str(RunFolders(recipe).run)] if needs_folder else []
    try:
        return tracker(recipe.run.run_name, *folder)
    except (TypeError, NotImplementedError) as error:  # accelerate's word for lacking attributes
        raise UserError(f"report_to: {name!r} cannot be made: {error}") from None


def start_trackers(
    accelerator: Accelerator, recipe: Recipe, run_folder: Path, wandb_seconds: float = 5.0
) -> None:
    """Start the accelerator's trackers, unless somebody has; wandb logs offline if it must.

    None of them can stop the run, see :class:`GuardedTracker`.

    Args:
        accelerator: Has the trackers, as :func:`make_trackers` makes them.
        recipe: What they are told of the run.
        run_folder: Where wandb writes.
        wandb_seconds: How long wandb may try to go online, all in all; less than a tracker is
            waited for, so that it can go offline then.

    Raises:
        UserError: wandb's own settings are wrong.
    """
    if not accelerator.log_with or accelerator.trackers:
        return
    settings = {
        key: value if isinstance(value, int | float | str) else str(value)
        for key, value in recipe.to_dict().items()
    }
    accelerator.log_with = [
        GuardedTracker(*_named(tracker, recipe, run_folder, accelerator.logging_dir, wandb_seconds))
        for tracker in accelerator.log_with
    ]
    accelerator.init_trackers(recipe.tracking.project_name, settings)


def _named(
    tracker: Any, recipe: Recipe, run_folder: Path, logging_dir: str | None, wandb_seconds: float
) -> tuple[str, Callable[[], GeneralTracker]]:
    """The name of one of an accelerator's trackers, and what makes it."""
    if isinstance(tracker, GeneralTracker):
        return tracker.name, lambda: tracker
    name, project = str(tracker), recipe.tracking.project_name
    if name == "wandb":

        def make() -> GeneralTracker:
            from vlm_agent.runs.trackers.wandb_tracker import (
                WandbOrOffline,  # only here: slow to come
            )

            return WandbOrOffline(recipe, run_folder, wandb_seconds)

        return name, make
    kind: Any = LOGGER_TYPE_TO_CLASS[name]
    folder = [logging_dir] if kind.requires_logging_directory else []
    # trackio's class alone would name a run by itself.
    named = {"name": recipe.run.run_name} if name == "trackio" else {}
    return name, lambda: kind(project, *folder, **named)
