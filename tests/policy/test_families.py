"""Each supported family, with a tiny random model of its own configuration class."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.policy.families import BUILDERS, save_family
from tests.policy.slow import slow_scores
from tests.policy.test_scoring import PHRASES, log_softmax
from vlm_agent.common.errors import UserError
from vlm_agent.policy.backbone.families import FAMILIES, Family
from vlm_agent.policy.building import build_policy, merge_adapter
from vlm_agent.policy.config import ModelConfig
from vlm_agent.policy.decisions import act, evaluate_actions
from vlm_agent.policy.inputs.encoder import ObservationEncoder
from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.world.observations import Observations

SIZE = 56


@pytest.fixture(scope="module", params=BUILDERS)
def folder(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    save_family(request.param, path)
    return path


@pytest.fixture
def make(folder, template):
    def build(words=None, **settings) -> VLMPolicy:
        chosen = template if words is None else dataclasses.replace(template, words=words)
        return build_policy(ModelConfig(model_name_or_path=str(folder), **settings), chosen, 0)

    return build


def test_all_families_are_tested():
    assert set(BUILDERS) == set(FAMILIES)


@pytest.mark.parametrize("words", [None, PHRASES], ids=["first tokens", "phrases"])
@torch.no_grad()
def test_scores_are_those_of_the_library_one_by_one(make, make_observations, words):
    policy = make(words, **({} if words is None else {"scoring": "phrase_sum"})).eval()
    observations = make_observations(4, SIZE)
    inputs = policy.encode(observations)
    fast, slow = policy(**inputs).logits, slow_scores(policy, observations)
    assert (log_softmax(fast) - log_softmax(slow)).abs().max() < 1e-5
    assert log_softmax(slow).std() > 0.05
    frames = observations.frames[[1, 0, 3, 2]]
    swapped = policy(**policy.encode(Observations(frames, observations.facts))).logits
    assert (swapped - fast).abs().max() > 1e-3  # the pictures matter


def test_prompts_are_put_together_as_the_library_makes_them(
    folder, template, make_observations, monkeypatch
):
    """The library is asked once for each number of tokens around the picture."""
    row, asked = ObservationEncoder.row, []
    monkeypatch.setattr(
        ObservationEncoder, "row", lambda self, *what: asked.append(what) or row(self, *what)
    )
    template = dataclasses.replace(template, source="{{ image }}\n{{ step }}\n{{ last_action }}")
    policy = build_policy(ModelConfig(model_name_or_path=str(folder)), template, 0)
    observations = make_observations(40, SIZE)
    inputs = policy.encode(observations)
    assert len(asked) < 20
    for n, facts in enumerate(observations.facts.tolist()):
        expected = row(policy.encoder, template.render(facts), (SIZE, SIZE, 3))["input_ids"][0]
        assert torch.equal(inputs["input_ids"][n, -len(expected) :], expected)


@torch.no_grad()
def test_a_larger_frame_is_still_one_tile(make, make_observations):
    """Idefics3 and InternVL would cut it into several, each with all the tokens of one."""
    policy = make(use_peft=True).eval()
    observations = make_observations(2, 2 * SIZE)
    inputs = policy.encode(observations)
    image_token = policy.encoder.processor.image_token_id
    tokens = (inputs["input_ids"] == image_token).sum(1).tolist()
    features = policy(**inputs).kept.values
    assert tokens == [features.shape[2]] * 2
    if not policy.family.mrope:  # Qwen's tokens grow with the picture
        assert tokens[0] == {"llava": 16}.get(policy.inner_model.config.model_type, 4)


@torch.no_grad()
def test_features_give_the_scores_that_frames_give(make, make_observations):
    policy = make(use_peft=True).eval()
    assert policy.vision_is_frozen
    observations = make_observations(3, SIZE)
    first = policy(**policy.encode(observations))
    rows = first.kept.rows()
    assert len(rows) == 3
    again = policy(**policy.encode(observations, rows))
    assert torch.equal(first.logits, again.logits)
    assert again.kept is None
    other = policy(**policy.encode(observations, rows[::-1]))
    assert (other.logits - first.logits).abs().max() > 1e-3
    completed = policy(**policy.encode(observations, [rows[0], None, None]))
    assert (completed.logits - first.logits).abs().max() < 1e-5


def test_gradients_reach_all_that_is_trained_and_nothing_else(make, make_observations):
    observations, actions = make_observations(2, SIZE), torch.tensor([0, 1])
    policy = make()
    log_probs, *_ = evaluate_actions(policy, policy.encode(observations), actions)
    log_probs.sum().backward()
    inner = policy.inner_model.model
    for part in (policy.family.language_model, *policy.family.vision):
        gradients = [p.grad for p in inner.get_submodule(part).parameters()]
        assert sum(float(g.abs().sum()) for g in gradients if g is not None) > 0, part

    for settings in ({}, {"use_peft": True}, {"scoring": "action_head"}):
        policy = make(**settings)
        output = policy(**policy.encode(observations))
        (output.logits.sum() + output.values.sum()).backward()
        trained = {n: p for n, p in policy.named_parameters() if p.requires_grad}
        without = [name for name, p in trained.items() if p.grad is None]
        # DDP would wait for them.
        assert not without or (policy.family.skips_layers and not policy.vision_is_frozen)
        assert (output.kept is None) == (not policy.vision_is_frozen)

    policy = make(use_peft=True)
    adapted = [n for n, p in policy.backbone.named_parameters() if p.requires_grad]
    assert len(adapted) == 2 * 7 * 2  # A and B of seven layers in two blocks
    assert all(f".{policy.family.language_model}." in name for name in adapted)
    frozen = make(freeze_vision=True)
    assert frozen.vision_is_frozen
    assert any(p.requires_grad for p in frozen.backbone.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("part", ["connector", "vision_tower"])
def test_a_part_is_trained_beside_the_adapters(make, make_observations, tmp_path, part, dtype):
    observations = make_observations(2, SIZE)
    policy = make(use_peft=True, trained_modules=[part], lora_layers=2, dtype=dtype)
    inner = policy.inner_model.model
    trained = {n for n, p in policy.backbone.named_parameters() if p.requires_grad}
    beside = {n for n in trained if "lora" not in n}
    expected = policy.family.connector if part == "connector" else policy.family.vision
    paths = [path for path in expected if policy.family.parts(inner, part)]
    assert beside and all(any(f".{path}." in name for path in paths) for name in beside)
    assert {
        p.dtype for n, p in policy.named_parameters() if n.removeprefix("backbone.") in beside
    } == {torch.float32}
    assert not policy.vision_is_frozen and policy.model_pass.trunk_depth == 0
    log_probs, *_ = evaluate_actions(policy, policy.encode(observations), torch.tensor([0, 1]))
    log_probs.sum().backward()
    gradients = [p.grad for n, p in policy.backbone.named_parameters() if n in beside]
    assert sum(float(g.abs().sum()) for g in gradients if g is not None) > 0
    before = act(policy.eval(), observations).probs
    with torch.no_grad():
        for name, parameter in policy.backbone.named_parameters():
            if name in trained:
                parameter.add_(0.01 * torch.randn_like(parameter))
    mine = act(policy, observations).probs
    assert np.abs(mine - before).max() > 1e-4
    policy.save_pretrained(tmp_path / "policy")
    loaded = VLMPolicy.from_pretrained(tmp_path / "policy").eval()
    assert np.array_equal(act(loaded, observations).probs, mine)
    merged = merge_adapter(tmp_path / "policy").eval()
    assert {p.dtype for p in merged.backbone.parameters()} == {getattr(torch, dtype)}
    assert (merged.config.lora_layers, merged.config.trained_modules) == (None, [])
    error = np.abs(act(merged, observations).probs - mine).max()
    assert error < (1e-5 if dtype == "float32" else 0.02)


def test_saved_policies_score_the_same(make, make_observations, tmp_path):
    observations = make_observations(3, SIZE)
    for name, settings in {"full": {}, "lora": {"use_peft": True}}.items():
        policy = make(**settings)
        torch.nn.init.normal_(policy.value_head.output.weight)
        with torch.no_grad():
            for parameter in policy.backbone_parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        policy.eval().save_pretrained(tmp_path / name)
        loaded = VLMPolicy.from_pretrained(tmp_path / name).eval()
        mine, theirs = act(policy, observations), act(loaded, observations)
        assert np.array_equal(mine.probs, theirs.probs)
        assert np.array_equal(mine.values, theirs.values)
        assert loaded.words == policy.words


@torch.no_grad()
def test_a_family_is_added_from_outside_by_one_row(template, make_observations, tmp_path):
    save_family("vipllava", tmp_path / "model")
    config = ModelConfig(model_name_or_path=str(tmp_path / "model"), use_peft=True)
    with pytest.raises(UserError, match="is a 'vipllava', expected one of"):
        build_policy(config, template, 0)
    observations = make_observations(3, SIZE)
    FAMILIES["vipllava"] = Family(tensor_features=True, skips_layers=True)
    try:
        policy = build_policy(config, template, 0).eval()
        fast, slow = policy(**policy.encode(observations)).logits, slow_scores(policy, observations)
        policy.save_pretrained(tmp_path / "policy")
        loaded = VLMPolicy.from_pretrained(tmp_path / "policy").eval()
        again = loaded(**loaded.encode(observations)).logits
    finally:
        del FAMILIES["vipllava"]
    assert (log_softmax(fast) - log_softmax(slow)).abs().max() < 1e-5
    assert log_softmax(slow).std() > 0.05
    assert torch.equal(again, fast)
