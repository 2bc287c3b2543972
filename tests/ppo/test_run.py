"""A whole run from recipe to summary, in a small world."""

import json

import pytest

from tests.short_runs import metrics_of, without_times
from tests.worlds import ColourPool
from vlm_agent.common.errors import UserError
from vlm_agent.ppo import run as run_module
from vlm_agent.ppo.run import run_training
from vlm_agent.runs.checkpoints import load_policy
from vlm_agent.runs.folders import RunFolders


@pytest.fixture(autouse=True)
def small_world(monkeypatch):
    class Pool(ColourPool):
        def __init__(self, _, num_envs: int, *__, **___) -> None:
            super().__init__(num_envs)

        def __enter__(self):
            return self

        def __exit__(self, *_) -> None:
            pass

        def wait_until_ready(self) -> None:
            pass

    monkeypatch.setattr(run_module, "EnvPool", Pool)


@pytest.mark.parametrize("form", [{}, {"use_peft": True}], ids=["full", "lora"])
def test_a_resumed_run_stays_tied_to_where_the_first_one_started(recipe_for, tmp_path, form):
    settings = {"kl_coef": 0.3, "kl_estimator": "k3", "save_freq": 32, **form}
    straight = recipe_for(output_dir=str(tmp_path / "straight"), **settings)
    run_training(straight)
    stopped = {**settings, "output_dir": str(tmp_path / "stopped")}
    run_training(recipe_for(total_timesteps=64, **stopped))
    resumed = recipe_for(resume_from="latest", **stopped)
    run_training(resumed)
    assert without_times(metrics_of(resumed)) == without_times(metrics_of(straight))
    assert metrics_of(straight)[-1]["reference_kl"] > 1e-4


def test_a_resumed_runs_checkpoints_hold_the_recipe_they_were_written_by(recipe_for):
    run_training(recipe_for(save_freq=32, total_timesteps=32))
    changed = {"learning_rate": 7e-5, "gradient_checkpointing": True}  # what may change
    run_training(recipe_for(save_freq=32, resume_from="latest", **changed))
    folders = RunFolders(recipe_for()).steps()
    rates = [json.loads((f / "recipe.json").read_text())["learning_rate"] for f in folders]
    assert rates == [1e-3, 7e-5, 7e-5]
    settings = [json.loads((f / "policy.json").read_text())["model"] for f in folders]
    assert [s["gradient_checkpointing"] for s in settings] == [False, True, True]


@pytest.mark.parametrize("what", ["trackers", "robots", "policy"])
def test_a_run_that_cannot_begin_leaves_the_earlier_one_alone(recipe_for, monkeypatch, what):
    recipe = recipe_for(total_timesteps=32, save_freq=32, report_to=["tensorboard"])
    run_training(recipe)
    before = sorted(RunFolders(recipe).run.rglob("*"))

    def fail(*_) -> None:
        raise UserError(f"no {what}")

    where = {
        "trackers": "check_trackers",
        "robots": "EnvPool.wait_until_ready",
        "policy": "build_policy",
    }
    monkeypatch.setattr(f"vlm_agent.ppo.run.{where[what]}", fail)
    with pytest.raises(UserError, match=f"no {what}"):
        run_training(recipe_for(overwrite=True, report_to=["tensorboard"]))
    assert sorted(RunFolders(recipe).run.rglob("*")) == before
    assert len(RunFolders(recipe).steps()) == 1


def test_a_policy_without_its_recipe_cannot_be_evaluated(policy, tmp_path):
    policy.recipe = {"gamma": 0.9, "task": "Lift"}
    policy.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="the recipe of the policy .* lacks robot, frame_size"):
        load_policy(tmp_path)
