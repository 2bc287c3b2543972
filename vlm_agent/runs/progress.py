"""How far a run is: a live panel on a terminal, a line for each update elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from vlm_agent.runs.callbacks import Callback
from vlm_agent.runs.trainer import Trainer

SHOWN = {
    "return": "episode_return",
    "success": "success_rate",
    "entropy": "entropy",
    "KL": "approx_kl",
    "clipped": "clip_fraction",
    "value fit": "explained_variance",
}
"""Name on the panel -> metric."""

SHARES = {
    "physics": "physics_share",
    "rendering": "rendering_share",
    "model": "model_share",
    "waiting": "waiting_share",
}
"""What the machine's time goes to, within a rollout."""

LINE_S = 60.0
"""Where there is no panel, a line is written at least so often."""


def duration(seconds: float) -> str:
    """Seconds as people say them: ``1 h 05 min``, ``3 min``, ``12 s``."""
    minutes, hours = round(seconds / 60), int(seconds / 3600 + 1 / 120)
    if hours:
        return f"{hours} h {minutes - 60 * hours:02d} min"
    return f"{minutes} min" if seconds >= 90 else f"{seconds:.0f} s"


class Progress(Callback):
    """Shows a run while it trains, in its main process.

    Args:
        console: Where; by default the terminal, or standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.is_live = sys.stderr.isatty() if console is None else console.is_terminal
        self.is_live &= os.environ.get("TERM") != "dumb"
        self.console = console or Console(stderr=True)
        self._live: Live | None = None
        self._metrics: dict[str, Any] = {}
        self._evaluation = ""
        self._doing = "collecting"
        self._is_shown = False
        self._words = self._first_words = 0
        self._began = self._told = self._left = self._away = 0.0

    def on_train_begin(self, trainer: Trainer) -> None:
        """Begin to count."""
        self._is_shown = trainer.accelerator.is_main_process
        self._words = self._first_words = trainer.timesteps
        self._began = self._told = time.perf_counter()
        self._away = 0.0
        if trainer.evaluations:  # of a run that goes on
            self._tell_evaluation(trainer)
        self._show(trainer)

    def on_evaluate_begin(self, trainer: Trainer) -> None:
        """Make room for its own bar, and stop the clock."""
        self._left = time.perf_counter()
        self._hide()

    def on_evaluate(self, trainer: Trainer, evaluation: Any) -> None:
        """Show success with its interval."""
        self._away += time.perf_counter() - self._left
        self._tell_evaluation(trainer)
        self._say(self._evaluation)
        self._show(trainer)

    def _tell_evaluation(self, trainer: Trainer) -> None:
        last = trainer.evaluations[-1]
        low, high = 100 * last["ci95_low"], 100 * last["ci95_high"]
        self._evaluation = (
            f"evaluated after {last['timesteps']:,} words: success "
            f"{100 * last['success_rate']:.1f} % ({low:.1f}-{high:.1f})"
        )

    def on_step(self, trainer: Trainer) -> None:
        """Count the words of all processes."""
        self._words += trainer.words_per_step
        if time.perf_counter() - self._told > LINE_S:
            self._say(self._pace(trainer))

    def on_rollout_end(self, trainer: Trainer, rollout: Any, episodes: Sequence[Any]) -> None:
        """Say what takes time now, and count what other processes said more or less."""
        self._words, self._doing = trainer.timesteps, "learning"

    def on_update_end(self, trainer: Trainer, metrics: dict[str, Any]) -> None:
        """Show what came of the update."""
        self._metrics, self._doing = dict(metrics), "collecting"
        told = [f"{name} {text}" for name, text in self._figures(SHOWN).items()]
        self._say(", ".join([self._pace(trainer), *told]))

    def close(self) -> None:
        """Leave the last panel where it is, and the terminal as it was found."""
        if self._live is not None:
            self._doing = "done"
            self._live.transient = False
        self._hide()
        self._is_shown = False  # what is evaluated from now on is nobody's run

    def _figures(self, names: dict[str, str]) -> dict[str, str]:
        found = {name: self._metrics.get(key) for name, key in names.items()}
        return {name: f"{value:.3g}" for name, value in found.items() if value is not None}

    def _pace(self, trainer: Trainer) -> str:
        """How far, how fast, how long still."""
        seconds = time.perf_counter() - self._began - self._away
        rate = (self._words - self._first_words) / max(seconds, 1e-9)
        told = f"{self._words:,} of {trainer.total_timesteps:,} words, {rate:.1f} a second"
        left = max(0, trainer.total_timesteps - self._words)
        return told + (f", {duration(left / rate)} left" if rate and left else "")

    def panel(self, trainer: Trainer) -> Panel:
        """All of it, as it stands."""
        done = ProgressBar(total=trainer.total_timesteps, completed=self._words)
        bar = Padding(done, (0, 0))  # which ends its line
        table = Table.grid(padding=(0, 2))
        for name, figures in (("policy", SHOWN), ("time", SHARES)):
            if told := self._figures(figures):
                table.add_row(name, "  ".join(f"{key} {value}" for key, value in told.items()))
        if self._evaluation:
            table.add_row("success", self._evaluation)
        table.add_row("now", self._doing)
        name = trainer.recipe.run.run_name
        return Panel(Group(self._pace(trainer), bar, table), title=name, title_align="left")

    def _say(self, line: str) -> None:
        """A line, where there is no panel."""
        self._told = time.perf_counter()
        if self._is_shown and not self.is_live:
            self.console.print(line, highlight=False, soft_wrap=True)

    def _show(self, trainer: Trainer) -> None:
        if not self.is_live or not self._is_shown or self._live is not None:
            return
        self._live = Live(
            console=self.console,
            get_renderable=lambda: self.panel(trainer),
            refresh_per_second=4,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # what others print stands above the panel
        )
        self._live.start()

    def _hide(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
