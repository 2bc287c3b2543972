"""What a decision costs: ours against a bare backbone, and against the ways others score words.

The tiny model gets Qwen2-VL's vocabulary, since its own, of a few hundred tokens, would hide what
the whole vocabulary's scores cost; its own is measured beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vlm_agent.bench.models import (
    FRAME_SIZES,
    benchmark_encoder,
    benchmark_model,
    benchmark_policy,
    gpu_figures,
    random_observations,
    take_turns,
)
from vlm_agent.policy.inputs.encoder import ObservationEncoder
from vlm_agent.world.observations import Observations


def measure(
    arch: str, device: str, vocabulary: int, batch_size: int, frame_size: int, rounds: int
) -> dict[str, Any]:
    """Ratios of median times, with the whole vocabulary and, for ``tiny``, with its own."""
    encoder = benchmark_encoder()
    observations = random_observations(batch_size, frame_size or FRAME_SIZES[arch])
    figures = _compare(encoder, observations, arch, device, vocabulary, rounds)
    if arch == "tiny":
        own = len(encoder.processor.tokenizer)
        beside = _compare(encoder, observations, arch, device, own, rounds)
        figures |= {f"{key}_own_vocabulary": value for key, value in beside.items()}
    return figures


@torch.no_grad()
def _compare(
    encoder: ObservationEncoder,
    observations: Observations,
    arch: str,
    device: str,
    vocabulary: int,
    rounds: int,
) -> dict[str, Any]:
    model = benchmark_model(arch, vocabulary, device, encoder)
    policy = benchmark_policy(model, encoder)
    inputs = policy.encode(observations)
    plain = library_inputs(encoder, observations, device)
    longest = max(len(ids) for ids in encoder.words.tokens)
    contenders: dict[str, Callable[[], object]] = {
        "ours": lambda: policy(**inputs),
        "backbone": lambda: model.model(**plain, use_cache=False),
        "generate": lambda: model.generate(
            **plain,
            max_new_tokens=longest + 1,  # the word, and the token that says it has ended
            eos_token_id=None,
            do_sample=True,
            return_dict_in_generate=True,
            output_logits=True,
        ),
        "sequences": lambda: eight_sequences(model, encoder, plain),
    }
    for scoring in ("phrase_sum", "phrase_word"):
        phrases = benchmark_policy(model, encoder, scoring=scoring)
        contenders[scoring] = lambda phrases=phrases: phrases(**inputs)  # type: ignore[misc]
    whole = benchmark_policy(model, encoder)
    whole.rows.shares = False
    unshared = whole.encode(observations)
    contenders["whole_prompts"] = lambda: whole(**unshared)
    seconds = take_turns(contenders, rounds, device)
    ours = seconds["ours"]
    figures = {
        "overhead_vs_backbone": ours / seconds["backbone"],
        "speedup_vs_phrases": seconds["sequences"] / ours,
        "speedup_vs_generate": seconds["generate"] / ours,
        "phrase_overhead": seconds["phrase_sum"] / ours,
        "phrase_word_overhead": seconds["phrase_word"] / ours,
        "speedup_prefix": seconds["whole_prompts"] / ours,
        "decisions_per_s": len(observations) / ours,
    }
    if device == "cuda":
        figures |= gpu_figures(contenders["ours"], ours)
    return figures


def library_inputs(
    encoder: ObservationEncoder, observations: Observations, device: str
) -> dict[str, torch.Tensor]:
    """What transformers' own processor makes of the batch."""
    made = encoder.processor(
        text=[encoder.prompt(facts) for facts in observations.facts.tolist()],
        images=list(observations.frames),
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    return {name: value.to(device) for name, value in made.items()}


def eight_sequences(
    model: Any,
    encoder: ObservationEncoder,
    plain: dict[str, torch.Tensor],
    tokens_scored: int | None = None,
) -> torch.Tensor:
    """Each word behind each prompt as a sequence of its own, with the whole vocabulary's scores.

    So do Tan et al., *True Knowledge Comes from Practice* (TWOSOME, 2024). One word of all
    observations makes a batch: all words at once would need eight times the memory.

    Args:
        model: The model.
        encoder: Knows the words' tokens.
        plain: Inputs of B prompts.
        tokens_scored: How many of a word's first tokens count; by default all.

    Returns:
        Sums of the tokens' log-probabilities, (B, A).
    """
    scores = []
    start = plain["input_ids"].shape[1]
    for tokens in encoder.words.tokens:
        ids_BN = torch.tensor([tokens], device=plain["input_ids"].device)
        ids_BN = ids_BN.expand(len(plain["input_ids"]), -1)
        longer = {
            **plain,
            "input_ids": torch.cat([plain["input_ids"], ids_BN], 1),
            "attention_mask": torch.cat([plain["attention_mask"], torch.ones_like(ids_BN)], 1),
            "mm_token_type_ids": torch.cat(
                [plain["mm_token_type_ids"], torch.zeros_like(ids_BN)], 1
            ),
        }
        logits = model(**longer).logits[:, start - 1 : -1].float()
        log_probs = logits.log_softmax(-1).gather(-1, ids_BN[..., None])
        scores.append(log_probs[:, :tokens_scored].sum((1, 2)))
    return torch.stack(scores, 1)
