"""Word scores: the language head's next-token scores, restricted to the words' first tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vlm_agent.errors import UserError


def word_tokens(tokenizer: Any, prompt: str, words: Sequence[str]) -> list[list[int]]:
    """The token ids each word has as the continuation of a prompt.

    A word is tokenised in its context, since what stands before it decides how it is cut.

    Args:
        tokenizer: A Hugging Face tokenizer.
        prompt: The whole text before the word: chat template applied, generation prompt included.
        words: The action words.

    Raises:
        UserError: A word joins with the end of the prompt into one token.
    """
    start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    tokens = []
    for word in words:
        ids = tokenizer(prompt + word, add_special_tokens=False)["input_ids"]
        if ids[: len(start)] != start or len(ids) == len(start):
            raise UserError(f"the action word {word!r} merges with the end of the prompt")
        tokens.append(ids[len(start) :])
    return tokens


def first_token_ids(tokenizer: Any, prompt: str, words: Sequence[str]) -> list[int]:
    """The first token of each word, which tells the words apart.

    Raises:
        UserError: Two words begin with the same token; the message shows the words and tokens.
    """
    tokens = word_tokens(tokenizer, prompt, words)
    by_first: dict[int, list[int]] = {}
    for index, ids in enumerate(tokens):
        by_first.setdefault(ids[0], []).append(index)
    shared = [indices for indices in by_first.values() if len(indices) > 1]
    if shared:
        groups = "; ".join(
            " and ".join(
                f"{words[i]!r} {tokenizer.convert_ids_to_tokens(tokens[i])}" for i in indices
            )
            for indices in shared
        )
        raise UserError(f"action_words: words begin with the same token: {groups}")
    return [ids[0] for ids in tokens]


def restricted_scores(
    hidden_BD: torch.Tensor, head_VD: torch.Tensor, token_ids_A: torch.Tensor
) -> torch.Tensor:
    """Next-token scores of a few tokens, fp32 (B, A), without the rest of the vocabulary.

    Equal to ``(hidden_BD @ head_VD.T)[:, token_ids_A]`` with A dot products a row instead of V.

    Args:
        hidden_BD: Final hidden states, after the last norm, of any float dtype.
        head_VD: The language head's weight.
        token_ids_A: int64 (A,).
    """
    with torch.autocast(hidden_BD.device.type, enabled=False):
        return hidden_BD.float() @ head_VD[token_ids_A].float().T
