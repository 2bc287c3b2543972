"""``WandbOrOffline``: wandb, online if that can be; the same run of it when a run is resumed."""

from __future__ import annotations

import os
import time
from netrc import NetrcParseError, netrc
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import requests
import wandb
from accelerate.tracking import WandBTracker

from vlm_agent.common.errors import UserError
from vlm_agent.recipe.recipe import Recipe

FORMER_HOSTS = {"api.forge.coreweave.com": "api.wandb.ai"}
"""Hosts of wandb under an earlier name, for which ``wandb login`` has left keys that still hold."""


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
        super().finish()
        if self._session_mode is not None:
            wandb.setup(settings=wandb.Settings(mode=self._session_mode))

    def _start_online(self) -> str | None:
        """Start, within the given time; what stood against it, if anything."""
        deadline = time.monotonic() + self.seconds
        settings = _wandb_settings()
        url = str(settings.base_url)
        if not (settings.api_key or settings.identity_token_file or _netrc_knows(url)):
            return "not logged in"
        # Asked first: wandb would retry all the time, and leave a run that never was.
        if not _answers(url, self.seconds):
            return f"{url} does not answer"
        try:
            left = max(1.0, deadline - time.monotonic())
            self._start("online", quiet=True, init_timeout=left)
        except Exception as error:  # wandb's own, of many kinds
            wandb.teardown()  # else the id of the run that failed stays taken
            reason, *_ = str(error).split("\n")
            return f"cannot go online ({reason})"
        return None

    def _start_offline(self) -> None:
        # For the whole session: else wandb sends telemetry, and at the end of the program waits
        # ten seconds for a host that does not answer.
        self._session_mode = _wandb_settings().mode
        wandb.setup(settings=wandb.Settings(mode="offline"))
        self._start("offline", silent=True)

    def _start(self, mode: str, **settings: Any) -> None:
        # Its copy of the terminal would be progress bars.
        settings |= {"console": "off"}
        self.init_kwargs |= {"mode": mode, "settings": wandb.Settings(**settings)}
        super().start()


def _wandb_settings() -> Any:
    """What wandb reads from its variables and files."""
    try:
        return wandb.setup().settings
    except Exception as error:  # pydantic's or wandb's own
        raise UserError(f"report_to: wandb: {' '.join(str(error).split())}") from None


def _netrc_knows(url: str) -> bool:
    """Whether ``wandb login`` has left a key for this host."""
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    host = urlsplit(url).netloc
    try:
        known = netrc(path)
        return any(known.authenticators(name) for name in (host, FORMER_HOSTS.get(host, host)))
    except (OSError, NetrcParseError):
        return False


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
