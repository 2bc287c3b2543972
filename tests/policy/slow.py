"""The slow ways to what the policy computes in one pass, as references for tests.

They use transformers' processor and full ``forward`` on one observation at a time, without
padding, cached rows, image features or packed phrases.
"""

from __future__ import annotations

import torch

from vlm_agent.policy.policy import VLMPolicy
from vlm_agent.world.observations import Observations


def processed(policy: VLMPolicy, observation: Observations) -> dict[str, torch.Tensor]:
    """The library's inputs for one observation."""
    prompt = policy.encoder.prompt(observation.facts[0].tolist())
    frame = observation.frames[0]
    images = [[frame]] if policy.family.nested_images else [frame]
    options = policy.family.image_options
    return dict(
        policy.encoder.processor(text=[prompt], images=images, return_tensors="pt", **options)
    )


def with_tokens(inputs: dict[str, torch.Tensor], tokens: tuple[int, ...]) -> dict:
    """The same with a word's tokens behind the prompt."""
    longer = dict(inputs)
    behind = torch.tensor([tokens], dtype=torch.int64)
    longer["input_ids"] = torch.cat([inputs["input_ids"], behind], 1)
    for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        if name in inputs:
            longer[name] = torch.cat([inputs[name], torch.full_like(behind, value)], 1)
    return longer


def token_log_probs(policy: VLMPolicy, observation: Observations, word: int) -> torch.Tensor:
    """Log-probabilities of a word's tokens, each among the whole vocabulary, float64 (n,)."""
    inputs = processed(policy, observation)
    tokens = policy.encoder.words.tokens[word]
    logits = policy.inner_model(**with_tokens(inputs, tokens)).logits[0].double()
    start = inputs["input_ids"].shape[1]
    predicted = logits[start - 1 : start - 1 + len(tokens)].log_softmax(-1)
    return predicted.gather(1, torch.tensor(tokens)[:, None])[:, 0]


def slow_scores(policy: VLMPolicy, observations: Observations) -> torch.Tensor:
    """Scores of all words by the policy's scoring, each as a sequence of its own, (B, A)."""
    rows = []
    for i in range(len(observations)):
        row = []
        for word, name in enumerate(policy.words):
            log_probs = token_log_probs(policy, observations[i : i + 1], word)
            divisor = {
                "first_token": 1,
                "phrase_sum": 1,
                "phrase_mean": len(log_probs),
                "phrase_word": name.count(" ") + 1,
            }[policy.config.scoring]
            counted = log_probs[:1] if policy.config.scoring == "first_token" else log_probs
            row.append(counted.sum() / divisor)
        rows.append(torch.stack(row))
    return torch.stack(rows) / policy.config.temperature
