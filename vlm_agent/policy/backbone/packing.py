"""Prompts that begin alike as one sequence, in which what they share stands once.

The sequence is the shared prefix (K tokens) and behind it what follows in each of the B rows
(S tokens). Layers other than attention take tokens one by one, so nothing else has to know;
attention is told who sees whom by a :class:`Packing`. A row sees the prefix and itself, so each
hidden state is what it would be in a prompt of its own, and the prefix's gradients are summed over
the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED_ATTENTION = "packed_rows"
"""The name under which transformers finds :func:`packed_attention`."""


@dataclass(frozen=True)
class Packing:
    """How a prefix and B rows stand in one sequence of K + B x S tokens.

    Attributes:
        prefix: K.
        mask: Which tokens of the prefix and of its row each token of a row sees, bool
            (B, 1, S, K + S).
    """

    prefix: int
    mask: torch.Tensor

    def pack(self, prefix_KX: torch.Tensor, rows_BSX: torch.Tensor) -> torch.Tensor:
        """The sequence, (1, K + B x S, …), of what stands for its tokens."""
        return torch.cat([prefix_KX, rows_BSX.flatten(0, 1)])[None]

    def unpack(self, packed_1TX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Prefix (K, …) and rows (B, S, …) of a sequence."""
        packed_TX = packed_1TX[0]
        rows = packed_TX[self.prefix :].unflatten(0, (self.mask.shape[0], self.mask.shape[2]))
        return packed_TX[: self.prefix], rows


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    packing: Packing | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' ``sdpa`` attention, row by row where a sequence is packed.

    Args:
        module: The attention layer.
        query: (1, heads, T, width).
        key: (1, key heads, T, width).
        value: As ``key``.
        attention_mask: Counts where nothing is packed.
        packing: How the sequence is packed, if it is.
        options: Of ``sdpa``.

    Returns:
        (1, T, heads, width), and no weights.
    """
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    (prefix_query, query), (prefix_key, key), (prefix_value, value) = (
        _split(packing, states) for states in (query, key, value)
    )
    key, value = _behind(prefix_key, key), _behind(prefix_value, value)
    rows_BSHX, _ = sdpa_attention_forward(module, query, key, value, packing.mask, **options)
    attended_1THX = rows_BSHX.flatten(0, 1)[None]
    if packing.prefix:
        prefix_1KHX, _ = sdpa_attention_forward(
            module, prefix_query, prefix_key, prefix_value, None, **options
        )
        attended_1THX = torch.cat([prefix_1KHX, attended_1THX], 1)
    return attended_1THX, None


def _split(packing: Packing, states_1HTX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Prefix (1, heads, K, width) and rows (B, heads, S, width)."""
    prefix_KHX, rows_BSHX = packing.unpack(states_1HTX.transpose(1, 2))
    return prefix_KHX.transpose(0, 1)[None], rows_BSHX.transpose(1, 2)


def _behind(prefix_1HKX: torch.Tensor, rows_BHSX: torch.Tensor) -> torch.Tensor:
    return torch.cat([prefix_1HKX.expand(len(rows_BHSX), -1, -1, -1), rows_BHSX], 2)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)
