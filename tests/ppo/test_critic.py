"""A critic that reads the scene's state, and passes in which the critic alone learns."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from tests.short_runs import collector_for, fresh_policy, metrics_of, rollout_of, trainer_for
from tests.worlds import ColourPool, ExpertPool, known, of
from vlm_agent import VLMPolicy
from vlm_agent.common.errors import TrainingError, UserError
from vlm_agent.imitation.trainer import ImitationTrainer
from vlm_agent.policy.heads import ValueHead
from vlm_agent.ppo.advantages import generalized_advantages
from vlm_agent.ppo.critic import ActorCritic, fit_critic, make_actor_critic
from vlm_agent.rollout.samples import Samples
from vlm_agent.runs.compatibility import check_same_policy
from vlm_agent.runs.folders import RunFolders
from vlm_agent.world.observations import Observations

STATE_CRITIC = {"value_input": "state", "value_head_width": 16}
SIZE = 3


class StatePool(ColourPool):
    """Tells a critic the colour, and how many words have been said."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs)
        self.state_size = SIZE

    def _observe(self, slot: int) -> Observations:
        state = np.zeros(SIZE, np.float32)
        state[:2] = self._colour(slot), len(self._episodes[slot][1])
        return dataclasses.replace(super()._observe(slot), states=state)


def with_states(observations: Observations, seed: int = 0) -> Observations:
    shape = (len(observations), SIZE)
    states = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return dataclasses.replace(observations, states=states)


def state_trainer(recipe):
    return trainer_for(recipe, pool=StatePool(recipe.rollout.num_envs))


def state_critic(policy: VLMPolicy) -> ActorCritic:
    """One that says something."""
    made = ActorCritic(policy, ValueHead(SIZE, 16)).eval()
    torch.nn.init.normal_(made.critic.output.weight)
    return made


@torch.no_grad()
def output_of(actor, observations: Observations):
    return actor(**actor.encode(observations))


def test_only_the_value_depends_on_the_state(make_policy, make_observations):
    policy = make_policy().eval()
    actor = state_critic(policy)
    seen = make_observations(3)
    one, two = (output_of(actor, with_states(seen, seed)) for seed in (0, 1))
    assert torch.equal(one.logits, two.logits)
    assert not torch.isclose(one.values, two.values).any()
    assert torch.equal(output_of(policy, seen).logits, one.logits)  # as where it is only used
    torch.nn.init.normal_(policy.value_head.output.weight)
    blind = [output_of(policy, with_states(seen, seed)).values for seed in (0, 1)]
    assert torch.equal(*blind)


def test_a_critic_without_its_state_is_an_error(make_policy, make_observations, recipe_for):
    with pytest.raises(UserError, match="or state_coef, but the environments do not tell"):
        state_critic(make_policy()).encode(make_observations(3))
    with pytest.raises(UserError, match=r"make them with recipe\.make_pool"):
        trainer_for(recipe_for(**STATE_CRITIC))


@pytest.mark.parametrize(
    "heads",
    [
        pytest.param(STATE_CRITIC, marks=pytest.mark.long),
        pytest.param({"state_coef": 1.0}, marks=pytest.mark.long),
        {**STATE_CRITIC, "state_coef": 0.5},
    ],
)
def test_a_resumed_run_keeps_its_critic_and_its_state_head(recipe_for, tmp_path, heads):
    settings = {**heads, "value_epochs": 2, "save_freq": 32}
    straight = recipe_for(output_dir=str(tmp_path / "straight"), **settings)
    whole = state_trainer(straight)
    whole.train()
    stopped = recipe_for(output_dir=str(tmp_path / "stopped"), **settings)
    state_trainer(stopped).train(64)
    resumed = recipe_for(output_dir=str(tmp_path / "stopped"), resume_from="latest", **settings)
    folder = RunFolders(resumed).resume_folder(resumed)
    pool = StatePool(resumed.rollout.num_envs)
    trainer = trainer_for(resumed, VLMPolicy.from_pretrained(folder), pool=pool)
    trainer.resume(folder)
    trainer.train()
    states = [t.actor_critic.state_dict().values() for t in (whole, trainer)]
    assert all(map(torch.equal, *states))


@pytest.mark.parametrize("is_frozen", [False, True], ids=["seeing", "frozen"])
@pytest.mark.parametrize(
    "heads",
    [
        pytest.param({}, marks=pytest.mark.long),
        STATE_CRITIC,
        pytest.param({"detach_value": True}, marks=pytest.mark.long),
    ],
)
def test_the_hidden_state_comes_to_tell_the_state(recipe_for, heads, is_frozen):
    """Half the mean square of what it tells wrongly, and its gradient reaches the backbone."""
    recipe = recipe_for(
        **heads, state_coef=2.0, learning_rate=1e-3, freeze_vision=is_frozen, total_timesteps=512
    )
    trainer = state_trainer(recipe)
    rollout = rollout_of(trainer)
    seen, states = rollout.observations.flatten(), rollout.observations.flatten().states
    told = output_of(trainer.actor_critic.eval(), seen)
    expected = 0.5 * (told.states - torch.from_numpy(states)).square().mean()
    one_pass = {"n_epochs": 1, "batch_size": len(states), "learning_rate": 1e-9}
    still = state_trainer(recipe_for(**{**recipe.to_dict(), **one_pass, "run_name": "still"}))
    assert still.update(rollout)["state_loss"] == pytest.approx(expected.item(), rel=1e-5)
    trainer.train()
    first, *_, last = metrics_of(recipe)
    assert last["state_loss"] < 0.5 * first["state_loss"]
    assert first["first_ratio_error"] < 1e-5
    trainer.actor_critic.zero_grad()
    actor = trainer.actor_critic
    actor(**actor.encode(seen)).states.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in trainer.policy.backbone_parameters())


def test_a_warm_start_has_no_state_head(recipe_for):
    recipe = recipe_for(state_coef=1.0)
    with pytest.raises(UserError, match="state_coef: is PPO's"):
        ImitationTrainer(fresh_policy(recipe), ExpertPool(4), recipe)


def test_a_checkpoint_of_format_1_has_its_critic_where_the_value_head_belongs(recipe_for):
    recipe = recipe_for(**STATE_CRITIC, save_freq=32)
    trainer = state_trainer(recipe)
    trainer.train(32)
    (folder,) = trainer.folders.steps()
    as_in_format_1(folder)
    resumed = recipe_for(**STATE_CRITIC, resume_from="latest")
    pool = StatePool(resumed.rollout.num_envs)
    policy = VLMPolicy.from_pretrained(folder)
    for name, weight in policy.backbone.named_parameters():
        assert torch.equal(weight, trainer.policy.backbone.get_parameter(name)), name
    again = trainer_for(resumed, policy, pool=pool)
    again.resume(folder)
    for old, new in zip(
        trainer.actor_critic.critic.parameters(),
        again.actor_critic.critic.parameters(),
        strict=True,
    ):
        assert torch.equal(old, new)
    again.train()
    assert [row["timesteps"] for row in metrics_of(resumed)] == [32, 64, 96]


def as_in_format_1(folder) -> None:
    """Rewrite a checkpoint as the first version wrote it."""
    (folder / "manifest.json").unlink()
    (folder / "critic.safetensors").replace(folder / "value_head.safetensors")
    policy = json.loads((folder / "policy.json").read_text())
    del policy["format_version"], policy["facts"]
    policy["model"]["value_input"] = "state"
    (folder / "policy.json").write_text(json.dumps(policy))
    state = json.loads((folder / "trainer_state.json").read_text())
    del state["format_version"]
    for collector in state["collectors"]:
        del collector["source"]
        for episode in collector["running"]:
            episode["begun"] = episode.pop("prefix_length")
    (folder / "trainer_state.json").write_text(json.dumps(state))


def test_another_critic_may_be_trained_with_a_policy(make_policy, recipe_for):
    """Its head has sizes of its own, and what the policy's head has learnt stays."""
    policy = make_policy()
    torch.nn.init.normal_(policy.value_head.output.weight)
    before = [p.clone() for p in policy.parameters()]
    wanted = recipe_for(**STATE_CRITIC)
    check_same_policy("init_from: x", policy, wanted)
    critic = make_actor_critic(policy, StatePool(2), wanted).critic
    assert critic.hidden[0].weight.shape == (16, SIZE)
    assert not critic.output.weight.any()
    assert all(map(torch.equal, before, policy.parameters()))
    with pytest.raises(UserError, match="value_head_width"):
        check_same_policy("x", policy, recipe_for(value_head_width=8))


class StatesAndExpert(StatePool, ExpertPool):
    """Tells a critic the state, and a student the expert's words."""


def test_ppo_starts_with_the_critic_that_a_warm_start_leaves(recipe_for):
    """One of another size begins anew."""
    rounds = {"dagger_rounds": 1, "dagger_words": 64, "dagger_epochs": 1, "sft_epochs": 1}
    warm = recipe_for(**STATE_CRITIC, **rounds, horizon=4)
    pool = of(StatesAndExpert(warm.rollout.num_envs), warm)
    trainer = ImitationTrainer(fresh_policy(warm), pool, warm)
    trainer.train(known())
    learnt = trainer.actor_critic.critic
    assert learnt.output.weight.any()
    assert trainer.policy.value_head.output.weight.any()  # what is used without it learns too
    assert VLMPolicy.from_pretrained(trainer.folders.final).value_head.output.weight.any()
    init_from = str(trainer.folders.final)
    for width, is_same in ((16, True), (8, False)):
        settings = STATE_CRITIC | {"value_head_width": width, "init_from": init_from}
        recipe = recipe_for(**settings, run_name=f"ppo_{width}")
        critic = make_actor_critic(trainer.policy, StatePool(2), recipe).critic
        assert bool(critic.output.weight.any()) == is_same
        if is_same:
            assert all(map(torch.equal, critic.parameters(), learnt.parameters()))


def test_rollouts_keep_the_state_of_each_moment(recipe_for):
    actor = state_critic(fresh_policy(recipe_for()))
    buffer, _ = collector_for(StatePool(4), groups=2).collect_rollout(actor, 6)
    states = buffer.observations.states
    assert states.shape == (6, 4, SIZE)
    reds = buffer.observations.frames[..., 0, 0, 0] == ColourPool.COLOURS[0][0]
    assert np.array_equal(states[..., 0] == 0, reds)
    assert states[:, 0, 1].tolist() == [0, 1, 2, 3, 0, 1]  # an episode has four words
    with torch.no_grad():
        values = actor.critic(torch.from_numpy(states)).numpy()
    np.testing.assert_allclose(buffer.values, values, rtol=1e-5)
    # Where an episode was cut off, its value is of the state it was cut off in: four words said.
    assert buffer.truncated[3].all()
    np.testing.assert_allclose(buffer.next_values[2], buffer.values[3], rtol=1e-5)
    assert not np.isclose(buffer.next_values[3], buffer.values[4]).any()


@pytest.mark.parametrize("value_lambda", [None, 1.0])
def test_the_targets_may_have_a_lambda_of_their_own(recipe_for, value_lambda):
    """Seen by how much of them the rollout's values explain."""
    trainer = trainer_for(recipe_for(gae_lambda=0.5, value_lambda=value_lambda))
    rollout = rollout_of(trainer)
    rollout.values[:] = np.random.default_rng(0).normal(size=rollout.values.shape)
    watched = (
        rollout.rewards,
        rollout.values,
        rollout.next_values,
        rollout.terminated,
        rollout.truncated,
        0.99,
    )
    _, returns = generalized_advantages(*watched, 0.5 if value_lambda is None else value_lambda)
    explained = 1 - np.var(returns - rollout.values) / np.var(returns)
    assert trainer.update(rollout)["explained_variance"] == pytest.approx(explained)


@pytest.mark.parametrize("of_state", [False, True], ids=["hidden", "state"])
def test_passes_of_its_own_teach_the_critic_alone(recipe_for, of_state):
    recipe = recipe_for(batch_size=16)
    policy = fresh_policy(recipe)
    actor = state_critic(policy) if of_state else ActorCritic(policy)
    buffer, _ = collector_for(StatePool(8)).collect_rollout(actor.eval(), 16)
    backbone = [p.clone() for p in policy.actor_parameters()]
    accelerator = Accelerator(cpu=True)
    samples = Samples(actor, buffer, accelerator.autocast)
    returns = 3.0 * (buffer.observations.frames[..., 0, 0, 0] > 100) - 1.0  # follow the colour
    explained = fit_critic(
        actor, accelerator, samples, returns, recipe=recipe, epochs=20, learning_rate=1e-2
    )
    assert explained > 0.9
    output = output_of(actor, buffer.observations.flatten())
    assert abs(output.values.numpy() - returns.reshape(-1)).max() < 1
    assert all(map(torch.equal, backbone, policy.actor_parameters()))


def test_moments_without_a_target_teach_nothing(recipe_for):
    recipe = recipe_for(batch_size=16)
    actor = ActorCritic(fresh_policy(recipe))
    buffer, _ = collector_for(StatePool(8)).collect_rollout(actor.eval(), 16)
    accelerator = Accelerator(cpu=True)
    samples = Samples(actor, buffer, accelerator.autocast)

    def fit(targets: np.ndarray) -> float:
        how = {"recipe": recipe, "epochs": 20, "learning_rate": 1e-2}
        return fit_critic(actor, accelerator, samples, targets, **how)

    before = [p.clone() for p in actor.head_parameters()]
    assert fit(np.full((16, 8), np.nan)) == 0.0
    assert all(map(torch.equal, before, actor.head_parameters()))
    returns = 3.0 * (buffer.observations.frames[..., 0, 0, 0] > 100) - 1.0  # follow the colour
    returns[5:] = np.nan
    assert fit(returns) > 0.9


@pytest.mark.parametrize("epochs", [0, 10])
def test_ppo_gives_the_critic_further_passes(recipe_for, epochs):
    """With as good as no learning rate in the update itself, only they teach it."""
    recipe = recipe_for(
        **STATE_CRITIC, value_epochs=epochs, value_learning_rate=1e-2, n_epochs=1, value_coef=0
    )
    trainer = state_trainer(recipe)
    trainer.train()
    assert bool(trainer.actor_critic.critic.output.weight.any()) == (epochs > 0)
    assert np.isfinite(metrics_of(recipe)[-1]["value_loss"])


def test_a_critic_that_learns_too_fast_ends_the_run_before_it_is_nan(recipe_for):
    recipe = recipe_for(value_epochs=2, value_learning_rate=1e30, value_coef=0.0)
    trainer = trainer_for(recipe)
    with pytest.raises(TrainingError, match="loss is not finite .* the critic's own pass"):
        trainer.train()
    assert all(p.isfinite().all() for p in trainer.policy.parameters())
