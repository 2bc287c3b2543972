"""Word scores from hidden states: pure functions, in fp32 whatever the backbone's dtype."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

VOCABULARY_CHUNK = 16_384
"""Rows of the language head that are multiplied at once."""


def restricted_scores(
    hidden_BSD: torch.Tensor, head_VD: torch.Tensor, states_E: torch.Tensor, tokens_E: torch.Tensor
) -> torch.Tensor:
    """Next-token scores (logits) of a few tokens, fp32 (B, E), without the rest of the vocabulary.

    Equal to ``(hidden_BSD @ head_VD.T)[:, states_E, tokens_E]`` with E dot products a row instead
    of S x V.

    Args:
        hidden_BSD: Final hidden states, after the last norm, of any float dtype.
        head_VD: The language head's weight.
        states_E: Which state each token is scored at, int64.
        tokens_E: The tokens, int64.
    """
    with torch.autocast(hidden_BSD.device.type, enabled=False):
        # Not `hidden_BSD[:, states_E]` and `head_VD[tokens_E]`: several threads add up the gradient
        # of indexing in the order in which they come, and many words share the prompt's end.
        rows_ED = nn.functional.embedding(tokens_E, head_VD).float()
        chosen_BED = hidden_BSD.index_select(1, states_E).float()
        return torch.einsum("bed,ed->be", chosen_BED, rows_ED)


def log_normalizers(
    hidden_BSD: torch.Tensor, head_VD: torch.Tensor, chunk: int = VOCABULARY_CHUNK
) -> torch.Tensor:
    """Log Σ exp of the scores of the whole vocabulary, fp32 (B, S).

    The vocabulary is taken in chunks that are recomputed for the gradient, so neither the scores
    nor an fp32 copy of the head ever exist as a whole.

    Args:
        hidden_BSD: Final hidden states.
        head_VD: The language head's weight.
        chunk: Rows of it that are multiplied at once.
    """
    with torch.autocast(hidden_BSD.device.type, enabled=False):
        hidden = hidden_BSD.float()
        parts = [
            checkpoint(
                _chunk_normalizer, hidden, rows, use_reentrant=False, preserve_rng_state=False
            )
            for rows in head_VD.split(chunk)
        ]
        return torch.stack(parts).logsumexp(0)


def _chunk_normalizer(hidden_BSD: torch.Tensor, rows_CD: torch.Tensor) -> torch.Tensor:
    return (hidden_BSD @ rows_CD.float().T).logsumexp(-1)


def phrase_scores(
    scores_BE: torch.Tensor,
    normalizers_BS: torch.Tensor,
    states_E: torch.Tensor,
    weights_EA: torch.Tensor,
) -> torch.Tensor:
    """Scores of whole phrases, fp32 (B, A): weighted sums of their tokens' log-probabilities.

    They are added up in fp64: a phrase of many tokens is so improbable that fp32 would round it
    by more than 1e-5.

    Args:
        scores_BE: Of the phrases' tokens, from :func:`restricted_scores`.
        normalizers_BS: Of the states, from :func:`log_normalizers`.
        states_E: Which state each token is scored at.
        weights_EA: 1 / divisor where the token belongs to the phrase, else 0; fp64.
    """
    with torch.autocast(scores_BE.device.type, enabled=False):
        log_probs_BE = (scores_BE - normalizers_BS.index_select(1, states_E)).double()
        return (log_probs_BE @ weights_EA).float()
