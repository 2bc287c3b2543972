"""What a run records: ``metrics.jsonl`` always, and accelerate's trackers as the recipe says."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from requests.utils import get_netrc_auth

from vlm_agent.common.errors import UserError
from vlm_agent.recipe.recipe import Recipe

WANDB_URL = "https://api.wandb.ai"


class MetricsLog:
    """Appends one object per update to ``metrics.jsonl`` and sends it to the trackers."""

    def __init__(self, path: Path, accelerator: Accelerator) -> None:
        self.path = path
        self.accelerator = accelerator

    def keep_until(self, timesteps: int) -> None:
        """Forget what was recorded later than that; used when a run is resumed."""
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        kept = [line for line in lines if json.loads(line)["timesteps"] <= timesteps]
        self.path.write_text("".join(line + "\n" for line in kept))

    def write(self, metrics: dict[str, Any]) -> None:
        """Record one update."""
        with self.path.open("a") as file:
            file.write(json.dumps(metrics) + "\n")
        self.track(metrics, metrics["timesteps"])

    def track(self, values: dict[str, Any], timesteps: int) -> None:
        """Send values to the trackers only; nested ones as ``outer/inner``."""
        flat: dict[str, float] = {}
        for key, value in values.items():
            if isinstance(value, dict):
                flat |= {f"{key}/{inner}": v for inner, v in value.items()}
            elif isinstance(value, int | float):
                flat[key] = value
        self.accelerator.log(flat, step=timesteps)


def tracker_names(recipe: Recipe) -> list[str]:
    """The recipe's trackers, as accelerate names them."""
    return [name for name in recipe.ppo.report_to if name != "none"]


def check_trackers(recipe: Recipe) -> None:
    """Find out whether the recipe's trackers can be started.

    Raises:
        UserError: One is not installed.
    """
    for name in tracker_names(recipe):
        if find_spec(name) is None:
            raise UserError(
                f"report_to: {name} is not installed; pip install 'vlm-agent[{name}]', or none"
            )


def start_trackers(accelerator: Accelerator, recipe: Recipe, run_folder: Path) -> None:
    """Start the recipe's trackers; wandb falls back to offline, and says so."""
    names = tracker_names(recipe)
    if not names:
        return
    settings = {
        key: value if isinstance(value, int | float | str) else str(value)
        for key, value in recipe.to_dict().items()
    }
    mode = recipe.ppo.wandb_mode
    if "wandb" in names and mode == "auto":
        mode = "online" if _wandb_login_exists() else "offline"
        if mode == "offline":
            accelerator.print("wandb: not logged in, so this run is logged offline")

    def start(wandb_mode: str) -> None:
        # Offline there is nothing to announce; online wandb prints where the run can be seen.
        os.environ.setdefault("WANDB_SILENT", str(wandb_mode == "offline").lower())
        wandb = {"name": recipe.ppo.run_name, "dir": str(run_folder), "mode": wandb_mode}
        accelerator.init_trackers(recipe.ppo.project_name, settings, {"wandb": wandb})

    try:
        start(mode)
    except Exception as error:  # wandb's own, of many kinds
        if "wandb" not in names or mode == "offline":
            raise
        accelerator.print(f"wandb: cannot go online ({error}), so this run is logged offline")
        start("offline")


def _wandb_login_exists() -> bool:
    return bool(os.environ.get("WANDB_API_KEY")) or get_netrc_auth(WANDB_URL) is not None
