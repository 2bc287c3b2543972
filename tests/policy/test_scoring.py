import numpy as np
import pytest
import torch

from vlm_agent.actions import DEFAULT_WORDS
from vlm_agent.errors import UserError
from vlm_agent.observations import Observations
from vlm_agent.policy import policy as policy_module
from vlm_agent.policy.config import ModelConfig
from vlm_agent.policy.encoding import START_FACTS, ObservationEncoder
from vlm_agent.policy.policy import build_policy
from vlm_agent.policy.scoring import first_token_ids, restricted_scores, word_tokens
from vlm_agent.policy.tiny import build_tiny_processor
from vlm_agent.prompts import PromptTemplate


def one_by_one_reference(policy, observations: Observations) -> np.ndarray:
    """Full-vocabulary logits by transformers' own head, each observation alone, unpadded."""
    rows = []
    for i in range(len(observations)):
        inputs = policy.encode(observations[i : i + 1])
        assert inputs["attention_mask"].all()
        logits = policy.inner_model(**inputs).logits[0, -1]
        ids = [
            policy.encoder.processor.tokenizer(word, add_special_tokens=False)["input_ids"][0]
            for word in policy.words
        ]
        rows.append(logits[ids].float().numpy())
    return np.stack(rows)


@pytest.mark.parametrize("use_peft", [False, True], ids=["full", "lora"])
@torch.no_grad()
def test_scores_equal_the_columns_of_the_full_logits(make_policy, make_observations, use_peft):
    policy = make_policy(use_peft=use_peft)
    observations = make_observations(9)
    scores = policy(**policy.encode(observations)).logits.numpy()
    assert np.abs(scores - one_by_one_reference(policy, observations)).max() < 1e-5
    assert scores.std() > 0.01  # not all the same


@torch.no_grad()
def test_scores_of_a_bfloat16_backbone_are_dotted_in_float32(make_policy, make_observations):
    policy = make_policy(dtype="bfloat16")
    inputs = policy.encode(make_observations(4))
    output = policy(**inputs)
    assert output.logits.dtype == output.values.dtype == torch.float32
    hidden = policy.inner_model.model(**inputs).last_hidden_state[:, -1]
    head = policy.inner_model.get_output_embeddings().weight
    assert hidden.dtype == head.dtype == torch.bfloat16
    expected = hidden.double() @ head[policy.word_token_ids].double().T
    assert (output.logits - expected).abs().max() < 1e-5


@torch.no_grad()
def test_autocast_does_not_round_the_scores():
    hidden, head = torch.randn(3, 128), torch.randn(40, 128)
    ids = torch.tensor([1, 5, 7])
    with torch.autocast("cpu", torch.bfloat16):
        scores = restricted_scores(hidden, head, ids)
    assert (scores - (hidden.double() @ head.double().T)[:, ids]).abs().max() < 1e-4


@torch.no_grad()
def test_padding_company_and_order_change_nothing(make_policy, make_observations):
    policy = make_policy()
    observations = make_observations(9)
    inputs = policy.encode(observations)
    lengths = inputs["attention_mask"].sum(1)
    assert len(lengths.unique()) > 1  # some rows are padded
    together = policy(**inputs)
    order = np.random.default_rng(0).permutation(9)
    shuffled = policy(**policy.encode(observations[order]))
    assert (together.logits[order] - shuffled.logits).abs().max() < 1e-5
    halves = [
        policy(**policy.encode(observations[part])).logits
        for part in ([0, 1, 2], [3, 4, 5, 6, 7, 8])
    ]
    assert (together.logits - torch.cat(halves)).abs().max() < 1e-5


def test_each_word_is_tokenised_where_it_stands():
    processor = build_tiny_processor()
    tokens = word_tokens(processor.tokenizer, "assistant\n", DEFAULT_WORDS)
    decoded = [processor.tokenizer.decode(ids) for ids in tokens]
    assert decoded == list(DEFAULT_WORDS)
    assert first_token_ids(processor.tokenizer, "assistant\n", DEFAULT_WORDS) == [
        ids[0] for ids in tokens
    ]


def test_words_with_one_first_token_are_refused_with_their_tokens():
    tokenizer = build_tiny_processor().tokenizer
    words = ["close gripper", "close door", "up", "open"]
    with pytest.raises(UserError) as caught:
        first_token_ids(tokenizer, "assistant\n", words)
    message = str(caught.value)
    assert "'close gripper' ['close', 'Ġgripper'] and 'close door' ['close'," in message
    assert "'up'" not in message


def test_building_a_policy_refuses_such_words_before_the_model_loads(monkeypatch):
    def load(*_):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(policy_module, "load_base_model", load)
    words = ("up a", "up b", "c", "d", "e", "f", "g", "h")
    template = PromptTemplate("{{ image }}", "task", words=words)
    with pytest.raises(UserError, match="action_words: .*'up a'.*'up b'"):
        build_policy(ModelConfig(), template, 0)


def test_a_word_that_merges_with_the_prompt_is_refused():
    tokenizer = build_tiny_processor().tokenizer
    with pytest.raises(UserError, match="'ward' merges"):
        word_tokens(tokenizer, "for", ["ward"])


def test_the_prompt_ends_where_the_answer_begins(template):
    encoder = ObservationEncoder(build_tiny_processor(), template)
    prompt = encoder.prompt(START_FACTS)
    assert prompt.endswith("<|im_start|>assistant\n")
    assert prompt.count("<|image_pad|>") == 1


def test_the_tokenizers_own_special_tokens_are_refused(template):
    processor = build_tiny_processor()
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["[GO]"]})
    bad = PromptTemplate("{{ image }} [GO] {{ task }}", "task")
    with pytest.raises(UserError, match=r"special token '\[GO\]'"):
        ObservationEncoder(processor, bad)


def test_the_picture_reaches_the_scores(make_policy, make_observations):
    policy = make_policy()
    observations = make_observations(2)
    same_facts = Observations(observations.frames, observations.facts[[0, 0]])
    with torch.no_grad():
        logits = policy(**policy.encode(same_facts)).logits
    assert (logits[0] - logits[1]).abs().max() > 1e-3
