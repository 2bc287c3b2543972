"""The loop itself, on worlds that need no robot."""

import dataclasses
import gc
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.short_runs import fresh_policy, metrics_of, trainer_for, without_times
from tests.worlds import ColourPool
from vlm_agent.common.errors import UserError
from vlm_agent.evaluation import evaluator as evaluator_module
from vlm_agent.evaluation.evaluate import read_result
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.ppo import update as update_module
from vlm_agent.ppo.advantages import generalized_advantages
from vlm_agent.ppo.trainer import PPOTrainer
from vlm_agent.rollout.collector import Episode, RolloutBuffer, RolloutCollector
from vlm_agent.runs.compatibility import check_same_run
from vlm_agent.runs.folders import RunFolders
from vlm_agent.world.episode import Episode, load_episode

LEARNING = {
    "num_envs": 8,
    "rollout_steps": 8,
    "batch_size": 32,
    "n_epochs": 4,
    "learning_rate": 2e-3,
    "entropy_coef": 0.0,
    "gamma": 0.5,
}


def share_of_right_words(trainer: PPOTrainer) -> float:
    """Mean reward of sampled words in fresh episodes; chance is 1/8."""
    collector = RolloutCollector(ColourPool(32), seed=123, rank=9)
    collector.take_up()
    return float(collector.collect_rollout(trainer.policy.eval(), 8)[0].rewards.mean())


@pytest.mark.parametrize("sign", [1, -1], ids=["as it is", "advantage's sign flipped"])
def test_ppo_learns_which_word_belongs_to_which_colour(recipe_for, monkeypatch, sign):
    def estimate(*args):
        advantages, returns = generalized_advantages(*args)
        return sign * advantages, returns

    monkeypatch.setattr(update_module, "generalized_advantages", estimate)
    words = 768 if sign > 0 else 256  # to forget is quicker than to learn
    trainer = trainer_for(recipe_for(**LEARNING, total_timesteps=words))
    assert share_of_right_words(trainer) < 0.3
    trainer.train()
    if sign > 0:
        assert share_of_right_words(trainer) > 0.5
    else:
        assert share_of_right_words(trainer) < 0.05


def test_one_rollout_is_in_memory_at_a_time(recipe_for, monkeypatch):
    """Its frames and image features are the largest thing in host memory."""
    made, alive = [], []
    empty = RolloutBuffer.empty

    def note(*arguments):
        gc.collect()
        alive.append(sum(reference() is not None for reference in made))
        buffer = empty(*arguments)
        made.append(weakref.ref(buffer))
        return buffer

    monkeypatch.setattr(RolloutBuffer, "empty", note)
    trainer_for(recipe_for(use_peft=True)).train()
    assert alive == [0, 0, 0]


def test_ddp_is_told_of_layers_that_are_never_used(recipe_for, monkeypatch):
    for settings in ({}, {"use_peft": True, "overwrite": True}):
        recipe = recipe_for(**settings)
        assert trainer_for(recipe).accelerator.ddp_handler is None
        policy = fresh_policy(recipe)
        policy.family = dataclasses.replace(policy.family, skips_layers=True)
        recipe = recipe_for(**settings, overwrite=True) if not settings else recipe
        handler = trainer_for(recipe, policy).accelerator.ddp_handler
        assert (handler is not None) == (not policy.vision_is_frozen)
        assert handler is None or handler.find_unused_parameters


def test_same_recipe_and_seed_give_the_same_metrics(recipe_for, tmp_path):
    runs = []
    for name in ("one", "two"):
        recipe = recipe_for(output_dir=str(tmp_path / name))
        trainer_for(recipe).train()
        runs.append(without_times(metrics_of(recipe)))
    assert runs[0] == runs[1]
    other = recipe_for(output_dir=str(tmp_path / "three"), seed=1)
    trainer_for(other).train()
    assert without_times(metrics_of(other)) != runs[0]


def test_metrics_have_the_documented_keys_and_numbers(recipe_for):
    recipe = recipe_for()
    trainer_for(recipe).train()
    metrics = metrics_of(recipe)
    keys = (
        "timesteps episode_return episode_length success_rate reached_rate grasped_rate "
        "lifted_rate policy_loss value_loss entropy approx_kl clip_fraction explained_variance "
        "first_ratio_error grad_norm learning_rate words_per_s rollout_s update_s "
        "physics_share rendering_share model_share waiting_share"
    )
    for row in metrics:
        assert set(keys.split()) <= set(row)
        assert all(np.isfinite(row[key]) for key in keys.split())
        assert sum(row["words"].values()) == pytest.approx(1)
    assert [row["timesteps"] for row in metrics] == [32, 64, 96]


def test_the_last_rollout_is_as_short_as_it_must_be(recipe_for):
    recipe = recipe_for(total_timesteps=70)
    trainer_for(recipe).train()
    assert [row["timesteps"] for row in metrics_of(recipe)] == [32, 64, 72]  # 4 at a time


def test_linear_schedule_falls_to_zero_for_both_learning_rates(recipe_for):
    recipe = recipe_for(lr_schedule="linear", learning_rate=1e-3, value_learning_rate=2e-3)
    trainer = trainer_for(recipe)
    seen = []
    trainer.optimizer.optimizer.register_step_pre_hook(
        lambda *_: seen.append([g["lr"] for g in trainer.optimizer.param_groups])
    )
    trainer.train()
    logged = [row["learning_rate"] for row in metrics_of(recipe)]
    assert logged == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])
    assert seen[0] == [1e-3, 2e-3]
    assert seen[-1] == pytest.approx([1e-3 / 3, 2e-3 / 3])


@pytest.mark.parametrize("use_peft", [False, True], ids=["full", "lora"])
def test_resumed_run_goes_on_as_if_nothing_had_happened(recipe_for, tmp_path, use_peft):
    settings = {
        "save_freq": 32,
        "num_eval_episodes": 2,
        "eval_freq": 64,
        "use_peft": use_peft,
    }
    straight = recipe_for(output_dir=str(tmp_path / "straight"), **settings)
    whole = trainer_for(straight)
    whole.train()

    settings["output_dir"] = str(tmp_path / "stopped")
    stopped = recipe_for(**settings)
    first = trainer_for(stopped)
    step = PPOTrainer.update

    def die_in_the_third_update(self, rollout):
        if self.updates == 2:
            raise KeyboardInterrupt
        return step(self, rollout)

    first.update = die_in_the_third_update.__get__(first)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    resumed_recipe = recipe_for(resume_from="latest", **settings)
    folder = RunFolders(resumed_recipe).resume_folder(resumed_recipe)
    assert folder.name == "vlm-agent_step64"
    resumed = trainer_for(resumed_recipe, VLMPolicy.from_pretrained(folder))
    resumed.resume()
    resumed.train()
    assert without_times(metrics_of(resumed_recipe)) == without_times(metrics_of(straight))
    for a, b in zip(whole.policy.parameters(), resumed.policy.parameters(), strict=True):
        assert torch.equal(a, b)
    assert resumed.evaluator.history == whole.evaluator.history


def test_what_an_abandoned_branch_left_is_not_taken_for_the_runs_own(recipe_for, monkeypatch):
    """A run goes on at 32 timesteps though it had been at 96, and does worse from there on."""
    settings = {"save_freq": 32, "num_eval_episodes": 2, "eval_freq": 64}
    recipe = recipe_for(**settings)
    quality = iter([0.8, 0.9, 0.8, 0.5, 0.7, 0.6])
    summarize = evaluator_module.summarize
    monkeypatch.setattr(
        evaluator_module,
        "summarize",
        lambda *what, **about: summarize(*what, **about) | {"success_rate": next(quality)},
    )
    trainer_for(recipe).train()
    folders = RunFolders(recipe)

    def left() -> tuple[list[str], list[str], float]:
        best = json.loads((folders.best / "trainer_state.json").read_text())
        evaluations = sorted(path.stem for path in (folders.run / "evaluations").iterdir())
        steps = [path.name.removeprefix("vlm-agent_step") for path in folders.steps()]
        return steps, evaluations, best["success_rate"]

    assert left() == (["32", "64", "96"], ["0", "64", "96"], 0.9)
    (folders.run / "evaluations" / "of-my-own.json").touch()
    again = recipe_for(resume_from=str(folders.step(32)), total_timesteps=160, **settings)
    resumed = trainer_for(again, VLMPolicy.from_pretrained(folders.step(32)))
    resumed.resume()
    assert left() == (["32"], ["0", "of-my-own"], 0.9)  # the best until there is another
    resumed.train()
    every = ["32", "64", "96", "128", "160"]
    assert left() == (every, ["0", "128", "160", "64", "of-my-own"], 0.7)
    assert [e["success_rate"] for e in resumed.evaluator.history] == [0.8, 0.5, 0.7, 0.6]
    again = recipe_for(resume_from="latest", total_timesteps=161, **settings)
    resumed = trainer_for(again, VLMPolicy.from_pretrained(folders.step(160)))
    resumed.resume()
    assert resumed.best[0] == 0.7


def test_best_is_kept_by_success_and_then_return(recipe_for, monkeypatch):
    recipe = recipe_for(num_eval_episodes=1)
    trainer = trainer_for(recipe)
    results = iter([(0.0, 5.0), (0.5, 1.0), (0.5, 0.5), (0.5, 2.0), (0.5, 2.0), (0.2, 9.0)])
    kept = []

    def fake_summary(records, words, **about):
        success, episode_return = next(results)
        return {**about, "success_rate": success, "mean_return": episode_return, "episodes": []}

    monkeypatch.setattr(evaluator_module, "summarize", fake_summary)
    for _ in range(6):
        trainer.timesteps += 1
        trainer.evaluate()
        state = json.loads((RunFolders(recipe).best / "trainer_state.json").read_text())
        kept.append(state["timesteps"])
    assert kept == [1, 2, 2, 4, 4, 4]  # a tie keeps the earlier one


def test_the_films_show_one_episode_before_and_after(recipe_for, monkeypatch):
    """One that was solved only after training, if there is any."""
    trainer = trainer_for(recipe_for(num_eval_episodes=3))
    solved = iter([(False, True, False), (True, True, True), (False, True, True)])

    def fake_play(*arguments):
        return [
            Episode(7 + n, [trainer.timesteps, n], 1.0, success)
            for n, success in enumerate(next(solved))
        ]

    monkeypatch.setattr(evaluator_module, "evaluate_over_ranks", fake_play)
    for trainer.timesteps in (0, 4, 6):
        trainer.evaluate()
    trainer.evaluator.save_examples()
    before, after = (
        load_episode(path)[0] for path in (trainer.folders.before, trainer.folders.after)
    )
    assert (before, after) == (Episode(9, (0, 2)), Episode(9, (6, 2)))
    played = read_result(trainer.folders.evaluation(4))
    assert [episode["success"] for episode in played["episodes"]] == [True] * 3


def test_an_existing_run_is_neither_overwritten_nor_mixed_up(recipe_for):
    recipe = recipe_for(save_freq=32)
    trainer_for(recipe).train()
    before = metrics_of(recipe)
    with pytest.raises(UserError, match="there is a run 'vlm-agent' already.*--overwrite"):
        RunFolders(recipe).prepare(recipe)
    assert metrics_of(recipe) == before
    assert [p.name for p in RunFolders(recipe).steps()] == [
        "vlm-agent_step32",
        "vlm-agent_step64",
        "vlm-agent_step96",
    ]
    resumed = recipe_for(overwrite=True, resume_from="latest")
    RunFolders(resumed).prepare(resumed)
    assert len(RunFolders(resumed).steps()) == 3  # resuming wins over overwriting
    again = recipe_for(overwrite=True)
    RunFolders(again).prepare(again)
    assert RunFolders(again).steps() == []
    assert not Path(RunFolders(again).metrics).exists()


def test_resuming_another_world_or_policy_is_refused(recipe_for):
    recipe = recipe_for(save_freq=96)
    trainer = trainer_for(recipe)
    trainer.train()
    folder = RunFolders(recipe).steps()[-1]
    changed = {
        "value_head_width": 8,
        "horizon": 7,
        "gamma": 0.5,
        "num_envs": 5,
        "seed": 1,
        "prompt_template": "prompts/guided.jinja",
    }
    with pytest.raises(UserError) as caught:
        check_same_run(folder, trainer.policy, recipe_for(**changed))
    for key in changed:
        assert key in str(caught.value)
    check_same_run(folder, trainer.policy, recipe_for(learning_rate=1e-5, n_epochs=9))


def test_resuming_finds_the_runs_own_checkpoints_only(recipe_for, tmp_path):
    recipe = recipe_for(save_freq=96)
    trainer_for(recipe).train()
    folder = RunFolders(recipe).steps()[-1]

    def resume_folder(**settings):
        wanted = recipe_for(**settings)
        return RunFolders(wanted).resume_folder(wanted)

    assert resume_folder() is None
    assert resume_folder(resume_from="latest") == resume_folder(resume_from=str(folder)) == folder
    with pytest.raises(UserError, match="resume_from: no checkpoint.* in '/nowhere'"):
        resume_folder(resume_from="/nowhere")
    with pytest.raises(UserError, match="resume_from: there is no checkpoint"):
        resume_folder(resume_from="latest", run_name="never-run")
    with pytest.raises(UserError, match="is no checkpoint of the run 'other'"):
        resume_folder(resume_from=str(folder), run_name="other")
    (folder / "optimizer.pt").unlink()  # as a warm start leaves it
    with pytest.raises(UserError, match=rf"no checkpoint of a run of PPO in '{folder}'"):
        resume_folder(resume_from="latest")


def test_a_run_does_not_delete_the_model_it_starts_from(recipe_for):
    recipe = recipe_for(save_freq=96)
    trainer_for(recipe).train()
    folder = RunFolders(recipe).steps()[-1]
    again = recipe_for(overwrite=True, model_name_or_path=str(folder))
    with pytest.raises(UserError, match="would delete its own model"):
        RunFolders(again).prepare(again)
    assert folder.is_dir()
