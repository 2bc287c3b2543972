"""One update: ratios, features, references, losses, and when it ends."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.short_runs import fresh_policy, metrics_of, rollout_of, trainer_for, without_times
from tests.worlds import ColourPool, ScriptedPool
from vlm_agent.common.errors import TrainingError
from vlm_agent.distributed.guard import check_finite
from vlm_agent.evaluation.evaluate import evaluate
from vlm_agent.policy.kept import Kept, stack_rows
from vlm_agent.ppo.advantages import generalized_advantages
from vlm_agent.ppo.reference import make_reference
from vlm_agent.rollout.features import FeatureCache
from vlm_agent.runs.begin import start_policy
from vlm_agent.world.episode import Episode, load_episode

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


ROADS = {
    "prefix": {"prompt_template": "prompts/default.jinja"},
    "trunk": {"lora_layers": 1},
    "both": {"prompt_template": "prompts/default.jinja", "lora_layers": 1},
}


@pytest.mark.parametrize("form", [{}, {"load_in_4bit": True}], ids=["lora", "4-bit"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("road", ROADS)
def test_what_is_computed_once_leaves_the_ratio_at_one(recipe_for, caplog, road, dtype, form):
    """Also where 12 words at once are rounded otherwise than the 4 of the rollout."""
    recipe = recipe_for(
        batch_size=12,
        total_timesteps=64,
        use_peft=True,
        dtype=dtype,
        recompute_log_probs=dtype == "bfloat16",
        **ROADS[road],
        **form,
    )
    trainer = trainer_for(recipe)
    assert trainer.policy.model_pass.trunk_depth == (2 if road != "prefix" else 0)
    trainer.train()
    errors = [row["first_ratio_error"] for row in metrics_of(recipe)]
    assert max(errors) < (1e-5 if dtype == "float32" else 1e-2)
    assert any(row["approx_kl"] > 1e-6 for row in metrics_of(recipe))
    assert "recompute_log_probs" not in caplog.text


def test_ratios_that_are_off_before_anything_is_learnt_are_said(recipe_for, caplog):
    recipe = recipe_for(use_peft=True, freeze_vision=True)
    trainer = trainer_for(recipe)
    for number in range(2):
        rollout = rollout_of(trainer)
        rollout.log_probs[:] -= 0.02
        assert trainer.improve(rollout, number, 1e-3)["first_ratio_error"] > 1e-2
    assert caplog.text.count("please report it") == 1
    assert "update 0:" in caplog.text


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
    trainer = trainer_for(recipe, mixed_precision="bf16")
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
    assert sum(looked) == 2 * frames + 8


def test_features_that_were_made_in_bfloat16_are_kept_so(recipe_for):
    """Accelerate hands them over in float32, and half of those would not fit."""
    recipe = recipe_for(use_peft=True, feature_cache_gb=CACHES["half a cache"])
    trainer = trainer_for(recipe, mixed_precision="bf16")
    rollout = rollout_of(trainer)
    rows = rollout.features.get(np.arange(32))
    assert {row.values.dtype for row in rows} == {torch.bfloat16}
    assert trainer.update(rollout)["first_ratio_error"] < 1e-2


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
    cache = FeatureCache(limit=4 * 3 * 2 * 4)  # four frames of 3 x 2 floats
    features = torch.randn(6, 1, 3, 2)
    order = np.array([5, 0, 3])
    cache.put(order, Kept(features[order]))
    cache.put(np.array([1, 4]), Kept(features[[1, 4]]))
    held = cache.get(np.arange(6))
    assert [row is not None for row in held] == [True, True, False, True, False, True]
    assert torch.equal(stack_rows([held[0], held[1], held[5]]), features[[0, 1, 5]])
    nothing = FeatureCache(limit=0)
    nothing.put(order, Kept(features[order]))
    assert nothing.get(order) == [None] * 3


def test_states_are_kept_without_their_padding():
    states = torch.arange(12.0).reshape(2, 3, 2)
    cache = FeatureCache(limit=100)
    cache.put(np.array([7, 2]), Kept(states, prefix=5, lengths=torch.tensor([3, 1])))
    short, long = cache.get(np.array([2, 7]))
    assert cache.used == 4 * (6 + 2)
    assert (short.values.tolist(), short.prefix) == ([[10.0, 11.0]], 5)
    assert torch.equal(stack_rows([short, long])[1], states[0])
    assert stack_rows([short, long])[0].tolist() == [[0.0, 0.0], [0.0, 0.0], [10.0, 11.0]]


@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize("form", ["full", "lora"])
def test_kl_to_the_start_policy_lowers_the_rewards(recipe_for, form, estimator):
    recipe = recipe_for(
        **{"kl_coef": 0.7, "kl_estimator": estimator, "n_epochs": 1, "batch_size": 32},
        **{"learning_rate": 3e-3, "max_grad_norm": 1e9},
        **FORMS[form],
    )
    trainer = trainer_for(recipe)
    original = fresh_policy(recipe)
    assert trainer.update(rollout_of(trainer))["reference_kl"] == pytest.approx(0, abs=1e-6)
    for _ in range(3):
        trainer.update(rollout_of(trainer))  # away from the start
    rollout = rollout_of(trainer)
    inputs = original.encode(rollout.observations.flatten())
    with torch.no_grad():
        reference = original(**inputs).logits.double().log_softmax(-1).numpy()
    reference = reference[np.arange(32), rollout.actions.ravel()].reshape(8, 4)
    ratio = np.exp(reference - rollout.log_probs)
    kl = -np.log(ratio) if estimator == "k1" else ratio - 1 - np.log(ratio)
    assert np.abs(kl).max() > 1e-2
    wanted = documented_gradient(trainer, rollout, rollout.rewards - 0.7 * kl)
    taken = gradients_taken(trainer)
    measured = trainer.update(rollout)
    assert_close(wanted, taken, 1e-4)
    assert measured["reference_kl"] == pytest.approx(kl.mean(), abs=1e-5)


def test_a_lora_run_that_starts_from_an_adapter_stays_tied_to_that(recipe_for, tmp_path):
    """Not to the model without it; and without a second model."""
    recipe = recipe_for(use_peft=True, kl_coef=0.1, kl_estimator="k3", n_epochs=1)
    start = fresh_policy(recipe)
    with torch.no_grad():
        for parameter in start.backbone_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    trainer = trainer_for(recipe, start)
    assert trainer.update(rollout_of(trainer))["reference_kl"] == pytest.approx(0, abs=1e-6)
    for _ in range(3):
        trainer.update(rollout_of(trainer))
    assert trainer.update(rollout_of(trainer))["reference_kl"] > 1e-5


@pytest.mark.parametrize("begins", ["fresh", "saved"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_has_the_reference_of_its_start(recipe_for, tmp_path, begins, dtype):
    """Adapters and what is trained beside them, to the bit, and no other weights are trained."""
    form = {"use_peft": True, "trained_modules": ["connector"], "dtype": dtype}
    fewer = {"lora_layers": 1} if begins == "saved" else {}
    recipe = recipe_for(**form, kl_coef=0.1)
    if begins == "saved":
        start = fresh_policy(recipe)
        with torch.no_grad():
            for parameter in start.backbone_parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        start.save_pretrained(tmp_path / "start")
        recipe = recipe_for(**form, **fewer, kl_coef=0.1, init_from=str(tmp_path / "start"))
    policy = start_policy(recipe)
    policy.train_as(recipe.model)
    expected = make_reference(policy, recipe, is_start=True)
    trained = {n for n, p in policy.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in policy.backbone_parameters():
            parameter.add_(1.0)
    found = make_reference(policy, recipe, is_start=False)
    assert {n for n, p in policy.named_parameters() if p.requires_grad} == trained
    names = [n for n, p in policy.backbone.named_parameters() if p.requires_grad]
    for name, mine, theirs in zip(names, found._start, expected._start, strict=True):
        # Of a fresh adapter the first factor counts for nothing.
        assert torch.equal(mine, theirs) or ("lora_A" in name and begins == "fresh"), name


def test_without_kl_coef_there_is_no_reference(recipe_for):
    trainer = trainer_for(recipe_for(use_peft=True))
    assert "reference_kl" not in trainer.update(rollout_of(trainer))


@pytest.mark.parametrize("recompute", [False, True])
def test_old_log_probs_can_be_recomputed_before_the_update(recipe_for, recompute):
    recipe = recipe_for(recompute_log_probs=recompute, batch_size=24, use_peft=True)
    trainer = trainer_for(recipe)
    rollout = rollout_of(trainer)
    noise = np.random.default_rng(0).normal(0, 0.05, rollout.log_probs.shape)
    rollout.log_probs[:] += noise  # as if another batch shape had rounded them
    error = trainer.update(rollout)["first_ratio_error"]
    assert error == 0 if recompute else error > 0.05


def test_now_and_then_the_share_of_the_vocabulary_is_logged(recipe_for):
    recipe = recipe_for(total_timesteps=88, rollout_steps=2, n_epochs=1)
    trainer_for(recipe).train()
    shares = [row.get("vocabulary_share") for row in metrics_of(recipe)]
    assert [n for n, share in enumerate(shares) if share is not None] == [0, 10]
    assert shares[0] != shares[10]
    assert 0 < min(shares[0], shares[10]) <= max(shares[0], shares[10]) < 1


def test_ratio_error_shows_a_policy_that_changed_since_the_rollout(recipe_for):
    trainer = trainer_for(recipe_for())
    rollout = rollout_of(trainer)
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
        grads = [p.grad for p in trainer.learner.model.parameters() if p.grad is not None]
        norms.append(torch.cat([g.flatten() for g in grads]).norm().item())

    trainer.learner.optimizer.optimizer.register_step_pre_hook(note)
    trainer.train()
    assert max(norms) == pytest.approx(1e-3, rel=1e-3)
    assert metrics_of(recipe)[0]["grad_norm"] > 1e-2


def documented_gradient(trainer, rollout, rewards):
    """Of policy + value_coef * value − entropy_coef * entropy, recomputed term by term."""
    ppo = trainer.recipe.ppo
    advantages, returns = generalized_advantages(
        rewards,
        rollout.values,
        rollout.next_values,
        rollout.terminated,
        rollout.truncated,
        ppo.gamma,
        ppo.gae_lambda,
    )
    if ppo.normalize_advantage:
        advantages = (advantages - advantages.mean()) / advantages.std()
    normal = torch.from_numpy(advantages).float().flatten()
    output = trainer.policy(**trainer.policy.encode(rollout.observations.flatten()))
    log_probs = torch.log_softmax(output.logits, -1)
    chosen = log_probs[torch.arange(len(normal)), torch.from_numpy(rollout.actions).flatten()]
    entropy = torch.distributions.Categorical(logits=output.logits).entropy().mean()
    critic = ((output.values - torch.from_numpy(returns).float().flatten()) ** 2).mean() / 2
    policy = -(chosen * normal).mean()  # at ratio 1
    loss = policy + ppo.value_coef * critic - ppo.entropy_coef * entropy
    return torch.autograd.grad(loss, learning(trainer))


def learning(trainer) -> list[torch.Tensor]:
    return [p for p in trainer.policy.parameters() if p.requires_grad]


def gradients_taken(trainer) -> list[torch.Tensor]:
    """Filled with the gradients of the optimiser's next steps."""
    taken: list[torch.Tensor] = []
    trainer.learner.optimizer.optimizer.register_step_pre_hook(
        lambda *_: taken.extend(p.grad.clone() for p in learning(trainer))
    )
    return taken


def assert_close(wanted, taken, tolerance: float) -> None:
    for mine, theirs in zip(wanted, taken, strict=True):
        assert (mine - theirs).abs().max() < tolerance * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("normalize", [True, False], ids=["normalised", "raw"])
def test_one_step_is_the_gradient_of_the_documented_loss(recipe_for, normalize):
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
    rollout = rollout_of(trainer)
    wanted = documented_gradient(trainer, rollout, rollout.rewards)
    taken = gradients_taken(trainer)
    trainer.update(rollout)
    assert_close(wanted, taken, 1e-5)


@pytest.mark.parametrize("form", ["full", "lora in phrases"])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_micro_batches_change_nothing_but_the_memory(recipe_for, form, size):
    """Minibatches of 8 and a last one of 6, in parts that do not divide them."""
    settings = {"batch_size": 8, "rollout_steps": 19, "num_envs": 2, "n_epochs": 1}
    whole = trainer_for(recipe_for(**settings, **FORMS[form]))
    parts = trainer_for(recipe_for(**settings, micro_batch_size=size, **FORMS[form]))
    sizes: list[int] = []
    parts.policy.register_forward_pre_hook(
        lambda _, args, inputs: sizes.append(len(inputs["input_ids"])), with_kwargs=True
    )
    rollout = rollout_of(whole, 19)
    wanted, taken = gradients_taken(whole), gradients_taken(parts)
    expected, measured = whole.update(rollout), parts.update(rollout)
    assert max(sizes) <= size
    assert len(wanted) == len(taken)
    first = len(wanted) // 5  # later steps begin at weights that Adam made of roundings
    assert_close(wanted[:first], taken[:first], 1e-6)
    for key, value in expected.items():
        assert measured[key] == pytest.approx(value, abs=1e-4), key


def test_a_gradient_that_is_not_finite_ends_the_run_before_the_step(recipe_for):
    recipe = recipe_for(learning_rate=1e30, save_freq=32)
    trainer = trainer_for(recipe)
    before = [p.detach().clone() for p in trainer.policy.parameters()]
    step, steps = trainer.learner.optimizer.step, []

    def counted() -> None:
        steps.append(1)
        step()

    trainer.learner.optimizer.step = counted
    with pytest.raises(TrainingError, match=r"not finite .* update 0, epoch 0, minibatch 1"):
        trainer.train()
    assert len(steps) == 1  # of the minibatch before; and the update is taken back
    assert all(map(torch.equal, before, trainer.policy.parameters()))
    assert all(p.isfinite().all() for p in trainer.policy.parameters())
    assert not trainer.folders.steps()
    fault = trainer.folders.run / "not_finite_0"
    about = json.loads((fault / "fault.json").read_text())
    assert "update 0, epoch 0, minibatch 1" in about["reason"]
    kept = load_file(fault / "minibatch.safetensors")
    assert len(kept["frames"]) == len(about["words"]) == recipe.ppo.batch_size
    # Each word's episode, played again, shows what was to be learnt from.
    pool = ColourPool(1)
    for frame, word in zip(kept["frames"], about["words"], strict=True):
        episode = Episode(word["seed"], tuple(word["actions"]))
        pool._begin(0, episode)
        assert np.array_equal(pool._observe(0).frames, frame.numpy())
    assert load_episode(fault / "episode.json")[0].seed == about["words"][0]["seed"]


@pytest.mark.parametrize(("part", "what"), [("value_head", "values"), ("backbone", "scores")])
def test_what_a_damaged_policy_says_is_not_played(recipe_for, part: str, what: str):
    recipe = recipe_for(num_eval_episodes=0)
    trainer = trainer_for(recipe)
    trainer.train()
    with torch.no_grad():
        next(reversed([*getattr(trainer.policy, part).parameters()])).fill_(math.inf)
    with pytest.raises(TrainingError, match=rf"{what} are not finite for 2 of 2 .*of seed \d+"):
        trainer.collect()
    with pytest.raises(TrainingError, match=f"{what} are not finite"):
        evaluate(trainer.policy, trainer.pool, 2)


def test_minibatches_are_a_fresh_partition_each_time(recipe_for):
    """By the pictures that the model is given: each differs, and tells which sample it is of."""
    recipe = recipe_for(batch_size=5, n_epochs=2)
    trainer = trainer_for(recipe, pool=ScriptedPool(["...."] * 100))
    seen: list[list[float]] = []
    trainer.policy.register_forward_pre_hook(
        lambda _, args, inputs: seen.append(inputs["pixel_values"][::16, 0].tolist()),
        with_kwargs=True,
    )
    orders = []
    for _ in range(2):
        rollout = rollout_of(trainer)
        seen.clear()
        trainer.update(rollout)
        assert [len(part) for part in seen] == ([5] * 6 + [2]) * 2
        pictures = [picture for part in seen for picture in part]
        orders += [pictures[:32], pictures[32:]]
        assert sorted(orders[-2]) == sorted(orders[-1])
    assert orders[0] != orders[1]
    assert orders[2] != orders[3]


def test_an_overflow_in_fp16_is_the_scalers_until_that_can_do_no_more():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    accelerator = SimpleNamespace(scaler=scaler)
    passed_over = 0
    with pytest.raises(TrainingError, match="not finite .* in a step"):
        while passed_over < 10:
            weight.grad = torch.full((1,), math.inf)
            check_finite(weight.grad.norm(), accelerator, "a step")
            scaler.scale(torch.zeros(()))  # as a loss
            scaler.step(optimizer)
            scaler.update()
            passed_over += 1
    assert passed_over == 2  # 4, 2
    assert weight.item() == 1.0
