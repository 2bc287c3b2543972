"""``async_rollout``: the next rollout is of the policy before the update that goes on meanwhile."""

import copy
import shutil
import time

import pytest
import torch

from tests.short_runs import metrics_of, trainer_for, without_times
from tests.worlds import ColourPool
from vlm_agent import VLMPolicy
from vlm_agent.runs.folders import RunFolders

SETTINGS = {
    "async_rollout": 1,
    "num_envs": 4,
    "rollout_steps": 8,
    "total_timesteps": 160,
    "batch_size": 16,
    "n_epochs": 2,
    "learning_rate": 1e-3,
    "num_eval_episodes": 2,
    "eval_freq": 64,
    "save_freq": 64,
}


class SlowPool(ColourPool):
    """Its environments take longer than an update."""

    def finish_step(self):
        time.sleep(0.05)
        return super().finish_step()


def weights_of(trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.actor_critic.named_parameters()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.fixture(scope="module")
def form() -> dict:
    return {"use_peft": True}


def test_a_run_is_that_of_one_thing_after_the_other(recipe_for, form, tmp_path):
    recipe = recipe_for(output_dir=str(tmp_path / "ahead"), **SETTINGS, **form)
    ahead = trainer_for(recipe)
    ahead.train()

    plain = recipe_for(
        output_dir=str(tmp_path / "plain"), **SETTINGS | {"async_rollout": 0}, **form
    )
    trainer = trainer_for(plain)
    rollout, _ = trainer.collect()
    while rollout is not None:
        following = None
        if trainer.timesteps < 160:
            before = copy.deepcopy(trainer.actor_critic)
            trainer.update(rollout)
            learnt = weights_of(trainer)
            trainer.actor_critic.load_state_dict(before.state_dict())
            following, _ = trainer.collect()
            trainer.actor_critic.load_state_dict(learnt, strict=False)
        else:
            trainer.update(rollout)
        rollout = following
    assert trainer.updates == ahead.updates == 5
    assert same(weights_of(ahead), weights_of(trainer))


def test_who_is_faster_changes_nothing_and_staleness_is_logged(recipe_for, tmp_path):
    runs = []
    for name, pool in (("one", ColourPool(4)), ("two", SlowPool(4))):
        recipe = recipe_for(output_dir=str(tmp_path / name), **SETTINGS)
        trainer_for(recipe, pool=pool).train()
        runs.append(without_times(metrics_of(recipe)))
    assert runs[0] == runs[1]
    first, *later = runs[0]
    assert first["first_ratio_error"] < 1e-5
    assert all(row["staleness_kl"] > 1e-6 and "first_ratio_error" not in row for row in later)
    assert [row["timesteps"] for row in runs[0]] == [32, 64, 96, 128, 160]


def test_a_resumed_run_collects_again_what_it_had_collected_ahead(recipe_for, form, tmp_path):
    whole = recipe_for(output_dir=str(tmp_path / "whole"), **SETTINGS, **form)
    trainer = trainer_for(whole)
    trainer.train()
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    for path in (tmp_path / "stopped" / "checkpoints").glob("*_step*"):
        if not path.name.endswith("_step64"):
            shutil.rmtree(path)
    settings = {**SETTINGS, **form, "resume_from": "latest"}
    resumed = recipe_for(output_dir=str(tmp_path / "stopped"), **settings)
    folder = RunFolders(resumed).resume_folder(resumed)
    again = trainer_for(resumed, VLMPolicy.from_pretrained(folder))
    again.resume(folder)
    again.train()
    assert same(weights_of(again), weights_of(trainer))
    assert without_times(metrics_of(resumed)) == without_times(metrics_of(whole))
