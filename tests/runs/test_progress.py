"""How far a run is: a panel on a terminal, lines elsewhere, and a terminal left as it was."""

import io
import re
import time

import pytest
from rich.console import Console

from tests.short_runs import trainer_for
from vlm_agent import Callback
from vlm_agent.runs.progress import Progress, duration


def console(is_terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=100, height=40)


def run(recipe_for, shown: Console, *others: Callback, **settings) -> str:
    """What stands in the terminal, or the file, after a run."""
    trainer = trainer_for(recipe_for(num_eval_episodes=2, eval_freq=64, **settings))
    kept = [one for one in trainer.callbacks.callbacks if not isinstance(one, Progress)]
    trainer.callbacks.callbacks = [*others, Progress(shown), *kept]
    try:
        trainer.train()
    finally:
        shown.file.flush()
    return shown.file.getvalue()


def test_elsewhere_each_update_is_a_line(recipe_for):
    said = run(recipe_for, console(False), total_timesteps=64).splitlines()
    evaluated = [line for line in said if line.startswith("evaluated after")]
    assert re.fullmatch(r"evaluated after 0 words: success .* % \(.*-.*\)", evaluated[0])
    assert re.match(r"32 of 64 words, [\d.]+ a second, \d+ s left, .*entropy [\d.]+, KL", said[1])
    assert re.match(r"64 of 64 words, [\d.]+ a second, .*entropy", said[2])
    assert evaluated[1].startswith("evaluated after 64 words")
    assert len(said) == 4
    assert "\x1b" not in "".join(said)


def test_a_terminal_has_a_panel_and_gets_its_cursor_back(recipe_for):
    said = run(recipe_for, console(True), total_timesteps=64)
    last = said[said.rindex("\N{BOX DRAWINGS LIGHT ARC DOWN AND RIGHT}") :]
    for what in ("64 of 64 words", "policy", "entropy", "time", "physics", "evaluated after 64"):
        assert what in last, what
    assert "left" not in last
    assert said.count("\x1b[?25h") == said.count("\x1b[?25l") >= 2  # hidden, and shown again


class Fail(Callback):
    def on_update_end(self, trainer, metrics):
        raise RuntimeError("enough")


def test_what_is_raised_leaves_the_terminal_as_it_was(recipe_for):
    shown = console(True)
    with pytest.raises(RuntimeError, match="enough"):
        run(recipe_for, shown, Fail())
    said = shown.file.getvalue()
    assert said.count("\x1b[?25h") == said.count("\x1b[?25l") >= 1
    length = len(said)
    time.sleep(0.6)
    assert len(shown.file.getvalue()) == length  # nothing draws any more


def test_an_evaluation_after_training_shows_no_panel(recipe_for):
    shown = console(True)
    trainer = trainer_for(recipe_for(num_eval_episodes=2, total_timesteps=32))
    kept = [one for one in trainer.callbacks.callbacks if not isinstance(one, Progress)]
    trainer.callbacks.callbacks = [Progress(shown), *kept]
    trainer.train()
    length = len(shown.file.getvalue())
    trainer.evaluate()
    assert len(shown.file.getvalue()) == length


class Clock(Callback):
    """Words take half a second, and evaluations a hundred."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def on_step(self, trainer):
        self.now += 0.5 * trainer.words_per_step

    def on_evaluate(self, trainer, evaluation):
        self.now += 100


def test_the_pace_is_of_training_alone(recipe_for, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("vlm_agent.runs.progress.time", clock)
    said = run(recipe_for, console(False), clock, total_timesteps=96)
    paces = re.findall(r"(\d+) of 96 words, ([\d.]+) a second, (\d+ s) left", said)
    assert paces == [("32", "2.0", "32 s"), ("64", "2.0", "16 s")]
    assert "96 of 96 words, 2.0 a second, return" in said


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59, "59 s"), (89, "89 s"), (95, "2 min"), (3540, "59 min"),
     (3600, "1 h 00 min"), (3899, "1 h 05 min"), (90_000, "25 h 00 min")],
)  # fmt: skip
def test_a_duration_is_told_as_people_do(seconds, text):
    assert duration(seconds) == text
