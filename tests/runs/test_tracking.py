"""What a run records, with real trackers: wandb's own package, and one of a user's own."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import wandb
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from tests.conftest import ROOT
from tests.own_world import SMALL, own_world
from tests.runs import wandb_hosts as hosts
from tests.short_runs import fresh_policy, metrics_of, trainer_for, without_times
from tests.worlds import ColourPool, of
from vlm_agent import Callback, PPOTrainer
from vlm_agent.common.errors import UserError
from vlm_agent.ppo.run import run_training
from vlm_agent.recipe.recipe import Recipe
from vlm_agent.recipe.sections import TRACKERS
from vlm_agent.runs.begin import Run
from vlm_agent.runs.folders import RunFolders
from vlm_agent.runs.trackers.guarded import GuardedTracker
from vlm_agent.runs.trackers.tracking import MetricsFile, flat, make_trackers, start_trackers

KEY = "0123456789" * 4


@pytest.fixture
def settings_of_wandb(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Sets wandb's variables, as a shell would; without those of whoever runs the tests."""
    files = {"NETRC": str(tmp_path / "netrc"), "WANDB_CONFIG_DIR": str(tmp_path)}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}

    def settings(**variables: str) -> None:
        os.environ.update(variables)
        wandb.teardown()  # read by the next run

    with patch.dict(os.environ, kept | files, clear=True):
        settings()
        yield settings
        wandb.teardown()


def log_a_run(recipe: Recipe, wandb_seconds: float = 5.0) -> str:
    """Tell the recipe's trackers of one update; the id of wandb's run."""
    folder = RunFolders(recipe).run
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(cpu=True, log_with=make_trackers(recipe), project_dir=str(folder))
    start_trackers(accelerator, recipe, folder, wandb_seconds)
    run_id = accelerator.get_tracker("wandb").tracker.id
    accelerator.log({"words/upwards": 0.15625}, step=8)
    accelerator.end_training()
    wandb.teardown()  # as where a program ends: only then all is in wandb's file
    return run_id


def offline_runs(recipe: Recipe) -> list[bytes]:
    """What wandb wrote of the runs that it did not send."""
    files = RunFolders(recipe).run.glob("wandb/offline-run-*/run-*.wandb")
    return [path.read_bytes() for path in files]


@pytest.mark.parametrize(
    ("host", "problem", "trackers"),
    [
        (hosts.closed_port, "does not answer", ["wandb"]),
        (hosts.mute_host, "does not answer", ["wandb"]),
        (hosts.refusing_host, "cannot go online (no such key)", ["tensorboard", "wandb"]),
    ],
)
def test_a_run_that_cannot_go_online_is_logged_offline_and_says_so_in_one_line(
    host, problem, trackers, settings_of_wandb, recipe_for, capfd
):
    recipe = recipe_for(report_to=trackers)
    with host() as url:
        settings_of_wandb(WANDB_API_KEY=KEY, WANDB_BASE_URL=url)
        log_a_run(recipe, wandb_seconds=1.0 if host is hosts.mute_host else 10.0)
    (logged,) = offline_runs(recipe)
    assert b"words/upwards" in logged
    assert b"0.15625" in logged
    said = capfd.readouterr()
    assert [problem in line for line in said.out.splitlines() if "offline" in line] == [True]
    assert "Traceback" not in said.out + said.err
    events = list(RunFolders(recipe).run.rglob("events.out.tfevents*"))
    assert bool(events) == ("tensorboard" in trackers)


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_without_a_key_a_run_is_logged_offline_and_says_so(
    mode, settings_of_wandb, recipe_for, capfd
):
    recipe = recipe_for(report_to=["wandb"], wandb_mode=mode)
    log_a_run(recipe)
    assert len(offline_runs(recipe)) == 1
    assert capfd.readouterr().out == "wandb: not logged in, so this run is logged offline\n"


def test_a_run_that_is_to_be_offline_asks_nobody_and_says_nothing(
    settings_of_wandb, recipe_for, capfd
):
    recipe, asked = recipe_for(report_to=["wandb"], wandb_mode="offline"), []
    with hosts.working_host(asked) as url:
        settings_of_wandb(WANDB_API_KEY=KEY, WANDB_BASE_URL=url)
        log_a_run(recipe)
    assert len(offline_runs(recipe)) == 1
    assert not asked
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("login", ["variable", "netrc"])
def test_a_run_that_can_go_online_does(login, settings_of_wandb, recipe_for, capfd, tmp_path):
    recipe, asked = recipe_for(report_to=["wandb"], run_name="mine", project_name="ours"), []
    with hosts.working_host(asked) as url:
        settings_of_wandb(WANDB_BASE_URL=url)
        if login == "variable":
            settings_of_wandb(WANDB_API_KEY=KEY)
        else:
            machine = url.removeprefix("http://")
            (tmp_path / "netrc").write_text(f"machine {machine} login user password {KEY}")
        run_id = log_a_run(recipe)
    made = next(variables for query, variables in asked if query == "UpsertBucket")
    assert (made["name"], made["displayName"], made["project"]) == (run_id, "mine", "ours")
    assert not offline_runs(recipe)
    said = capfd.readouterr()
    assert said.out == ""
    assert f"runs/{run_id}" in said.err  # where to look at it


def test_a_key_for_the_earlier_name_of_wandbs_host_is_a_login(
    settings_of_wandb, recipe_for, capfd, tmp_path
):
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {KEY}")
    with hosts.closed_port() as proxy:  # nobody outside is asked
        settings_of_wandb(HTTPS_PROXY=proxy)
        log_a_run(recipe_for(report_to=["wandb"]))
    assert "api.forge.coreweave.com does not answer" in capfd.readouterr().out


def test_settings_of_wandb_that_cannot_be_are_a_sentence(settings_of_wandb, recipe_for):
    settings_of_wandb(WANDB_BASE_URL="nowhere")
    with pytest.raises(UserError, match="report_to: wandb: .*base_url.*valid URL"):
        log_a_run(recipe_for(report_to=["wandb"], wandb_mode="offline"))
    del os.environ["WANDB_BASE_URL"]


def begin_and_end(recipe: Recipe) -> str:
    """A run of the recipe that learns nothing; the id of wandb's run."""
    run = Run(recipe)
    run.is_resumed = recipe.run.resume_from is not None  # as a trainer says
    run.begin()
    run_id = run.accelerator.get_tracker("wandb").tracker.id
    run.accelerator.end_training()
    wandb.teardown()  # as where a program ends
    return run_id


def test_a_resumed_run_is_the_same_run_of_wandb_and_an_overwriting_one_is_not(
    settings_of_wandb, recipe_for
):
    recipe = recipe_for(report_to=["wandb"], wandb_mode="offline")
    first = begin_and_end(recipe)
    resuming = recipe_for(report_to=["wandb"], wandb_mode="offline", resume_from="latest")
    assert begin_and_end(resuming) == first
    logged = offline_runs(recipe)
    assert [first.encode() in file for file in logged] == [True, True]
    overwriting = recipe_for(report_to=["wandb"], wandb_mode="offline", overwrite=True)
    assert begin_and_end(overwriting) != first


def test_a_resumed_run_keeps_its_id_where_it_can_no_longer_go_online(settings_of_wandb, recipe_for):
    asked, resuming = [], recipe_for(report_to=["wandb"], resume_from="latest")
    with hosts.working_host(asked) as url:
        settings_of_wandb(WANDB_API_KEY=KEY, WANDB_BASE_URL=url)
        first = begin_and_end(recipe_for(report_to=["wandb"]))
        assert "RunResumeStatus" not in dict(asked)
        assert begin_and_end(resuming) == first
        assert dict(asked)["RunResumeStatus"]["name"] == first  # "allow": it may be there
    with hosts.refusing_host() as url:
        settings_of_wandb(WANDB_BASE_URL=url)
        assert begin_and_end(resuming) == first
    assert len(offline_runs(resuming)) == 1


OWN_TRACKER = '''
import json
import random

import numpy
import torch
from accelerate.tracking import GeneralTracker, on_main_process


class Notebook(GeneralTracker):
    """Writes what it is told to a file, and disturbs what it can."""

    name = "notebook"
    requires_logging_directory = True

    def __init__(self, run_name, logging_dir):
        super().__init__()
        self.path = f"{logging_dir}/{run_name}.notes"

    @property
    def tracker(self):
        return self.file

    @on_main_process
    def start(self):
        self.file = open(self.path, "w")

    @on_main_process
    def store_init_configuration(self, values):
        self.note(["configuration", values["num_envs"], values["lora_target_modules"][:4]])

    @on_main_process
    def log(self, values, step=None, **kwargs):
        self.note([step, values])
        values.clear()
        torch.rand(3), numpy.random.rand(3), random.random()

    @on_main_process
    def finish(self):
        self.note(["finished"])
        self.file.close()

    def note(self, what):
        print(json.dumps(what), file=self.file)


class Unfinished(GeneralTracker):
    def __init__(self, run_name):
        super().__init__()


class Needy(Notebook):
    def __init__(self, run_name, logging_dir, password):
        super().__init__(run_name, logging_dir)


number = 3
'''


@pytest.fixture
def own_module(tmp_path: Path) -> Iterator[str]:
    """The name of a module of the user's, which can be imported."""
    name = "trackers_of_a_user"
    (tmp_path / f"{name}.py").write_text(OWN_TRACKER)
    sys.path.insert(0, str(tmp_path))
    yield name
    sys.path.remove(str(tmp_path))
    sys.modules.pop(name, None)


def test_a_tracker_from_outside_is_told_of_the_whole_run(own_module, recipe_for):
    settings = {"num_eval_episodes": 2, "eval_freq": 64}
    recipe = recipe_for(report_to=[f"{own_module}:Notebook"], run_name="mine", **settings)
    trainer = trainer_for(recipe)
    trainer.train()
    trainer.accelerator.end_training()
    path = RunFolders(recipe).run / "mine.notes"
    configuration, *told, finished = [json.loads(line) for line in path.read_text().splitlines()]
    assert configuration == ["configuration", 4, "['q_"]
    assert finished == ["finished"]
    recorded = metrics_of(recipe)
    assert [row["timesteps"] for row in recorded] == [32, 64, 96]
    assert [one for one in told if "loss" in one[1] or "timesteps" in one[1]] == [
        [row["timesteps"], flat(row)] for row in recorded
    ]
    evaluations = [one for one in told if "eval/success_rate" in one[1]]
    rates = [
        {k: v for k, v in one.items() if k not in ("seed", "greedy", "timesteps")}
        for one in trainer.evaluations
    ]
    for one in rates:
        del one["num_eval_episodes"]
    assert [told for _, told in evaluations] == [flat({"eval": one}) for one in rates]
    assert [step for step, _ in evaluations] == [0, 64, 96]


def test_recording_changes_nothing_of_training(own_module, recipe_for):
    trained = {}
    for name, trackers in {"told": [f"{own_module}:Notebook"], "quiet": ["none"]}.items():
        recipe = recipe_for(report_to=trackers, run_name=name, total_timesteps=64, n_epochs=1)
        trainer = trainer_for(recipe)
        trainer.train()
        weights = torch.cat([weight.ravel() for weight in trainer.policy.parameters()])
        trained[name] = weights, without_times(metrics_of(recipe))
    assert torch.equal(trained["told"][0], trained["quiet"][0])
    assert trained["told"][1] == trained["quiet"][1]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (
            "no_such_module:Notebook",
            "No module named 'no_such_module'; is the folder .* PYTHONPATH",
        ),
        ("trackers_of_a_user:Diary", "the module 'trackers_of_a_user' has no 'Diary'"),
        ("trackers_of_a_user:number", "is no subclass of accelerate.tracking.GeneralTracker"),
        ("trackers_of_a_user:json", "is no subclass of accelerate.tracking.GeneralTracker"),
        ("trackers_of_a_user:Unfinished", "cannot be made: .*`name`.*`tracker`"),
        ("trackers_of_a_user:Needy", "cannot be made: .*'password'"),
    ],
)
def test_a_tracker_that_cannot_be_is_a_sentence(own_module, name, problem, recipe_for):
    recipe = recipe_for(report_to=[name])
    with pytest.raises(UserError, match=f"^report_to: '{name}'.*{problem}"):
        Run(recipe)
    assert not RunFolders(recipe).run.exists()


def test_a_tracker_that_is_not_installed_is_a_sentence(recipe_for):
    with (
        patch.dict(sys.modules, {"tensorboard": None}),
        pytest.raises(UserError, match="report_to: tensorboard is not installed; pip install"),
    ):
        Run(recipe_for(report_to=["tensorboard"]))


def test_metrics_are_written_as_they_are_and_flat_for_trackers(tmp_path):
    metrics = {
        "timesteps": 8,
        "episode_return": None,
        "words": {"up": 0.25, "of": {"them": 3}},
        "stage": "none",
    }
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.write(metrics)
    file.write(metrics | {"timesteps": 16})
    rows = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert rows == [metrics, metrics | {"timesteps": 16}]
    assert flat(metrics) == {"timesteps": 8, "words/up": 0.25, "words/of/them": 3}


def test_keeping_until_a_step_forgets_what_came_later(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.keep_until(16)  # of a run that recorded nothing
    for timesteps in (8, 16, 24):
        file.write({"timesteps": timesteps})
    file.keep_until(16)
    file.write({"timesteps": 20})
    rows = [json.loads(line)["timesteps"] for line in file.path.read_text().splitlines()]
    assert rows == [8, 16, 20]


def test_only_the_main_process_writes_metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    other = MetricsFile(path, is_main_process=False)
    other.write({"timesteps": 8})
    assert not path.exists()
    MetricsFile(path).write({"timesteps": 8})
    other.keep_until(0)
    assert json.loads(path.read_text()) == {"timesteps": 8}


class Awkward(GeneralTracker):
    """Does as it is told, but for one method: that raises, or never comes back."""

    name, requires_logging_directory, tracker = "awkward", False, None

    def __init__(self, method: str, blocks: bool) -> None:
        super().__init__()
        self.told: list[str] = []
        self.released = threading.Event()
        for name in ("start", "store_init_configuration", "log", "finish"):
            bad = self.block if blocks else self.fail
            setattr(self, name, bad if name == method else self.note(name))

    def note(self, name: str):
        return lambda *_, **__: self.told.append(name)

    def block(self, *_, **__) -> None:
        self.released.wait(60)

    def fail(self, *_, **__) -> None:
        raise RuntimeError("the host is on fire\nand more")


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("method", ["start", "store_init_configuration", "log", "finish"])
def test_a_tracker_that_raises_or_blocks_is_a_warning(method: str, blocks: bool, caplog):
    own = Awkward(method, blocks)
    guarded = GuardedTracker("awkward", lambda: own, seconds=0.4)
    began = time.monotonic()
    guarded.start()
    guarded.store_init_configuration({"seed": 0})
    for step in range(3):
        guarded.log({"loss": 1.0}, step=step)
    guarded.finish()
    assert time.monotonic() - began < 3
    problem = "it does not answer" if blocks else "RuntimeError: the host is on fire"
    assert caplog.messages == [f"report_to: awkward is told no more of this run: {problem}"]
    whole = ["start", "store_init_configuration", "log", "log", "log", "finish"]
    assert own.told == whole[: whole.index(method)]
    own.released.set()


def test_a_run_goes_on_without_a_tracker_that_fails(recipe_for, caplog):
    recipe = recipe_for()
    accelerator = Accelerator(cpu=True, log_with=Awkward("log", blocks=False))
    pool = of(ColourPool(recipe.rollout.num_envs), recipe)
    trainer = PPOTrainer(fresh_policy(recipe), pool, recipe, accelerator=accelerator)
    trainer.train()
    accelerator.end_training()
    assert len(metrics_of(recipe)) == 3
    assert sum("awkward is told no more" in message for message in caplog.messages) == 1


def test_metrics_that_cannot_be_written_end_the_run_with_a_sentence(recipe_for):
    class Deletes(Callback):
        def on_update_end(self, trainer: PPOTrainer, metrics: dict) -> None:
            shutil.rmtree(trainer.folders.run)

    recipe = recipe_for()
    with pytest.raises(UserError, match=r"cannot write '.*metrics\.jsonl': No such file"):
        trainer_for(recipe, None, Deletes()).train()


def test_trackers_are_shown_prompt_evaluations_films_and_curves(settings_of_wandb, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {**SMALL, "num_eval_episodes": 2}
    trackers = {"report_to": ["wandb", "tensorboard"], "wandb_mode": "offline"}
    with own_world(tmp_path) as world, patch.dict(os.environ, {"PYTHONPATH": str(tmp_path)}):
        recipe = Recipe.load(world, output_dir=str(tmp_path), **settings, **trackers)
        run_training(recipe)
    folder = RunFolders(recipe).run
    media = next(folder.glob("wandb/offline-run-*/files/media"))
    (table,) = (media / "table").glob("evaluations*.json")
    told = json.loads(table.read_text())
    rates = json.loads((folder / "summary.json").read_text())["evaluations"]
    place = told["columns"].index("success_rate")
    assert [row[place] for row in told["data"]] == [one["success_rate"] for one in rates]
    films = {path.name.rpartition("_")[0][:11] for path in (media / "videos").iterdir()}
    assert len(films) == 2
    (prompt,) = (media / "html").glob("prompt*.html")
    assert "last_action" in prompt.read_text()
    events = EventAccumulator(str(next(folder.rglob("events.out.tfevents*")).parent))
    events.Reload()
    assert {"prompt/text_summary", "evaluations/text_summary"} <= set(events.Tags()["tensors"])
    assert "curves" in events.Tags()["images"]


def test_all_of_accelerates_trackers_can_be_named():
    assert set(TRACKERS) == set(LOGGER_TYPE_TO_CLASS) - {"all"}


LOG_TO_TRACKIO = """
import sys
from accelerate import Accelerator
from vlm_agent import Recipe
from vlm_agent.runs.trackers.tracking import make_trackers, start_trackers
from pathlib import Path

recipe = Recipe.load(report_to=["trackio"], run_name="mine", project_name="ours")
accelerator = Accelerator(cpu=True, log_with=make_trackers(recipe), project_dir=sys.argv[1])
start_trackers(accelerator, recipe, Path(sys.argv[1]))
for step in (8, 16):
    accelerator.log({"entropy": step / 10, "words/upwards": 0.15625}, step=step)
accelerator.end_training()

from trackio.sqlite_storage import SQLiteStorage
print([(one["step"], one["entropy"]) for one in SQLiteStorage.get_logs("ours", "mine")])
print(SQLiteStorage.get_run_config("ours", "mine")["learning_rate"])
"""


@pytest.mark.skipif("TRACKIO" not in os.environ, reason="make interop says where trackio is")
def test_trackio_keeps_what_is_logged(tmp_path: Path):
    environ = {**os.environ, "TRACKIO_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environ["PYTHONPATH"] = f"{ROOT}:{os.environ['TRACKIO']}"
    command = [sys.executable, "-c", LOG_TO_TRACKIO, str(tmp_path)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    *_, logged, rate = done.stdout.splitlines()
    assert logged == "[(8, 0.8), (16, 1.6)]"
    assert float(rate) == 3e-5
