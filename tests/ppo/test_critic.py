"""A critic that reads the scene's state, and passes in which the value head alone learns."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from tests.short_runs import fresh_policy, metrics_of, trainer_for
from tests.worlds import ColourPool
from vlm_agent.common.errors import UserError
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.ppo.advantages import generalized_advantages
from vlm_agent.ppo.critic import fit_value_head
from vlm_agent.ppo.run import run_imitation
from vlm_agent.ppo.trainer import PPOTrainer
from vlm_agent.rollout.collector import RolloutCollector
from vlm_agent.rollout.samples import Samples
from vlm_agent.runs.compatibility import check_same_policy
from vlm_agent.world.observations import STATE, Observations

STATE_CRITIC = {"value_input": "state", "value_head_width": 16}


class StatePool(ColourPool):
    """Tells a critic the colour, and how many words have been said."""

    def _observe(self, slot: int) -> Observations:
        state = np.zeros(len(STATE), np.float32)
        state[:2] = self._colour(slot), len(self._episodes[slot][1])
        return dataclasses.replace(super()._observe(slot), states=state)


def with_states(observations: Observations, seed: int = 0) -> Observations:
    shape = (len(observations), len(STATE))
    states = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return dataclasses.replace(observations, states=states)


def state_trainer(recipe) -> PPOTrainer:
    trainer = trainer_for(recipe)
    trainer.pool = trainer.collector.pool = StatePool(recipe.rollout.num_envs)
    return trainer


@torch.no_grad()
def output_of(policy: VLMPolicy, observations: Observations):
    return policy(**policy.encode(observations))


def test_only_the_value_depends_on_the_state(make_policy, make_observations):
    policy = make_policy(**STATE_CRITIC).eval()
    torch.nn.init.normal_(policy.value_head.output.weight)
    seen = make_observations(3)
    one, two = (output_of(policy, with_states(seen, seed)) for seed in (0, 1))
    assert torch.equal(one.logits, two.logits)
    assert not torch.isclose(one.values, two.values).any()
    nothing = output_of(policy, seen)  # as where a policy is only used
    assert torch.equal(nothing.logits, one.logits)
    assert nothing.values.isnan().all()
    blind = make_policy(value_head_width=16).eval()
    torch.nn.init.normal_(blind.value_head.output.weight)
    values = [output_of(blind, with_states(seen, seed)).values for seed in (0, 1)]
    assert torch.equal(*values)


def test_a_saved_policy_keeps_its_critic(make_policy, make_observations, tmp_path):
    policy = make_policy(**STATE_CRITIC).eval()
    torch.nn.init.normal_(policy.value_head.output.weight)
    policy.save_pretrained(tmp_path)
    again = VLMPolicy.from_pretrained(tmp_path).eval()
    seen = with_states(make_observations(3))
    assert torch.equal(output_of(policy, seen).values, output_of(again, seen).values)


def test_with_another_input_the_value_head_is_new(make_policy, recipe_for):
    policy = make_policy()
    torch.nn.init.normal_(policy.value_head.output.weight)
    backbone = [p.clone() for p in policy.actor_parameters()]
    wanted = recipe_for(**STATE_CRITIC)
    check_same_policy("init_from: x", policy, wanted)  # may be another critic, of another width
    policy.train_as(wanted.model)
    head = policy.value_head
    assert head.hidden[0].weight.shape == (16, len(STATE))
    assert not head.output.weight.any()
    assert all(map(torch.equal, backbone, policy.actor_parameters()))
    policy.train_as(wanted.model)
    assert policy.value_head is head  # what it has learnt stays
    with pytest.raises(UserError, match="value_head_width"):
        check_same_policy("x", policy, recipe_for(value_input="state", value_head_width=8))


def test_demonstrations_cannot_teach_it(recipe_for):
    with pytest.raises(UserError, match="value_input: 'state' is for PPO"):
        run_imitation(recipe_for(**STATE_CRITIC))


def test_rollouts_keep_the_state_of_each_moment(recipe_for):
    recipe = recipe_for(**STATE_CRITIC)
    policy = fresh_policy(recipe)
    torch.nn.init.normal_(policy.value_head.output.weight)
    collector = RolloutCollector(StatePool(4), seed=0, rank=0, groups=2)
    buffer, _ = collector.collect_rollout(policy.eval(), 6)
    states = buffer.observations.states
    assert states.shape == (6, 4, len(STATE))
    reds = buffer.observations.frames[..., 0, 0, 0] == ColourPool.COLOURS[0][0]
    assert np.array_equal(states[..., 0] == 0, reds)
    assert states[:, 0, 1].tolist() == [0, 1, 2, 3, 0, 1]  # an episode has four words
    with torch.no_grad():
        values = policy.value_head(torch.from_numpy(states)).numpy()
    np.testing.assert_allclose(buffer.values, values, rtol=1e-5)
    # Where an episode was cut off, its value is of the state it was cut off in: four words said.
    assert buffer.truncated[3].all()
    np.testing.assert_allclose(buffer.next_values[2], buffer.values[3], rtol=1e-5)
    assert not np.isclose(buffer.next_values[3], buffer.values[4]).any()


def test_the_targets_may_have_a_lambda_of_their_own(recipe_for):
    trainer = trainer_for(recipe_for(gae_lambda=0.5, value_lambda=1.0))
    rollout, _ = trainer.collector.collect_rollout(trainer.policy.eval(), 8)
    rollout.values[:] = np.random.default_rng(0).normal(size=rollout.values.shape)
    watched = (
        rollout.rewards,
        rollout.values,
        rollout.next_values,
        rollout.terminated,
        rollout.truncated,
        0.99,
    )
    advantages, returns = trainer.improve._advantages(rollout, rollout.rewards)
    assert np.array_equal(advantages, generalized_advantages(*watched, 0.5)[0])
    assert np.array_equal(returns, generalized_advantages(*watched, 1.0)[1])
    trainer.improve.ppo = recipe_for(gae_lambda=0.5).ppo
    advantages, returns = trainer.improve._advantages(rollout, rollout.rewards)
    assert np.allclose(returns - rollout.values, advantages)


@pytest.mark.parametrize("critic", [{}, STATE_CRITIC], ids=["hidden", "state"])
def test_value_epochs_teach_the_value_head_alone(recipe_for, critic):
    recipe = recipe_for(**critic, batch_size=16)
    policy = fresh_policy(recipe)
    collector = RolloutCollector(StatePool(8), seed=0, rank=0)
    buffer, _ = collector.collect_rollout(policy.eval(), 16)
    backbone = [p.clone() for p in policy.actor_parameters()]
    accelerator = Accelerator(cpu=True)
    samples = Samples(policy, buffer, accelerator.autocast)
    returns = 3.0 * (buffer.observations.frames[..., 0, 0, 0] > 100) - 1.0  # follow the colour
    explained = fit_value_head(
        policy, accelerator, samples, returns, ppo=recipe.ppo, epochs=20, learning_rate=1e-2
    )
    assert explained > 0.9
    output = output_of(policy, buffer.observations.flatten())
    assert abs(output.values.numpy() - returns.reshape(-1)).max() < 1
    assert all(map(torch.equal, backbone, policy.actor_parameters()))


def test_moments_without_a_target_teach_nothing(recipe_for):
    recipe = recipe_for(batch_size=16)
    policy = fresh_policy(recipe)
    buffer, _ = RolloutCollector(StatePool(8), seed=0, rank=0).collect_rollout(policy.eval(), 16)
    accelerator = Accelerator(cpu=True)
    samples = Samples(policy, buffer, accelerator.autocast)

    def fit(targets: np.ndarray) -> float:
        how = {"ppo": recipe.ppo, "epochs": 20, "learning_rate": 1e-2}
        return fit_value_head(policy, accelerator, samples, targets, **how)

    before = [p.clone() for p in policy.head_parameters()]
    assert fit(np.full((16, 8), np.nan)) == 0.0
    assert all(map(torch.equal, before, policy.head_parameters()))
    returns = 3.0 * (buffer.observations.frames[..., 0, 0, 0] > 100) - 1.0  # follow the colour
    returns[5:] = np.nan
    assert fit(returns) > 0.9


@pytest.mark.parametrize("epochs", [0, 10])
def test_ppo_gives_the_value_head_further_passes(recipe_for, epochs):
    """With as good as no learning rate in the update itself, only they teach it."""
    recipe = recipe_for(
        **STATE_CRITIC, value_epochs=epochs, value_learning_rate=1e-2, n_epochs=1, value_coef=0
    )
    trainer = state_trainer(recipe)
    trainer.train()
    assert bool(trainer.policy.value_head.output.weight.any()) == (epochs > 0)
    assert np.isfinite(metrics_of(recipe)[-1]["value_loss"])
