import json
from types import SimpleNamespace

import pytest

from tests.conftest import ROOT
from vlm_agent.common.errors import UserError
from vlm_agent.recipe.recipe import make_recipe
from vlm_agent.runs import tracking
from vlm_agent.runs.tracking import MetricsLog, check_trackers, start_trackers


class Recorder:
    """Stands in for the accelerator: notes what it is asked to do."""

    def __init__(self, online_works: bool = True) -> None:
        self.online_works = online_works
        self.modes: list[str] = []
        self.printed: list[str] = []
        self.logged: list[tuple[dict, int]] = []

    def init_trackers(self, project, settings, init_kwargs):
        self.settings = settings
        mode = init_kwargs["wandb"]["mode"]
        if mode == "online" and not self.online_works:
            raise TimeoutError("no answer")
        self.modes.append(mode)

    def print(self, text):
        self.printed.append(text)

    def log(self, values, step):
        self.logged.append((values, step))


def start(monkeypatch, tmp_path, login: bool, online_works: bool = True, **settings) -> Recorder:
    monkeypatch.setattr(tracking, "_wandb_login_exists", lambda: login)
    monkeypatch.delenv("WANDB_SILENT", raising=False)
    values = {"report_to": ["wandb"], "prompt_template": str(ROOT / "prompts/minimal.jinja")}
    accelerator = Recorder(online_works)
    start_trackers(accelerator, make_recipe(values | settings), tmp_path)
    return accelerator


def test_logged_in_goes_online(monkeypatch, tmp_path):
    accelerator = start(monkeypatch, tmp_path, login=True)
    assert (accelerator.modes, accelerator.printed) == (["online"], [])
    assert all(isinstance(v, int | float | str) for v in accelerator.settings.values())


def test_without_login_it_is_offline_and_says_so(monkeypatch, tmp_path):
    accelerator = start(monkeypatch, tmp_path, login=False)
    assert accelerator.modes == ["offline"]
    assert "not logged in" in accelerator.printed[0]


def test_online_that_fails_falls_back_to_offline_and_says_so(monkeypatch, tmp_path):
    accelerator = start(monkeypatch, tmp_path, login=True, online_works=False)
    assert accelerator.modes == ["offline"]
    assert "cannot go online (no answer)" in accelerator.printed[0]


def test_offline_by_choice_says_nothing(monkeypatch, tmp_path):
    accelerator = start(monkeypatch, tmp_path, login=True, wandb_mode="offline")
    assert (accelerator.modes, accelerator.printed) == (["offline"], [])


def test_none_starts_nothing(monkeypatch, tmp_path):
    assert start(monkeypatch, tmp_path, login=True, report_to=["none"]).modes == []


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"report_to: wandb is not installed.*vlm-agent\[wandb\]"):
        check_trackers(make_recipe({"report_to": ["wandb"]}))
    check_trackers(make_recipe({"report_to": ["none"]}))


def test_metrics_go_to_the_file_as_they_are_and_flat_to_the_trackers(tmp_path):
    accelerator = Recorder()
    log = MetricsLog(tmp_path / "metrics.jsonl", accelerator)
    metrics = {"timesteps": 8, "episode_return": None, "words": {"up": 0.25, "down": 0.75}}
    log.write(metrics)
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == metrics
    assert accelerator.logged == [({"timesteps": 8, "words/up": 0.25, "words/down": 0.75}, 8)]


def test_keeping_until_a_step_forgets_what_came_later(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", SimpleNamespace(log=lambda *a, **k: None))
    for timesteps in (8, 16, 24):
        log.write({"timesteps": timesteps})
    log.keep_until(16)
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["timesteps"] for row in rows] == [8, 16]
