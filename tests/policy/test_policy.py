import numpy as np
import pytest
import torch
from torch import nn

from tests.policy.training import train_a_little
from vlm_agent.common.errors import UserError
from vlm_agent.policy.decisions import act, evaluate_actions
from vlm_agent.policy.heads import ValueHead


def test_seed_decides_the_weights_and_leaves_the_global_generator_alone(make_policy):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, again, other = make_policy(seed=1), make_policy(seed=1), make_policy(seed=2)
    assert torch.equal(torch.rand(3), expected)
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    differ = [
        not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True)
    ]
    assert any(differ)


def test_lora_adapts_the_language_model_only(make_policy):
    policy = make_policy(use_peft=True)
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    adapters = [name for name in trained if "value_head" not in name]
    assert adapters
    assert all("lora_" in name and "language_model" in name for name in adapters)
    assert len(adapters) == 2 * 7 * 3  # A and B, seven linear layers, three blocks
    assert len(trained) - len(adapters) == 4  # the value head's two layers


def test_lora_leaves_frozen_weights_untouched(make_policy, make_observations):
    policy = make_policy(use_peft=True)
    before = {n: p.clone() for n, p in policy.named_parameters()}
    train_a_little(policy, make_observations(4))
    for name, parameter in policy.named_parameters():
        changed = not torch.equal(parameter, before[name])
        assert changed == parameter.requires_grad, name


@pytest.mark.parametrize("name", ["qq_proj", "qkv", "("])  # qkv is the vision tower's
def test_lora_modules_that_the_language_model_lacks_are_refused(make_policy, name: str):
    with pytest.raises(UserError, match="lora_target_modules"):
        make_policy(use_peft=True, lora_target_modules=[name])


def test_lora_adapts_the_vision_tower_only_by_choice(make_policy):
    policy = make_policy(use_peft=True, lora_target_modules=["q_proj"])
    assert policy.vision_is_frozen
    policy = make_policy(
        use_peft=True, lora_target_modules=["q_proj"], lora_vision_modules=["proj", "fc1"]
    )
    adapted = [n for n, p in policy.backbone.named_parameters() if p.requires_grad]
    vision = [name for name in adapted if "visual" in name]
    assert len(adapted) - len(vision) == 2 * 3
    # Attention's proj of each block; not the patch embedding's, which is a convolution.
    assert sum("proj" in name for name in vision) == 2 * 3
    assert sum("fc1" in name for name in vision) == 2 * 3
    assert not any("patch_embed" in name for name in vision)
    assert not policy.vision_is_frozen


def test_value_head_starts_at_zero_in_float32():
    head = ValueHead(16, 8)
    assert torch.equal(head(torch.randn(5, 16)), torch.zeros(5))
    nn.init.normal_(head.output.weight)
    hidden = torch.randn(5, 16, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        values = head(hidden)
    x = hidden.double()
    w = {k: v.double() for k, v in head.state_dict().items()}
    by_hand = torch.tanh(x @ w["hidden.0.weight"].T + w["hidden.0.bias"]) @ w["output.weight"].T
    assert values.dtype == torch.float32
    assert (values - by_hand[:, 0]).abs().max() < 1e-6


@pytest.mark.parametrize("detach", [False, True])
def test_value_loss_reaches_the_backbone_exactly_when_not_detached(
    make_policy, make_observations, detach
):
    policy = make_policy(detach_value=detach)
    nn.init.normal_(policy.value_head.output.weight)
    policy(**policy.encode(make_observations(2))).values.sum().backward()
    gradients = [p.grad for p in policy.backbone.parameters()]
    assert all(g is None for g in gradients) == detach
    assert policy.value_head.hidden[0].weight.grad.abs().sum() > 0


def test_sampling_follows_the_distribution(make_policy, make_observations):
    policy = make_policy()
    one = make_observations(1)
    n = 4000
    uniforms = (np.arange(n) + 0.5) / n  # evenly spread: frequencies equal probabilities
    probs = act(policy, one).probs[0]
    drawn = np.concatenate([act(policy, one, uniforms[i : i + 1]).actions for i in range(0, n, 40)])
    assert np.abs(np.bincount(drawn, minlength=8) / len(drawn) - probs).max() < 0.02


def test_extreme_uniforms_give_words(make_policy, make_observations):
    policy = make_policy()
    uniforms = np.array([0.0, np.nextafter(1.0, 0.0)])
    assert act(policy, make_observations(2), uniforms).actions.tolist() == [0, 7]


def test_greedy_takes_the_most_probable_word(make_policy, make_observations):
    decisions = act(make_policy(), make_observations(5))
    assert np.array_equal(decisions.actions, decisions.probs.argmax(-1))
    chosen = decisions.probs[np.arange(5), decisions.actions]
    assert np.allclose(np.exp(decisions.log_probs), chosen)
    assert np.allclose(decisions.probs.sum(-1), 1)


def test_acting_and_evaluating_agree(make_policy, make_observations):
    policy = make_policy()
    nn.init.normal_(policy.value_head.output.weight)
    observations = make_observations(5)
    said = act(policy, observations, np.linspace(0.1, 0.9, 5))
    log_probs, entropy, values, _ = evaluate_actions(
        policy, policy.encode(observations), torch.from_numpy(said.actions)
    )
    assert np.array_equal(log_probs.detach().numpy(), said.log_probs)
    assert np.array_equal(values.detach().numpy(), said.values)
    p = said.probs.astype(np.float64)
    assert np.allclose(entropy.detach().numpy(), -(p * np.log(p)).sum(-1), atol=1e-6)


def test_gradient_checkpointing_changes_no_gradient(make_policy, make_observations):
    gradients = []
    for checkpointing in (False, True):
        policy = make_policy(gradient_checkpointing=checkpointing).train()
        calls = []
        layer = policy.inner_model.model.language_model.layers[0].mlp
        layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        observations = make_observations(2)
        log_probs, *_ = evaluate_actions(policy, policy.encode(observations), torch.tensor([0, 1]))
        log_probs.sum().backward()
        gradients.append([p.grad for p in policy.backbone.parameters()])
        assert len(calls) == (2 if checkpointing else 1)
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.allclose(plain, recomputed, atol=1e-6)


def test_a_policy_acts_on_an_environments_observation(make_policy, make_observations):
    policy = make_policy()
    batch = make_observations(1)
    facts = dict(zip(policy.facts, batch.facts[0], strict=True))
    observation = {"image": batch.frames[0], **facts, "what_nobody_asked_for": 1}
    said, drawn = policy.act(observation), policy.act(observation, uniform=0.999999)
    expected = act(policy, batch)
    assert policy.words[said.action] == said.word
    assert said.action == expected.actions[0]
    assert list(said.probabilities) == list(policy.words)
    assert np.array_equal([*said.probabilities.values()], expected.probs[0])
    assert said.value == expected.values[0]
    assert (drawn.action, drawn.word) == (7, policy.words[7])
    assert drawn.probabilities == said.probabilities
