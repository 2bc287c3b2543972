"""What a run records: ``metrics.jsonl`` always, and accelerate's trackers as the recipe says."""

from __future__ import annotations

import json
import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from requests.utils import get_netrc_auth

from vlm_agent.common.errors import UserError
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.runs.callbacks import Callback

if TYPE_CHECKING:
    from vlm_agent.runs.trainer import Trainer

WANDB_URL = "https://api.wandb.ai"


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
        if self.is_main_process:
            lines = self.path.read_text().splitlines() if self.path.is_file() else []
            kept = [line for line in lines if json.loads(line)["timesteps"] <= timesteps]
            self.path.write_text("".join(line + "\n" for line in kept))

    def write(self, metrics: dict[str, Any]) -> None:
        """Record one update."""
        if self.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps(metrics) + "\n")


def flat(values: dict[str, Any]) -> dict[str, float]:
    """The numbers among values, as trackers take them: nested ones as ``outer/inner``."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= {f"{key}/{inner}": v for inner, v in flat(value).items()}
        elif isinstance(value, int | float):
            found[key] = value
    return found


class Recorder(Callback):
    """Writes each update to ``metrics.jsonl`` and, with the evaluations, to the trackers."""

    def on_update_end(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """Record the update."""
        trainer.run.metrics.write(metrics)
        trainer.accelerator.log(flat(metrics), step=metrics["timesteps"])

    def on_evaluate(self, trainer: Trainer, evaluation: Any) -> None:
        """Record the evaluation."""
        trainer.accelerator.log(flat({"eval": trainer.evaluations[-1]}), step=trainer.timesteps)


def make_trackers(recipe: Recipe) -> list[Any]:
    """The recipe's trackers: names that accelerate knows, or trackers of the user's own.

    Raises:
        UserError: One is not installed, or there is no such class.
    """
    return [_make_tracker(name, recipe) for name in recipe.tracking.report_to if name != "none"]


def _make_tracker(name: str, recipe: Recipe) -> Any:
    if ":" not in name:
        if find_spec(name) is None:
            raise UserError(
                f"report_to: {name} is not installed; pip install 'vlm-agent[{name}]', or none"
            )
        return name
    module, _, attribute = name.partition(":")
    try:
        made = getattr(import_module(module), attribute)(recipe.run.run_name)
    except (ImportError, AttributeError, TypeError) as error:
        raise UserError(f"report_to: {name!r}: {error}") from None
    if not isinstance(made, GeneralTracker):
        raise UserError(f"report_to: {name!r} is no accelerate.tracking.GeneralTracker")
    return made


def start_trackers(accelerator: Accelerator, recipe: Recipe, run_folder: Path) -> None:
    """Start the recipe's trackers; wandb falls back to offline, and says so."""
    names = [name for name in recipe.tracking.report_to if name != "none"]
    if not names:
        return
    settings = {
        key: value if isinstance(value, int | float | str) else str(value)
        for key, value in recipe.to_dict().items()
    }
    mode = recipe.tracking.wandb_mode
    if "wandb" in names and mode == "auto":
        mode = "online" if _wandb_login_exists() else "offline"
        if mode == "offline":
            accelerator.print("wandb: not logged in, so this run is logged offline")

    def start(wandb_mode: str) -> None:
        # Offline there is nothing to announce; online wandb prints where the run can be seen.
        os.environ.setdefault("WANDB_SILENT", str(wandb_mode == "offline").lower())
        wandb = {"name": recipe.run.run_name, "dir": str(run_folder), "mode": wandb_mode}
        accelerator.init_trackers(recipe.tracking.project_name, settings, {"wandb": wandb})

    try:
        start(mode)
    except Exception as error:  # wandb's own, of many kinds
        if "wandb" not in names or mode == "offline":
            raise
        accelerator.print(f"wandb: cannot go online ({error}), so this run is logged offline")
        start("offline")


def _wandb_login_exists() -> bool:
    return bool(os.environ.get("WANDB_API_KEY")) or get_netrc_auth(WANDB_URL) is not None
