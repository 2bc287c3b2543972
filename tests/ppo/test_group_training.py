"""GRPO and RLOO from the recipe to the weights, on worlds that need no robot."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.short_runs import fresh_policy, metrics_of, trainer_for, without_times
from tests.worlds import ColourPool, ScriptedPool, UnequalPool
from vlm_agent import Callback, VLMPolicy
from vlm_agent.common.errors import UserError
from vlm_agent.runs.compatibility import check_same_run
from vlm_agent.runs.folders import RunFolders

GROUP = {"advantage": "group", "group_size": 4, "group_rounds": 2, "entropy_coef": 0.0}


def unequal(recipe) -> UnequalPool:
    return UnequalPool(recipe.rollout.num_envs)


def weights_of(trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.policy.parameters()])


class Stop(Callback):
    """Ends the process, so to speak, when a rollout is there and not yet learnt from."""

    def on_rollout_end(self, trainer, rollout, episodes):
        if trainer.timesteps > 80:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "how",
    [
        {},
        pytest.param(
            {"group_baseline": "leave_one_out", "group_std": False}, marks=pytest.mark.long
        ),
    ],
    ids=["GRPO", "RLOO"],
)
def test_groups_teach_which_word_belongs_to_which_colour(recipe_for, how):
    """Every member of a group sees the same colours; each word counts for its whole episode."""
    learning = {"num_envs": 16, "batch_size": 32, "n_epochs": 4, "learning_rate": 2e-3}
    recipe = recipe_for(**GROUP | learning | how, total_timesteps=448)
    trainer = trainer_for(recipe, pool=ColourPool(16, horizon=2))
    trainer.train()
    rows = metrics_of(recipe)
    assert rows[0]["episode_return"] < 2 * 0.3  # chance is 1/8 for each of two words
    assert rows[-1]["episode_return"] > 2 * 0.7
    assert max(row["first_ratio_error"] for row in rows) < 1e-5


@pytest.mark.parametrize("form", [{}, {"use_peft": True}, {"recompute_log_probs": True}])
def test_only_words_that_were_said_are_counted_and_learnt(recipe_for, form):
    recipe = recipe_for(**GROUP | form, batch_size=6, total_timesteps=60)
    trainer = trainer_for(recipe, pool=unequal(recipe))
    head = [p.clone() for p in trainer.policy.value_head.parameters()]
    seen: list[int] = []
    trainer.policy.register_forward_pre_hook(
        lambda module, args, inputs: seen.append(len(inputs["input_ids"]) * module.training),
        with_kwargs=True,
    )
    trainer.train()
    rows = metrics_of(recipe)
    for before, row in zip([{"timesteps": 0}, *rows], rows, strict=False):
        assert row["timesteps"] - before["timesteps"] == pytest.approx(row["episode_length"] * 8)
        assert "value_loss" not in row
        assert "explained_variance" not in row
        assert row["first_ratio_error"] < 1e-5
        assert 0 <= row["flat_groups"] <= 1
        assert row["group_deviation"] > 0
        assert sum(row["words"].values()) == pytest.approx(1)
    # The run ends with the first rollout that passes its words.
    assert rows[-2]["timesteps"] < 60 <= rows[-1]["timesteps"]
    assert max(seen) <= 6
    passes = 2 + ("recompute_log_probs" in form)  # two epochs, and one to score the words again
    assert passes * rows[-1]["timesteps"] <= sum(seen) <= passes * rows[-1]["timesteps"] + 6
    assert all(map(torch.equal, head, trainer.policy.value_head.parameters()))


def test_one_step_is_the_gradient_of_advantage_times_log_probability(recipe_for):
    recipe = recipe_for(**GROUP, batch_size=99, n_epochs=1, max_grad_norm=1e9)
    trainer = trainer_for(recipe, pool=unequal(recipe))
    rollout, _ = trainer.collect()
    steps, envs = np.nonzero(rollout.said)
    assert len(steps) < rollout.said.size
    rounds = (np.cumsum(rollout.terminated, 0) - rollout.terminated)[steps, envs]
    returns = np.zeros((2, 4))
    for word, step, env in zip(rounds, steps, envs, strict=True):
        returns[word, env] += rollout.rewards[step, env]
    better = returns - returns.mean(1, keepdims=True)
    better /= returns.std(1, keepdims=True)
    inputs = trainer.policy.encode(rollout.observations[steps, envs])
    log_probs = trainer.policy(**inputs).logits.log_softmax(-1)
    said = torch.from_numpy(rollout.actions[steps, envs])
    chosen = log_probs[torch.arange(len(said)), said]
    loss = -(chosen * torch.from_numpy(better[rounds, envs]).float()).mean()
    learning = [p for p in trainer.policy.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(loss, learning, allow_unused=True)
    taken: list = []
    trainer.learner.optimizer.optimizer.register_step_pre_hook(
        lambda *_: taken.extend(p.grad.clone() for p in learning)
    )
    trainer.update(rollout)
    assert any(gradient.any() for gradient in wanted)
    for mine, theirs in zip(wanted, taken, strict=True):
        assert (mine - theirs).abs().max() < 1e-6 + 1e-5 * theirs.abs().max()


def test_a_resumed_run_goes_on_as_if_nothing_had_happened(recipe_for, tmp_path):
    settings = {**GROUP, "save_freq": 40, "num_eval_episodes": 2, "eval_freq": 40}
    settings |= {"lr_schedule": "linear", "total_timesteps": 100}
    straight = recipe_for(output_dir=str(tmp_path / "straight"), **settings)
    whole = trainer_for(straight, pool=unequal(straight))
    whole.train()
    stopped = recipe_for(output_dir=str(tmp_path / "stopped"), **settings)
    first = trainer_for(stopped, None, Stop(), pool=unequal(stopped))
    with pytest.raises(KeyboardInterrupt):
        first.train()
    again = recipe_for(output_dir=str(tmp_path / "stopped"), resume_from="latest", **settings)
    folder = RunFolders(again).resume_folder(again)
    resumed = trainer_for(again, VLMPolicy.from_pretrained(folder), pool=unequal(again))
    resumed.resume(folder)
    assert 40 <= resumed.timesteps < 80
    resumed.train()
    rows = [without_times(metrics_of(recipe)) for recipe in (straight, again)]
    assert rows[0] == rows[1]
    assert len(rows[0]) > 3
    assert torch.equal(weights_of(whole), weights_of(resumed))
    assert resumed.evaluations == whole.evaluations


def test_a_run_that_learnt_by_a_critic_cannot_go_on_in_groups(recipe_for):
    recipe = recipe_for(save_freq=96)
    trainer_for(recipe).train()
    folder = RunFolders(recipe).steps()[-1]
    policy = VLMPolicy.from_pretrained(folder)
    with pytest.raises(UserError, match="differs in advantage .gae; now group., group_size"):
        check_same_run(folder, policy, recipe_for(**GROUP))


LOST = ["....", ".x..", "....", "x.tl"] * 3
"""Of two environments the episodes are lost, of the others they end in the fourth word."""


def pictures(inputs) -> list[float]:
    """A number of each picture, which tells how far its episode was."""
    return inputs["pixel_values"][::16, 0].tolist()


@pytest.mark.parametrize("advantage", ["gae", "group"])
def test_lost_episodes_are_counted_and_their_words_not_learnt(recipe_for, advantage):
    settings = {"advantage": advantage, "group_size": 4, "total_timesteps": 16, "n_epochs": 1}
    recipe = recipe_for(**settings, rollout_steps=4, scoring="action_head")
    trainer = trainer_for(recipe, pool=ScriptedPool(LOST))
    rollout, episodes = trainer.collect()
    assert trainer.metrics["lost_episodes"] == 2
    assert len(episodes) == 2
    # By a critic, all words but two are learnt; in groups, those of the two episodes left.
    assert rollout.valid.sum() == (14 if advantage == "gae" else 8)
    known = trainer.policy.encode(rollout.observations[np.nonzero(rollout.valid)])
    learnt: list[float] = []
    trainer.policy.register_forward_pre_hook(
        lambda module, args, inputs: learnt.extend(pictures(inputs)), with_kwargs=True
    )
    trainer.update(rollout)
    assert sorted(learnt) == sorted(pictures(known))


def test_what_was_lost_leaves_the_other_words_as_they_were(recipe_for):
    """The update of a rollout does not depend on anything that its lost words say."""
    updated = []
    for noise in (0.0, 5.0):
        recipe = recipe_for(rollout_steps=4, overwrite=True, value_epochs=2)
        trainer = trainer_for(recipe, pool=ScriptedPool(LOST))
        rollout, _ = trainer.collect()
        assert rollout.lost.sum() == 2
        rollout.next_values[rollout.lost] += noise
        rollout.rewards[rollout.lost] += noise
        rollout.log_probs[rollout.lost] += noise
        trainer.update(rollout)
        updated.append(weights_of(trainer))
    assert torch.equal(*updated)


def test_a_rollout_of_which_everything_was_lost_changes_nothing(recipe_for):
    recipe = recipe_for(**GROUP | {"group_rounds": 1})
    trainer = trainer_for(recipe, pool=ScriptedPool(["xxxx"]))
    before = weights_of(trainer)
    rollout, episodes = trainer.collect()
    assert (trainer.update(rollout), episodes) == ({}, [])
    assert trainer.metrics["lost_episodes"] == 4
    assert torch.equal(weights_of(trainer), before)


def test_the_critic_of_a_policy_learns_again_where_there_is_one(recipe_for):
    """A policy that groups have taught can be trained on by a critic."""
    recipe = recipe_for(**GROUP, total_timesteps=16)
    policy = fresh_policy(recipe)
    trainer_for(recipe, policy, pool=unequal(recipe)).train()
    before = [p.clone() for p in policy.value_head.parameters()]
    run = dataclasses.replace(recipe.run, run_name="later")
    later = dataclasses.replace(recipe_for(total_timesteps=32), run=run)
    trainer_for(later, policy).train(32)
    assert not all(map(torch.equal, before, policy.value_head.parameters()))
