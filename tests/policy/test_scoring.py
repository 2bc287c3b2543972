"""Scores in one pass against each word as a sequence of its own, with the whole vocabulary."""

import dataclasses
import logging

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from tests.policy.slow import slow_scores, token_log_probs
from vlm_agent.common.errors import UserError
from vlm_agent.policy.backbone.families import FAMILIES
from vlm_agent.policy.backbone.tiny import build_tiny_processor
from vlm_agent.policy.building import build_policy
from vlm_agent.policy.config import ModelConfig
from vlm_agent.policy.decisions import act, evaluate_actions
from vlm_agent.policy.inputs.encoder import ObservationEncoder
from vlm_agent.policy.inputs.prompts import PromptTemplate
from vlm_agent.policy.scoring.functional import log_normalizers, restricted_scores
from vlm_agent.world.observations import Observations

PHRASES = (
    "move forward",
    "move backward",
    "move left",
    "move right",
    "up",
    "move down a little",
    "close gripper",
    "open gripper",
)
SCORINGS = ("first_token", "phrase_sum", "phrase_mean", "phrase_word")


@pytest.fixture
def make_phrase_policy(template):
    def make(seed: int = 0, **settings):
        config = ModelConfig(**{"scoring": "phrase_sum"} | settings)
        return build_policy(config, dataclasses.replace(template, words=PHRASES), seed)

    return make


def log_softmax(scores: torch.Tensor) -> torch.Tensor:
    return scores.double().log_softmax(-1)


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize("use_peft", [False, True], ids=["full", "lora"])
@torch.no_grad()
def test_each_scoring_equals_its_slow_computation(
    make_policy, make_phrase_policy, make_observations, scoring, use_peft
):
    make = make_policy if scoring == "first_token" else make_phrase_policy
    policy = make(scoring=scoring, use_peft=use_peft, temperature=0.7)
    observations = make_observations(5)
    fast = policy(**policy.encode(observations)).logits
    slow = slow_scores(policy, observations)
    assert fast.dtype == torch.float32
    assert (log_softmax(fast) - log_softmax(slow)).abs().max() < 1e-5
    assert log_softmax(slow).std() > 0.05  # not all the same


@torch.no_grad()
def test_scorings_differ_where_words_differ_in_length(make_phrase_policy, make_observations):
    observations = make_observations(1)
    by_scoring = {
        scoring: log_softmax(policy(**policy.encode(observations)).logits)
        for scoring in SCORINGS[1:]
        for policy in [make_phrase_policy(scoring=scoring)]
    }
    lengths = {len(ids) for ids in make_phrase_policy().encoder.words.tokens}
    assert len(lengths) >= 3
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        one, other = (by_scoring[SCORINGS[1:][i]] for i in (a, b))
        assert (one - other).abs().max() > 0.1


@pytest.mark.parametrize("scoring", ["first_token", "phrase_sum", "action_head"])
@torch.no_grad()
def test_padding_company_order_and_size_change_nothing(
    make_policy, make_phrase_policy, make_observations, scoring
):
    make = make_phrase_policy if scoring == "phrase_sum" else make_policy
    policy = make(scoring=scoring)
    if policy.action_head is not None:
        torch.nn.init.normal_(policy.action_head.weight, std=0.1)
    observations = make_observations(9)
    inputs = policy.encode(observations)
    assert len(inputs["attention_mask"].sum(1).unique()) > 1  # some rows are padded
    together = policy(**inputs).logits
    order = np.random.default_rng(0).permutation(9)
    shuffled = policy(**policy.encode(observations[order])).logits
    assert (together[order] - shuffled).abs().max() < 1e-5
    parts = [[0], [1, 2], [3, 4, 5, 6, 7, 8]]
    apart = [policy(**policy.encode(observations[part])).logits for part in parts]
    assert (together - torch.cat(apart)).abs().max() < 1e-5
    frames = observations.frames.copy()
    frames[1:] = 255 - frames[1:]
    others = policy(**policy.encode(Observations(frames, observations.facts))).logits
    assert (together[0] - others[0]).abs().max() < 1e-5
    assert (together[1:] - others[1:]).abs().max() > 1e-3


@pytest.mark.parametrize("scoring", SCORINGS[1:])
def test_gradients_of_packed_phrases_equal_the_slow_way(
    make_phrase_policy, make_observations, scoring
):
    observations, actions = make_observations(3), torch.tensor([1, 5, 6])
    gradients = []
    for slow in (False, True):
        policy = make_phrase_policy(scoring=scoring)
        if slow:
            log_probs = slow_scores(policy, observations).log_softmax(-1)
            log_probs = log_probs.gather(-1, actions[:, None])
        else:
            log_probs = evaluate_actions(policy, policy.encode(observations), actions)[0]
        log_probs.sum().backward()
        gradients.append({n: p.grad for n, p in policy.backbone.named_parameters()})
    assert sum(g.abs().sum() for g in gradients[0].values()) > 1
    for name, fast in gradients[0].items():
        largest = gradients[1][name].abs().max()
        assert (fast - gradients[1][name]).abs().max() < 1e-4 * max(1, largest), name


@torch.no_grad()
def test_scores_of_a_bfloat16_backbone_are_dotted_in_float32(make_policy, make_observations):
    policy = make_policy(dtype="bfloat16")
    inputs = policy.encode(make_observations(4))
    output = policy(**inputs)
    assert output.logits.dtype == output.values.dtype == torch.float32
    hidden = policy.prompt_ends(**inputs)
    head = policy.inner_model.get_output_embeddings().weight
    assert hidden.dtype == head.dtype == torch.bfloat16
    tokens = [ids[0] for ids in policy.encoder.words.tokens]
    expected = hidden.double() @ head[tokens].double().T
    assert (output.logits - expected).abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_autocast_does_not_round_scores_and_normalizers(dtype):
    torch.manual_seed(0)
    hidden, head = torch.randn(3, 2, 128).to(dtype), torch.randn(40, 128).to(dtype)
    states, tokens = torch.tensor([0, 1, 1]), torch.tensor([1, 5, 7])
    with torch.autocast("cpu", torch.bfloat16):
        scores = restricted_scores(hidden, head, states, tokens)
        normalizers = log_normalizers(hidden, head, chunk=17)  # which does not divide 40
    whole = hidden.double() @ head.double().T
    assert (scores - whole[:, states, tokens]).abs().max() < 1e-4
    assert (normalizers - whole.logsumexp(-1)).abs().max() < 1e-4


def test_normalizers_have_the_gradient_of_the_whole_vocabulary():
    torch.manual_seed(0)
    hidden = torch.randn(2, 3, 8, requires_grad=True)
    head = torch.randn(40, 8, requires_grad=True)
    normalizers = log_normalizers(hidden, head, chunk=16)
    ours = torch.autograd.grad(normalizers.square().sum(), [hidden, head])
    plain = (hidden @ head.T).logsumexp(-1).square().sum()
    for mine, theirs in zip(ours, torch.autograd.grad(plain, [hidden, head]), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)


@torch.no_grad()
def test_vocabulary_share_is_the_probability_of_saying_a_word(
    make_policy, make_phrase_policy, make_observations
):
    observations = make_observations(2)
    for policy in (make_policy(), make_phrase_policy(), make_policy(scoring="action_head")):
        share = policy.vocabulary_share(**policy.encode(observations))
        for i in range(2):
            said = [
                token_log_probs(policy, observations[i : i + 1], word).sum().exp()
                for word in range(8)
            ]
            assert share[i] == pytest.approx(float(sum(said)), rel=1e-4)
    assert 0 < share.max() < 0.1


@torch.no_grad()
def test_temperature_divides_the_scores(make_policy, make_observations):
    observations = make_observations(2)
    plain, cool = make_policy(), make_policy(temperature=0.25)
    logits = [policy(**policy.encode(observations)).logits for policy in (plain, cool)]
    assert torch.allclose(4 * logits[0], logits[1])
    warm = act(plain, observations).probs.max(-1)
    assert (act(cool, observations).probs.max(-1) > warm).all()


def test_senseless_words_are_never_said_and_cost_no_entropy(make_policy, make_observations):
    policy = make_policy(mask_senseless_words=True)
    plain = make_policy()
    observations = make_observations(6)
    closed = observations.facts[:, 0].astype(bool)
    assert closed.any()
    assert not closed.all()
    probs = act(policy, observations).probs
    assert (probs[closed, 6] == 0).all()  # a closed gripper does not close
    assert (probs[~closed, 7] == 0).all()
    without = act(plain, observations).probs
    without[closed, 6] = without[~closed, 7] = 0
    assert np.allclose(probs, without / without.sum(-1, keepdims=True), atol=1e-6)

    uniforms = np.array([0.0, 0.2, 0.5, 0.9, 0.99, np.nextafter(1.0, 0.0)])
    said = act(policy, observations, uniforms)
    actions = torch.from_numpy(said.actions)
    log_probs, entropy, *_ = evaluate_actions(policy, policy.encode(observations), actions)
    assert np.array_equal(log_probs.detach().numpy(), said.log_probs)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = -np.nansum(probs * np.log(probs), -1)
    assert np.allclose(entropy.detach().numpy(), expected, atol=1e-5)
    (log_probs.sum() + entropy.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in policy.backbone.parameters())


@torch.no_grad()
def test_action_head_is_linear_in_the_hidden_state(make_policy, make_observations):
    policy = make_policy(scoring="action_head")
    observations = make_observations(3)
    assert np.allclose(act(policy, observations).probs, 1 / 8)  # at the start
    torch.nn.init.normal_(policy.action_head.weight, std=0.1)
    torch.nn.init.normal_(policy.action_head.bias)
    inputs = policy.encode(observations)
    head = policy.action_head
    expected = policy.prompt_ends(**inputs).double() @ head.weight.double().T + head.bias.double()
    assert (policy(**inputs).logits - expected).abs().max() < 1e-5


def test_colliding_words_are_scored_as_phrases_and_the_reason_is_said(template, caplog):
    with caplog.at_level(logging.WARNING):
        policy = build_policy(ModelConfig(), dataclasses.replace(template, words=PHRASES), 0)
    assert policy.config.scoring == "phrase_word"
    assert "'move forward' [" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert build_policy(ModelConfig(), template, 0).config.scoring == "first_token"
    assert caplog.text == ""


def test_refused_words_are_refused_before_the_model_loads(policy, template, tmp_path):
    policy.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    wanted = ModelConfig(model_name_or_path=str(tmp_path), scoring="first_token")
    with pytest.raises(UserError, match="cannot load"):
        build_policy(wanted, template, 0)
    with pytest.raises(UserError, match="action_words: .*'move forward'.*'move backward'"):
        build_policy(wanted, dataclasses.replace(template, words=PHRASES), 0)


def test_the_prompt_ends_where_the_answer_begins(template):
    encoder = ObservationEncoder(build_tiny_processor(), template, FAMILIES["qwen2_vl"])
    prompt = encoder.prompt(template.start_facts)
    assert prompt.endswith("<|im_start|>assistant\n")
    assert prompt.count("<|image_pad|>") == 1


def test_what_the_chat_template_puts_before_an_answer_belongs_to_the_word(template):
    """SmolVLM's and LLaVA's templates end in a colon, and answers begin with a space."""
    processor = build_tiny_processor()
    processor.chat_template = (
        "{% for m in messages %}{{ m.role }}:{% for part in m.content %}"
        "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
        "{% else %} {{ part.text }}{% endif %}{% endfor %}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    encoder = ObservationEncoder(processor, template, FAMILIES["qwen2_vl"])
    assert encoder.prompt(template.start_facts).endswith("assistant:")
    assert encoder.words.pieces[:2] == (("Ġforward",), ("Ġbackward",))


def test_a_prompt_begins_once_and_ends_where_the_answer_begins(template):
    """Llama's tokenizers put a first token before any text; some chat templates write it, too."""
    processor = build_tiny_processor()
    tokenizer = processor.tokenizer
    tokenizer.add_special_tokens({"bos_token": "[BOS]"})
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="[BOS] $A", special_tokens=[("[BOS]", bos)]
    )
    plain = processor.chat_template
    for chat_template in (plain, "[BOS]" + plain):
        processor.chat_template = chat_template
        encoder = ObservationEncoder(processor, template, FAMILIES["qwen2_vl"])
        text = template.render(template.start_facts)
        ids = encoder.row(text, (56, 56, 3))["input_ids"][0].tolist()
        assert ids[0] == bos
        assert ids.count(bos) == 1
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A [BOS]", special_tokens=[("[BOS]", bos)]
    )
    processor.chat_template = plain
    with pytest.raises(UserError, match=r"'\[BOS\]' between prompt and answer"):
        ObservationEncoder(processor, template, FAMILIES["qwen2_vl"])


def test_placeholders_that_are_no_special_tokens_are_refused():
    processor = build_tiny_processor()
    processor.tokenizer.add_tokens(["<picture>"])
    bad = PromptTemplate("{{ image }} <picture> {{ task }}", "task")
    with pytest.raises(UserError, match="special token '<picture>'"):
        ObservationEncoder(processor, bad, FAMILIES["qwen2_vl"])


def test_the_tokenizers_own_special_tokens_are_refused():
    processor = build_tiny_processor()
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["[GO]"]})
    bad = PromptTemplate("{{ image }} [GO] {{ task }}", "task")
    with pytest.raises(UserError, match=r"special token '\[GO\]'"):
        ObservationEncoder(processor, bad, FAMILIES["qwen2_vl"])


def test_the_picture_reaches_the_scores(make_policy, make_observations):
    policy = make_policy()
    observations = make_observations(2)
    same_facts = Observations(observations.frames, observations.facts[[0, 0]])
    with torch.no_grad():
        logits = policy(**policy.encode(same_facts)).logits
    assert (logits[0] - logits[1]).abs().max() > 1e-3
