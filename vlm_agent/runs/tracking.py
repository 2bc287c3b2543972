"""What a run records: ``metrics.jsonl`` always, and accelerate's trackers as the recipe says."""

from __future__ import annotations

import json
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import requests
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, WandBTracker
from requests.utils import get_netrc_auth

from vlm_agent.common.errors import UserError
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.runs.callbacks import Callback
from vlm_agent.runs.folders import RunFolders

if TYPE_CHECKING:
    from vlm_agent.runs.trainer import Trainer

WANDB_SECONDS = 10.0
"""How long wandb may try to go online, all in all."""


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
    accelerator: Accelerator, recipe: Recipe, run_folder: Path, seconds: float = WANDB_SECONDS
) -> None:
    """Start the accelerator's trackers, unless somebody has; wandb logs offline if it must.

    Args:
        accelerator: Has the trackers, as :func:`make_trackers` makes them.
        recipe: What they are told of the run.
        run_folder: Where wandb writes.
        seconds: How long wandb may try to go online.

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
        WandbOrOffline(recipe, run_folder, seconds) if str(tracker) == "wandb" else tracker
        for tracker in accelerator.log_with
    ]
    accelerator.init_trackers(recipe.tracking.project_name, settings)


class WandbOrOffline(WandBTracker):
    """accelerate's tracker of wandb; where that cannot be reached, the run is logged offline.

    The id of wandb's run is kept in the run's folder, so a resumed run goes on in the same one.

    Args:
        recipe: Names the run and its project, and says whether to go online.
        run_folder: Where wandb writes.
        seconds: How long it may try to go online.
    """

    def __init__(self, recipe: Recipe, run_folder: Path, seconds: float) -> None:
        super().__init__(
            recipe.tracking.project_name, name=recipe.run.run_name, dir=str(run_folder)
        )
        self.mode = recipe.tracking.wandb_mode
        self.seconds = seconds
        self.id_file = run_folder / "wandb_id.txt"
        self._session_mode: str | None = None

    def start(self) -> None:
        """Go on with the run that the folder knows, or begin one; online if that can be."""
        if self.id_file.is_file():
            self.init_kwargs |= {"id": self.id_file.read_text().strip(), "resume": "allow"}
        problem = None if self.mode == "offline" else self._start_online()
        if problem is not None:
            print(f"wandb: {problem}, so this run is logged offline")
        if self.mode == "offline" or problem is not None:
            self._start_offline()
        self.id_file.write_text(self.run.id + "\n")

    def finish(self) -> None:
        """End the run."""
        import wandb

        super().finish()
        if self._session_mode is not None:
            wandb.setup(settings=wandb.Settings(mode=self._session_mode))

    def _start_online(self) -> str | None:
        """Start, within the given time; what stood against it, if anything."""
        import wandb

        deadline = time.monotonic() + self.seconds
        settings = _wandb_settings()
        url = str(settings.base_url)
        has_key = settings.api_key or settings.identity_token_file
        if not has_key and get_netrc_auth(url) is None:
            return "not logged in"
        # Asked first: wandb would retry all the time, and leave a run that never was.
        if not _answers(url, self.seconds):
            return f"{url} does not answer"
        try:
            left = max(1.0, deadline - time.monotonic())
            self._start("online", quiet=True, init_timeout=left)
        except Exception as error:  # wandb's own, of many kinds
            wandb.teardown()  # else the id of the run that failed stays taken
            return f"cannot go online ({str(error).partition('\n')[0]})"
        return None

    def _start_offline(self) -> None:
        import wandb

        # For the whole session: else wandb sends telemetry, and at the end of the program waits
        # ten seconds for a host that does not answer.
        self._session_mode = _wandb_settings().mode
        wandb.setup(settings=wandb.Settings(mode="offline"))
        self._start("offline", silent=True)

    def _start(self, mode: str, **settings: Any) -> None:
        import wandb

        self.init_kwargs |= {"mode": mode, "settings": wandb.Settings(**settings)}
        super().start()


def _wandb_settings() -> Any:
    """What wandb reads from its variables and files."""
    import wandb

    try:
        return wandb.setup().settings
    except Exception as error:  # pydantic's or wandb's own
        raise UserError(f"report_to: wandb: {' '.join(str(error).split())}") from None


def _answers(url: str, seconds: float) -> bool:
    """Whether a server says anything within so many seconds, finding its address included."""
    answers = []

    def ask() -> None:
        try:
            requests.post(f"{url}/graphql", json={"query": "{__typename}"}, timeout=seconds)
        except requests.exceptions.SSLError:
            pass  # it is there, and wandb may know its certificate
        except (requests.RequestException, ValueError):
            return
        answers.append(url)

    # In a thread: finding an address has no time limit of its own.
    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers)
