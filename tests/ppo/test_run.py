"""Whole runs from recipe to the last checkpoint, in a small world."""

import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from tests.conftest import ROOT
from tests.short_runs import fresh_policy, metrics_of, trainer_for, without_times
from tests.worlds import ColourPool, of
from vlm_agent import Callback, PPOTrainer, VLMPolicy
from vlm_agent.common.errors import UserError
from vlm_agent.distributed.launch import check_device, check_quantized
from vlm_agent.runs.begin import Run, start_policy
from vlm_agent.runs.checkpoints import load_policy
from vlm_agent.runs.folders import RunFolders, settled


def run(recipe) -> PPOTrainer:
    """As ``run_training`` does, in the world of colours."""
    begun = Run(recipe)
    folder = begun.folders.resume_folder(recipe)
    pool = of(ColourPool(recipe.rollout.num_envs), recipe)
    policy = start_policy(recipe) if folder is None else VLMPolicy.from_pretrained(folder)
    trainer = PPOTrainer(policy, pool, recipe, run=begun)
    if folder is not None:
        trainer.resume(folder)
    trainer.train()
    return trainer


@pytest.mark.parametrize("form", ["full", "lora", "lora from an adapter"])
def test_a_resumed_run_stays_tied_to_where_the_first_one_started(recipe_for, tmp_path, form):
    settings = {"kl_coef": 0.3, "kl_estimator": "k3", "save_freq": 32, "use_peft": form != "full"}
    if form == "lora from an adapter":
        start = recipe_for(use_peft=True, run_name="start", total_timesteps=32, save_freq=32)
        settings["init_from"] = str(run(start).folders.steps()[-1])
    straight = recipe_for(output_dir=str(tmp_path / "straight"), **settings)
    run(straight)
    stopped = {**settings, "output_dir": str(tmp_path / "stopped")}
    run(recipe_for(total_timesteps=64, **stopped))
    resumed = recipe_for(resume_from="latest", **stopped)
    run(resumed)
    assert without_times(metrics_of(resumed)) == without_times(metrics_of(straight))
    assert metrics_of(straight)[-1]["reference_kl"] > 1e-4


def test_a_resumed_runs_checkpoints_hold_the_recipe_they_were_written_by(recipe_for):
    run(recipe_for(save_freq=32, total_timesteps=32))
    changed = {"learning_rate": 7e-5, "gradient_checkpointing": True}  # what may change
    run(recipe_for(save_freq=32, resume_from="latest", **changed))
    folders = RunFolders(recipe_for()).steps()
    rates = [json.loads((f / "recipe.json").read_text())["learning_rate"] for f in folders]
    assert rates == [1e-3, 7e-5, 7e-5]
    settings = [json.loads((f / "policy.json").read_text())["model"] for f in folders]
    assert [s["gradient_checkpointing"] for s in settings] == [False, True, True]


def test_an_earlier_run_is_replaced_only_by_one_that_begins(recipe_for):
    recipe = recipe_for(total_timesteps=32, save_freq=32)
    run(recipe)
    (RunFolders(recipe).run / "of-the-earlier-run").touch()
    before = sorted(RunFolders(recipe).run.rglob("*"))

    def is_there() -> bool:
        folders = RunFolders(recipe)
        return sorted(folders.run.rglob("*")) == before and len(folders.steps()) == 1

    with pytest.raises(UserError, match="report_to: 'nowhere:Tracker'"):
        run(recipe_for(overwrite=True, report_to=["nowhere:Tracker"]))
    assert is_there()
    with pytest.raises(UserError, match="no policy in the folder"):
        run(recipe_for(overwrite=True, init_from="/nowhere"))
    assert is_there()
    trainer = trainer_for(recipe_for(overwrite=True, total_timesteps=32))
    assert is_there()  # robots, model and trackers are there, and nothing has been written
    trainer.train()
    assert not is_there()


def test_a_start_that_learnt_something_else_is_told(recipe_for, caplog):
    recipe = recipe_for(total_timesteps=32, save_freq=32)
    run(recipe)
    start = str(RunFolders(recipe).steps()[-1])
    start_policy(recipe_for(init_from=start))
    assert not caplog.records
    start_policy(recipe_for(init_from=start, horizon=99, learning_rate=0.1))
    assert not caplog.records
    other = {"prompt_template": "prompts/hand.jinja", "robot": "Sawyer"}
    other["action_words"] = ["north", *recipe.template.words[1:]]
    start_policy(recipe_for(init_from=start, **other))
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith(f"init_from: {start} has learnt with another robot (Panda; now Sawyer)")
    assert "now north, " in said
    assert "prompt_template; much of what it knows is probably lost" in said


def test_a_run_may_be_asked_for_more_words(recipe_for, tmp_path):
    whole = recipe_for(output_dir=str(tmp_path / "whole"))
    trainer_for(whole).train()
    parts = recipe_for(output_dir=str(tmp_path / "parts"))
    trainer = trainer_for(parts)
    trainer.train(32)
    assert trainer.timesteps == 32
    trainer.train(96)
    assert without_times(metrics_of(parts)) == without_times(metrics_of(whole))


def test_the_verbs_of_a_trainer_work_in_any_order(recipe_for, tmp_path):
    """Without ``train``, and with an evaluation between two rollouts, which changes nothing."""
    settings = {"num_eval_episodes": 2, "eval_freq": 10**6, "total_timesteps": 64}
    trained = trainer_for(recipe_for(output_dir=str(tmp_path / "trained"), **settings))
    trained.train()
    recipe = recipe_for(output_dir=str(tmp_path / "by hand"), **settings)
    trainer = trainer_for(recipe)
    for _ in range(2):
        rollout, _ = trainer.collect()
        trainer.evaluate()
        trainer.update(rollout)
    mine, theirs = (t.policy.parameters() for t in (trainer, trained))
    assert all(map(torch.equal, mine, theirs))
    assert VLMPolicy.from_pretrained(trainer.save()).words == trainer.policy.words


class Everything(Callback):
    """Notes what it is told, adds to the metrics and ends the run."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_train_begin(self, trainer):
        self.told.append("begin")

    def on_rollout_end(self, trainer, rollout, episodes):
        self.told.append(f"rollout {rollout.rewards.shape} {len(episodes)}")
        trainer.metrics["mine"] = trainer.timesteps

    def on_update_end(self, trainer, metrics):
        self.told.append(f"update {metrics['timesteps']}")
        trainer.should_stop = trainer.timesteps == 64

    def on_evaluate(self, trainer, evaluation):
        self.told.append(f"evaluated {len(evaluation.episodes)}")

    def on_save(self, trainer, folder):
        self.told.append(f"saved {folder.name}")

    def on_train_end(self, trainer):
        self.told.append("end")


def test_a_callback_from_outside_is_told_of_everything(recipe_for):
    recipe = recipe_for(num_eval_episodes=2, eval_freq=64, save_freq=64)
    callback = Everything()
    trainer_for(recipe, None, callback).train()
    assert callback.told == [
        "begin",
        "evaluated 2",
        "rollout (8, 4) 8",
        "update 32",
        "rollout (8, 4) 8",
        "update 64",
        "evaluated 2",
        "saved vlm-agent_step64",
        "end",
    ]
    assert [row["mine"] for row in metrics_of(recipe)] == [32, 64]


SHARED = {
    "by Megatron": ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "MEGATRON_LM, which is not supported"),
    "by FSDP 1": ({"ACCELERATE_USE_FSDP": "true"}, "set fsdp_version: 2"),
    "without a launcher": ({"ACCELERATE_USE_DEEPSPEED": "true"}, "start it by accelerate launch"),
    "on a CPU": (
        {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "LOCAL_RANK": "0"}
        | {"ACCELERATE_USE_CPU": "true"},
        "leave use_cpu out",
    ),
}


@pytest.mark.parametrize("how", SHARED)
def test_a_launch_that_shares_the_model_otherwise_is_refused(recipe_for, monkeypatch, how):
    environ, said = SHARED[how]
    for variable, value in environ.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=said):
        trainer_for(recipe_for())


def test_quantised_weights_are_not_divided(monkeypatch):
    accelerator = SimpleNamespace(distributed_type="DistributedType.FSDP")
    with pytest.raises(UserError, match=r"load_in_4bit.*zero2\.yaml"):
        check_quantized(accelerator, is_quantized=True)
    check_quantized(accelerator, is_quantized=False)


def test_a_large_model_does_not_run_on_the_cpu_beside_a_gpu(monkeypatch):
    accelerator = SimpleNamespace(device=torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match=r"'a/model': use accelerate_configs/single_gpu\.yaml"):
        check_device(accelerator, "a/model")
    check_device(accelerator, "tiny")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_device(accelerator, "a/model")


def test_a_run_goes_on_by_itself_if_there_is_something_to_go_on_from(recipe_for):
    recipe = recipe_for(resume_from="auto", num_eval_episodes=0)
    begun = settled(recipe)
    assert begun.run.resume_from is None
    folders = RunFolders(recipe)
    folders.run.mkdir(parents=True)
    (folders.run / "metrics.jsonl").write_text("")  # cut off before its first checkpoint
    folders.check_new(begun)
    trainer_for(settled(recipe)).train()
    assert settled(recipe).run.resume_from == "latest"
    assert settled(dataclasses.replace(recipe, run=begun.run)) == begun


def test_a_run_has_one_owner(recipe_for, tmp_path):
    recipe = recipe_for(overwrite=True)
    lock = tmp_path / "runs" / ".vlm-agent.lock"
    lock.parent.mkdir()
    script = (
        "import sys, pathlib; from vlm_agent.common.locks import hold; "
        f"hold(pathlib.Path({str(lock)!r}), ''); print('held', flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    owner = subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe, cwd=ROOT)
    assert owner.stdout.readline() == b"held\n"
    for other in (recipe, recipe_for(resume_from="latest")):
        with pytest.raises(UserError, match="run_name: another process is at the run 'vlm-agent'"):
            Run(other)
    owner.kill()
    owner.wait()
    trainer_for(recipe).train()
    trainer_for(recipe).train()  # this process has it already


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"advantage": "group", "group_size": 2}, "is for advantage: gae"),
        ({"recompute_log_probs": True}, "leave one of them out"),
    ],
)
def test_rollouts_ahead_with_what_they_do_not_go_with_are_refused(recipe_for, settings, said):
    with pytest.raises(UserError, match=f"async_rollout: .*{said}"):
        recipe_for(async_rollout=1, **settings)


def test_gradients_that_accelerate_would_accumulate_are_refused(recipe_for):
    for settings in ({"gradient_accumulation_steps": 4}, {}):
        AcceleratorState._reset_state(reset_partial_state=True)
        if settings:
            with pytest.raises(UserError, match=r"steps: 4; leave it out and set micro_batch_size"):
                trainer_for(recipe_for(), fresh_policy(recipe_for()), **settings)
        else:
            trainer_for(recipe_for())


def test_a_policy_that_does_not_say_its_task_cannot_be_evaluated(policy, tmp_path):
    policy.recipe = {"gamma": 0.9}
    policy.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="does not say in which task it was trained"):
        load_policy(tmp_path)


def test_settings_that_a_policys_recipe_lacks_are_their_defaults(policy, tmp_path):
    policy.recipe = {"task": "Lift", "horizon": 7, "of_another_time": 1}
    policy.save_pretrained(tmp_path)
    _, env, gamma = load_policy(tmp_path)
    assert (env.task, env.horizon, env.step_size, gamma) == ("Lift", 7, 0.03, 0.99)


class Hurried(Callback):
    """Ends the run after its first update, with figures as NumPy and torch give them."""

    def on_update_end(self, trainer, metrics):
        metrics |= {"mine": np.float32(0.5), "ours": torch.tensor(2.0)}
        trainer.should_stop = True


def test_a_run_that_a_callback_ends_is_evaluated_and_saved(recipe_for):
    recipe = recipe_for(num_eval_episodes=2, eval_freq=10**6)
    trainer = trainer_for(recipe, None, Hurried())
    trainer.train()
    assert [one["timesteps"] for one in trainer.evaluations] == [0, 32]
    assert [folder.name for folder in trainer.folders.steps()] == ["vlm-agent_step32"]
    (row,) = metrics_of(recipe)
    assert (row["mine"], row["ours"]) == (0.5, 2.0)


def test_a_run_of_the_same_name_that_began_meanwhile_is_not_replaced(recipe_for):
    recipe = recipe_for(total_timesteps=32, save_freq=32)
    one, other = trainer_for(recipe), trainer_for(recipe)
    one.train()
    with pytest.raises(UserError, match="there is a run 'vlm-agent' already"):
        other.train()
    assert len(metrics_of(recipe)) == len(one.folders.steps()) == 1


def test_what_is_saved_before_training_is_still_there_after_it(recipe_for):
    trainer = trainer_for(recipe_for(total_timesteps=32))
    saved = trainer.save()
    trainer.train()
    assert saved.is_dir()


class Looks(Callback):
    """Evaluates where the run begins, as a user's callback may."""

    def on_train_begin(self, trainer):
        trainer.evaluate()


def test_a_resumed_runs_best_policy_outlives_a_look_at_it(recipe_for):
    settings = {"num_envs": 2, "rollout_steps": 4, "n_epochs": 1, "num_eval_episodes": 2}
    settings |= {"total_timesteps": 8, "eval_freq": 8, "save_freq": 8}
    returns = iter([5.0, 3.0, 1.0])

    class Worse(ColourPool):
        def reset(self, episodes):
            if any(episode.seed % 4 == 1 for episode in episodes.values()):
                self.earned = next(returns)
            return super().reset(episodes)

        def _reward(self, slot, action):
            return self.earned

    trainer_for(recipe_for(**settings), pool=Worse(2)).train()
    again = recipe_for(resume_from="latest", **settings)
    folder = RunFolders(again).resume_folder(again)
    resumed = trainer_for(again, VLMPolicy.from_pretrained(folder), Looks(), pool=Worse(2))
    resumed.resume(folder)
    resumed.train()
    best = json.loads((resumed.folders.best / "trainer_state.json").read_text())
    assert best["timesteps"] == 0


def test_what_does_not_belong_together_is_refused(recipe_for):
    recipe = recipe_for(save_freq=32)
    with pytest.raises(UserError, match="the policy differs from the recipe in use_peft"):
        trainer_for(recipe, fresh_policy(recipe_for(use_peft=True)))
    lift = of(ColourPool(4), recipe_for(task="Lift", horizon=7))
    with pytest.raises(UserError, match="environments differ from the recipe in task, horizon: "):
        PPOTrainer(fresh_policy(recipe), lift, recipe)
    with pytest.raises(UserError, match="is no instance of a subclass of Callback"):
        trainer_for(recipe, None, Everything)
    trainer_for(recipe).train(32)
    again = recipe_for(resume_from="latest")
    folder = RunFolders(again).resume_folder(again)
    with pytest.raises(UserError, match=r"not been resumed: .* trainer.resume\(folder\) first"):
        trainer_for(again, VLMPolicy.from_pretrained(folder)).train()
    assert len(metrics_of(again)) == 1
    with pytest.raises(UserError, match="is of 4 environments per process, and the pool has 2"):
        trainer_for(again, VLMPolicy.from_pretrained(folder), pool=ColourPool(2)).resume(folder)
