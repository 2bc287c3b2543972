"""What is computed once: the beginning that prompts share, and what lies below what is trained."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.policy.families import BUILDERS, save_family
from tests.policy.slow import slow_scores
from tests.policy.test_scoring import PHRASES, log_softmax
from vlm_agent.common.errors import UserError
from vlm_agent.policy.building import build_policy
from vlm_agent.policy.config import ModelConfig
from vlm_agent.policy.policy import VLMPolicy

SIZE = 56
SOURCE = (
    "You say one of: {{ actions }}. Task: {{ task }}\n{{ image }}\n"
    "{{ gripper }}, {{ last_action }}, {{ words_left }}"
)
BATCHED = ("first tokens", "phrases")


@pytest.fixture(scope="module", params=BUILDERS)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    save_family(request.param, path)
    return path


@pytest.fixture
def make(template):
    def build(model="tiny", words=None, source=SOURCE, **settings) -> VLMPolicy:
        chosen = dataclasses.replace(template, source=source)
        if words is not None:
            chosen = dataclasses.replace(chosen, words=words)
        policy = build_policy(ModelConfig(model_name_or_path=str(model), **settings), chosen, 0)
        torch.manual_seed(0)
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_B" in name or "value_head.output" in name:
                    parameter.normal_(std=0.1)  # a fresh adapter adds nothing
        return policy.eval()

    return build


def without_prefix(inputs):
    return {**inputs, "prefix_ids": inputs["prefix_ids"][:0]}


def gradient(policy, inputs):
    """Of something in which each score and value counts differently, over all that is trained."""
    policy.zero_grad()
    output = policy(**inputs)
    weights = torch.linspace(-1, 2, output.logits.numel()).view_as(output.logits)
    ((output.logits.log_softmax(-1) * weights).sum() + (output.values**2).sum()).backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


def difference(one, other):
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("words", [None, PHRASES], ids=BATCHED)
def test_a_shared_beginning_changes_neither_scores_nor_gradients(
    make, folder, make_observations, words
):
    scoring = {} if words is None else {"scoring": "phrase_sum"}
    policy = make(folder, words, use_peft=True, **scoring)
    observations = make_observations(4, SIZE)
    inputs = policy.encode(observations)
    prefix = inputs["prefix_ids"]
    assert len(prefix) > 20
    for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        assert torch.equal(row[mask.bool()][: len(prefix)], prefix)
    with torch.no_grad():
        fast, slow = policy(**inputs).logits, slow_scores(policy, observations)
    assert (log_softmax(fast) - log_softmax(slow)).abs().max() < 1e-5
    shared, alone = gradient(policy, inputs), gradient(policy, without_prefix(inputs))
    assert difference(shared, alone) < 1e-5


@pytest.mark.parametrize("words", [None, PHRASES], ids=BATCHED)
def test_a_pass_may_begin_above_the_trunk(make, folder, make_observations, words):
    scoring = {} if words is None else {"scoring": "phrase_sum"}
    policy = make(folder, words, use_peft=True, lora_layers=1, **scoring)
    observations = make_observations(4, SIZE)
    inputs = policy.encode(observations)
    first = policy(**inputs)
    has_trunk = policy.inner_model.config.model_type != "qwen3_vl"  # both layers see the picture
    assert policy.model_pass.trunk_depth == has_trunk
    rows = first.kept.rows()
    again = policy.encode(observations, rows)
    assert ("trunk_states" in again) == has_trunk
    assert not set(policy.family.image_inputs) & set(again)
    assert (policy(**again).logits - first.logits).abs().max() < 1e-6
    assert policy(**again).kept is None
    completed = policy.encode(observations, [None, rows[1], None, rows[3]])
    assert (policy(**completed).logits - first.logits).abs().max() < 1e-5
    kept = gradient(policy, again)
    policy.model_pass.trunk_depth = 0
    assert difference(kept, gradient(policy, without_prefix(inputs))) < 1e-5
    assert (policy(**inputs).logits - first.logits).abs().max() < 1e-5


def test_prompts_that_begin_otherwise_share_less(make, make_observations):
    source = (
        "{% if words_left == 117 %}Hurry. {% endif %}Do: {{ task }}\n{{ image }}\n{{ gripper }}"
    )
    policy = make(source=source, use_peft=True, lora_layers=1)
    observations = make_observations(5, SIZE)
    usual, hurried = observations[np.array([0, 1, 2])], observations[np.array([2, 3, 4])]
    shared = policy.encode(usual)["prefix_ids"]
    inputs = policy.encode(hurried)
    assert 0 < len(inputs["prefix_ids"]) < len(shared)
    with torch.no_grad():
        fast, slow = policy(**inputs).logits, slow_scores(policy, hurried)
        assert (log_softmax(fast) - log_softmax(slow)).abs().max() < 1e-5
        # What was kept beside other prompts has no states for what is not shared here.
        rows = policy(**policy.encode(usual)).kept.rows()
        again = policy(**policy.encode(hurried, [rows[2], None, None])).logits
    assert (again - fast).abs().max() < 1e-5


def test_what_may_change_is_not_shared_even_if_it_does_not_now(make, make_observations):
    policy = make(source="Words: {{ actions }}.\n{{ task }}\nIt is {{ gripper }}\n{{ image }}")
    observations = make_observations(1, SIZE)
    shared = policy.encode(observations)["prefix_ids"].tolist()
    text = policy.encoder.processor.tokenizer.decode(shared)
    assert text.endswith("Pick up the can.\nIt is")


@pytest.mark.parametrize("form", ["full", "lora", "trunk"])
def test_recomputed_activations_give_the_same_gradient(make, make_observations, form):
    settings = {"full": {}, "lora": {"use_peft": True}}.get(
        form, {"use_peft": True, "lora_layers": 2}
    )
    policy = make(**settings)
    inputs = policy.encode(make_observations(3, SIZE))
    expected = gradient(policy, inputs)
    policy.set_gradient_checkpointing(True)
    assert torch.equal(gradient(policy.train(), inputs), expected)


def test_what_is_trained_says_where_the_trunk_ends(make, make_policy):
    depth = {"all": None, "top": 1, "two": 2}
    found = {name: make(use_peft=True, lora_layers=n) for name, n in depth.items()}
    assert {name: p.model_pass.trunk_depth for name, p in found.items()} == {
        "all": 0,
        "top": 2,
        "two": 1,
    }
    adapted = {n for n, p in found["top"].backbone.named_parameters() if p.requires_grad}
    assert all(".layers.2." in name for name in adapted)
    assert len(adapted) == 2 * 7
    assert make_policy(freeze_vision=True).model_pass.trunk_depth == 0  # embeddings are trained
    seeing = make(use_peft=True, lora_layers=1, lora_vision_modules=["qkv"])
    assert seeing.model_pass.trunk_depth == 0
    with pytest.raises(UserError, match="lora_layers: 4 is more than the model has: 3"):
        make(use_peft=True, lora_layers=4)


@torch.no_grad()
def test_the_prefix_is_kept_for_the_run_and_no_longer(make, make_observations):
    """Its states below what is trained are computed once, until something else is to be trained."""
    policy = make(use_peft=True, lora_layers=1)
    observations = make_observations(2, SIZE)
    rows = policy(**policy.encode(observations)).kept.rows()
    inputs = policy.encode(observations, rows)
    before = policy(**inputs).logits
    passed = []
    hook = policy.model_pass.language_model.layers[0].register_forward_hook(
        lambda *_: passed.append(1)
    )
    policy(**inputs)
    assert passed == []
    policy.train_as(policy.config)
    assert torch.equal(policy(**inputs).logits, before)
    assert passed == [1]
    hook.remove()


@torch.no_grad()
def test_bfloat16_scores_are_close(make, make_observations):
    observations = make_observations(6, SIZE)
    exact = make(use_peft=True, lora_layers=1)
    coarse = make(use_peft=True, lora_layers=1, dtype="bfloat16")
    first = coarse(**coarse.encode(observations))
    rows = first.kept.rows()
    assert rows[0].values.dtype == torch.bfloat16
    again = coarse(**coarse.encode(observations, rows)).logits
    assert torch.equal(again, first.logits)  # to the bit: the same rows in the same shapes
    difference = first.logits - exact(**exact.encode(observations)).logits
    assert difference.abs().max() < 0.1


def test_a_prompt_that_begins_with_the_picture(make, make_observations):
    policy = make(source="{{ image }}\n{{ gripper }}, {{ last_action }}")
    inputs = policy.encode(make_observations(3, SIZE))
    bare = without_prefix(inputs)
    assert 0 < len(inputs["prefix_ids"]) < 10  # what the chat template begins with
    assert (policy(**inputs).logits - policy(**bare).logits).abs().max() < 1e-5


def test_fewer_layers_may_be_trained_than_have_adapters(make, make_observations):
    """A warm start of all layers, and PPO of the top ones; what is below stays as it is."""
    policy = make(use_peft=True, trained_modules=["connector"])
    assert not policy.vision_is_frozen
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    policy.train_as(ModelConfig(use_peft=True, lora_layers=1, freeze_vision=True))
    assert policy.vision_is_frozen and policy.model_pass.trunk_depth == 2
    inputs = policy.encode(make_observations(3, SIZE))
    optimizer = torch.optim.SGD(policy.backbone_parameters(), 0.1)
    assert len(policy.backbone_parameters()) == 2 * 7
    gradient(policy, inputs)
    optimizer.step()
    moved = {
        n for n, p in policy.backbone.named_parameters() if not p.equal(before["backbone." + n])
    }
    assert len(moved) == 2 * 7 and all(".layers.2." in name for name in moved)
    policy.train_as(ModelConfig(use_peft=True))
    assert policy.model_pass.trunk_depth == 0 and not policy.vision_is_frozen


@torch.no_grad()
def test_weights_that_are_loaded_leave_no_prefix_of_before(make, make_observations):
    policy, other = (make(use_peft=True, lora_layers=1) for _ in range(2))
    observations = make_observations(2, SIZE)
    policy(**policy.encode(observations))
    for parameter in other.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    policy.load_state_dict(other.state_dict())
    expected = other(**other.encode(observations)).logits
    assert torch.equal(policy(**policy.encode(observations)).logits, expected)


def test_a_prompt_may_fail_for_facts_that_no_episode_has(make, make_observations):
    source = "{{ 100 * words_left // (step + words_left) }} % {{ image }} {{ gripper }}"
    policy = make(source=source)
    assert policy(**policy.encode(make_observations(2, SIZE))).logits.shape == (2, 8)
