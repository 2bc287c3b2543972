"""One update: ratios, features, references, losses, and when it ends."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.short_runs import fresh_policy, metrics_of, trainer_for, without_times
from vlm_agent.ppo.advantages import generalized_advantages
from vlm_agent.rollout.features import FeatureCache

FORMS = {
    "full": {},
    "full, frozen vision": {"freeze_vision": True},
    "lora": {"use_peft": True},
    "lora on vision": {"use_peft": True, "lora_vision_modules": ["qkv", "fc1"]},
    "4-bit lora": {"use_peft": True, "load_in_4bit": True},
    "8-bit lora": {"use_peft": True, "load_in_8bit": True},
    "lora in phrases": {"use_peft": True, "scoring": "phrase_mean"},
    "masked, action head": {"scoring": "action_head", "mask_senseless_words": True},
}
TRAINED_VISION = ("full", "lora on vision", "masked, action head")  # there is nothing to keep
SAMPLE_BYTES = 4 * 128 * 4  # of one frame's features: 4 picture tokens of 128 floats
CACHES = {"cache": 1.0, "no cache": 0.0, "half a cache": 16 * SAMPLE_BYTES / 2**30}


def rollout_of(trainer, steps: int = 8):
    trainer.collector.take_up()
    return trainer.collector.collect_rollout(trainer.policy.eval(), steps)[0]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize(
    ("form", "cache"),
    [(f, c) for f in FORMS for c in CACHES if c == "cache" or f not in TRAINED_VISION],
)
def test_first_minibatch_has_ratio_one(recipe_for, form, precision, checkpointing, cache):
    recipe = recipe_for(
        batch_size=12,
        total_timesteps=64,
        gradient_checkpointing=checkpointing,
        feature_cache_gb=CACHES[cache],
        **FORMS[form],
    )
    trainer = trainer_for(recipe, mixed_precision=precision)
    trainer.train()
    errors = [row["first_ratio_error"] for row in metrics_of(recipe)]
    assert len(errors) == 2
    assert max(errors) < (1e-5 if precision == "no" else 1e-2)
    # What is compared are real distributions after real steps, not a constant.
    assert any(row["approx_kl"] > 1e-6 for row in metrics_of(recipe))


def test_dropout_in_the_model_itself_is_off(recipe_for):
    recipe = recipe_for()
    policy = fresh_policy(recipe)
    layers = [m for m in policy.modules() if hasattr(m, "attention_dropout")]
    for layer in layers:
        layer.attention_dropout = 0.5
    assert layers
    trainer_for(recipe, policy).train()
    assert max(row["first_ratio_error"] for row in metrics_of(recipe)) < 1e-5


def test_the_reference_computes_in_the_policys_precision(recipe_for):
    recipe = recipe_for(kl_coef=0.1, freeze_vision=True)
    trainer = trainer_for(recipe, start=fresh_policy(recipe), mixed_precision="bf16")
    assert trainer.update(rollout_of(trainer))["reference_kl"] == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("cache", CACHES)
def test_a_frozen_vision_tower_looks_once_at_each_frame_that_is_kept(recipe_for, cache):
    recipe = recipe_for(use_peft=True, feature_cache_gb=CACHES[cache])
    trainer = trainer_for(recipe)
    rollout = rollout_of(trainer)
    looked = []
    trainer.policy.inner_model.model.visual.register_forward_pre_hook(
        lambda _, args, kwargs: looked.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    trainer.update(rollout)
    frames = {"cache": 0, "no cache": 32, "half a cache": 16}[cache]
    # In each of two epochs, and once more for the first minibatch's share of the vocabulary.
    assert 2 * frames <= sum(looked) <= 2 * frames + min(frames, 8)


def test_features_change_neither_metrics_nor_weights(recipe_for, tmp_path):
    runs, weights = [], []
    for name, size in CACHES.items():
        recipe = recipe_for(use_peft=True, feature_cache_gb=size, output_dir=str(tmp_path / name))
        trainer = trainer_for(recipe)
        trainer.train()
        runs.append(without_times(metrics_of(recipe)))
        weights.append(torch.cat([p.flatten() for p in trainer.policy.backbone_parameters()]))
    for run, weight in zip(runs[1:], weights[1:], strict=True):
        assert (weight - weights[0]).abs().max() < 1e-4
        for mine, first in zip(run, runs[0], strict=True):
            assert mine["words"] == first["words"]
            assert mine["entropy"] == pytest.approx(first["entropy"], abs=1e-5)


def test_the_cache_keeps_what_fits():
    cache = FeatureCache(6, limit=4 * 3 * 2 * 4)  # four frames of 3 x 2 floats
    features = torch.randn(6, 1, 3, 2)
    order = np.array([5, 0, 3])
    cache.put(order, features[order])
    cache.put(np.array([1, 4]), features[[1, 4]])
    held, kept = cache.get(np.array([0, 1, 2, 3, 4, 5]))
    assert held.tolist() == [True, True, False, True, False, False]
    assert torch.equal(kept, features[[0, 1, 3]])
    held, kept = cache.get(np.array([3, 0]))
    assert torch.equal(kept, features[[3, 0]])
    assert cache.get(np.array([2]))[1] is None
    nothing = FeatureCache(6, limit=0)
    nothing.put(order, features[order])
    assert not nothing.get(order)[0].any()


@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize("form", ["full", "lora"])
def test_kl_to_the_start_policy_lowers_the_rewards(recipe_for, monkeypatch, form, estimator):
    recipe = recipe_for(
        kl_coef=0.7, kl_estimator=estimator, n_epochs=1, batch_size=16, **FORMS[form]
    )
    start = None if form == "lora" else fresh_policy(recipe)
    trainer = trainer_for(recipe, start=start)
    original = fresh_policy(recipe)
    assert trainer.update(rollout_of(trainer))["reference_kl"] == pytest.approx(0, abs=1e-6)
    for _ in range(3):
        trainer.update(rollout_of(trainer))  # away from the start
    rollout = rollout_of(trainer)
    seen = []

    def estimate(rewards, *others):
        seen.append(rewards)
        return generalized_advantages(rewards, *others)

    monkeypatch.setattr("vlm_agent.ppo.update.generalized_advantages", estimate)
    measured = trainer.update(rollout)
    inputs = original.encode(rollout.observations.flatten())
    with torch.no_grad():
        reference = original(**inputs).logits.double().log_softmax(-1).numpy()
    reference = reference[np.arange(32), rollout.actions.ravel()].reshape(8, 4)
    ratio = np.exp(reference - rollout.log_probs)
    kl = -np.log(ratio) if estimator == "k1" else ratio - 1 - np.log(ratio)
    assert np.allclose(seen[0], rollout.rewards - 0.7 * kl, atol=1e-4)
    assert measured["reference_kl"] == pytest.approx(kl.mean(), abs=1e-5)
    assert np.abs(kl).max() > 1e-2


def test_without_kl_coef_there_is_no_reference(recipe_for):
    trainer = trainer_for(recipe_for(use_peft=True))
    assert trainer.improve.reference is None
    assert "reference_kl" not in trainer.update(rollout_of(trainer))


def test_the_reference_stays_where_training_started(recipe_for):
    recipe = recipe_for(kl_coef=0.1)
    start = fresh_policy(recipe)
    before = [p.clone() for p in start.parameters()]
    trainer = trainer_for(recipe, start=start)
    trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, start.parameters(), strict=True))
    assert metrics_of(recipe)[-1]["reference_kl"] != 0


@pytest.mark.parametrize("recompute", [False, True])
def test_old_log_probs_can_be_recomputed_before_the_update(recipe_for, recompute):
    recipe = recipe_for(recompute_log_probs=recompute, batch_size=24, use_peft=True)
    trainer = trainer_for(recipe)
    rollout = rollout_of(trainer)
    noise = np.random.default_rng(0).normal(0, 0.05, rollout.log_probs.shape)
    rollout.log_probs[:] += noise  # as if another batch shape had rounded them
    error = trainer.update(rollout)["first_ratio_error"]
    assert error == 0 if recompute else error > 0.05


def test_now_and_then_the_share_of_the_vocabulary_is_logged(recipe_for, monkeypatch):
    monkeypatch.setattr("vlm_agent.ppo.update.VOCABULARY_SHARE_EVERY", 2)
    recipe = recipe_for(total_timesteps=128)
    trainer_for(recipe).train()
    shares = [row.get("vocabulary_share") for row in metrics_of(recipe)]
    assert [share is None for share in shares] == [False, True, False, True]
    assert 0 < shares[0] < shares[2] < 1 or 0 < shares[2] < shares[0] < 1


def test_ratio_error_shows_a_policy_that_changed_since_the_rollout(recipe_for):
    trainer = trainer_for(recipe_for())
    trainer.collector.take_up()
    rollout, _ = trainer.collector.collect_rollout(trainer.policy.eval(), 8)
    with torch.no_grad():
        for parameter in trainer.policy.backbone.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    assert trainer.update(rollout)["first_ratio_error"] > 1e-2


def test_an_action_head_has_no_share_of_the_vocabulary(recipe_for):
    trainer = trainer_for(recipe_for(scoring="action_head"))
    assert "vocabulary_share" not in trainer.update(rollout_of(trainer))


@pytest.mark.parametrize("scoring", ["auto", "action_head"])
def test_critic_warmup_moves_only_the_value_head(recipe_for, scoring):
    recipe = recipe_for(critic_warmup_updates=3, scoring=scoring)
    trainer = trainer_for(recipe)
    action_head = trainer.policy.action_head
    actor = trainer.policy.actor_parameters()
    assert (action_head is None) == (scoring == "auto")
    assert action_head is None or any(p is action_head.weight for p in actor)
    backbone = [p.clone() for p in actor]
    head = [p.clone() for p in trainer.policy.value_head.parameters()]
    trainer.train()
    assert all(
        torch.equal(a, b) for a, b in zip(backbone, trainer.policy.actor_parameters(), strict=True)
    )
    assert not all(
        torch.equal(a, b) for a, b in zip(head, trainer.policy.value_head.parameters(), strict=True)
    )
    assert metrics_of(recipe)[-1]["approx_kl"] == pytest.approx(0, abs=1e-9)


def test_target_kl_ends_the_update(recipe_for):
    recipe = recipe_for(n_epochs=5, target_kl=1e-5, total_timesteps=32)
    trainer_for(recipe).train()
    assert metrics_of(recipe)[0]["n_epochs_done"] == 1
    recipe = recipe_for(n_epochs=5, target_kl=1e9, total_timesteps=32, overwrite=True)
    trainer_for(recipe).train()
    assert metrics_of(recipe)[0]["n_epochs_done"] == 5


def test_gradients_are_clipped_and_the_norm_before_is_logged(recipe_for):
    recipe = recipe_for(max_grad_norm=1e-3, total_timesteps=32, learning_rate=1e-6)
    trainer = trainer_for(recipe)
    norms = []

    def note(*_):
        grads = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        norms.append(torch.cat([g.flatten() for g in grads]).norm().item())

    trainer.optimizer.optimizer.register_step_pre_hook(note)
    trainer.train()
    assert max(norms) == pytest.approx(1e-3, rel=1e-3)
    assert metrics_of(recipe)[0]["grad_norm"] > 1e-2


@pytest.mark.parametrize("normalize", [True, False], ids=["normalised", "raw"])
def test_one_step_is_the_gradient_of_the_documented_loss(recipe_for, normalize):
    """Policy + value_coef * value − entropy_coef * entropy, recomputed here term by term."""
    recipe = recipe_for(
        batch_size=32,
        n_epochs=1,
        max_grad_norm=1e9,
        value_coef=0.7,
        entropy_coef=0.3,
        normalize_advantage=normalize,
    )
    trainer = trainer_for(recipe)
    nn.init.normal_(trainer.policy.value_head.output.weight)
    trainer.collector.take_up()
    rollout, _ = trainer.collector.collect_rollout(trainer.policy.eval(), 8)
    advantages, returns = generalized_advantages(
        rollout.rewards,
        rollout.values,
        rollout.next_values,
        rollout.terminated,
        rollout.truncated,
        recipe.ppo.gamma,
        recipe.ppo.gae_lambda,
    )
    if normalize:
        advantages = (advantages - advantages.mean()) / advantages.std()
    normal = torch.from_numpy(advantages).float().flatten()
    output = trainer.policy(**trainer.policy.encode(rollout.observations.flatten()))
    log_probs = torch.log_softmax(output.logits, -1)
    chosen = log_probs[torch.arange(32), torch.from_numpy(rollout.actions).flatten()]
    entropy = torch.distributions.Categorical(logits=output.logits).entropy().mean()
    critic = ((output.values - torch.from_numpy(returns).float().flatten()) ** 2).mean() / 2
    loss = -(chosen * normal).mean() + 0.7 * critic - 0.3 * entropy  # at ratio 1
    wanted = torch.autograd.grad(loss, list(trainer.policy.parameters()))

    taken = []
    trainer.optimizer.optimizer.register_step_pre_hook(
        lambda *_: taken.extend(p.grad.clone() for p in trainer.policy.parameters())
    )
    trainer.update(rollout)
    for mine, theirs in zip(wanted, taken, strict=True):
        assert (mine - theirs).abs().max() < 1e-5 * max(1.0, float(theirs.abs().max()))


def test_minibatches_are_a_fresh_partition_each_time(recipe_for):
    trainer = trainer_for(recipe_for(batch_size=5))
    orders = []
    for updates, epoch in [(0, 0), (0, 1), (1, 0)]:
        parts = trainer.improve._minibatches(updates, epoch, 32)
        assert [len(part) for part in parts] == [5] * 6 + [2]
        orders.append(np.concatenate(parts).tolist())
        assert sorted(orders[-1]) == list(range(32))
        assert orders[-1] != list(range(32))
    assert orders[0] != orders[1] != orders[2] != orders[0]
