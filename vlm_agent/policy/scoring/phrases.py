"""Phrases packed behind one prompt as a tree: all of them are scored in one pass.

Words that begin alike share their first tokens, as in a trie. Each node is a token that some word
goes on from; it is put behind the prompt, sees the prompt and the nodes above it, and stands at
the position it would have if it were alone there. So every hidden state is what it would be if
each word were a sequence of its own, and gradients are, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class PhraseTree:
    """The proper beginnings of the words as N nodes, and where each token of a word is scored.

    State 0 is the end of the prompt, state n + 1 is node n.

    Attributes:
        node_tokens: Token of each node.
        node_parents: State each node follows.
        node_depths: How many tokens from the prompt, from 1.
        edge_states: State at which each of the E tokens of all words is predicted.
        edge_tokens: These tokens.
        edge_words: Index of the word each belongs to.
    """

    node_tokens: tuple[int, ...]
    node_parents: tuple[int, ...]
    node_depths: tuple[int, ...]
    edge_states: tuple[int, ...]
    edge_tokens: tuple[int, ...]
    edge_words: tuple[int, ...]

    @classmethod
    def of(cls, words: Sequence[Sequence[int]]) -> PhraseTree:
        """The tree of words given as token ids."""
        states: dict[tuple[int, ...], int] = {(): 0}
        edges = []
        for index, tokens in enumerate(words):
            for length, token in enumerate(tokens):
                before = tuple(tokens[:length])
                states.setdefault(before, len(states))
                edges.append((states[before], token, index))
        nodes = [prefix for prefix in states if prefix]
        edge_states, edge_tokens, edge_words = zip(*edges, strict=True)
        return cls(
            node_tokens=tuple(prefix[-1] for prefix in nodes),
            node_parents=tuple(states[prefix[:-1]] for prefix in nodes),
            node_depths=tuple(len(prefix) for prefix in nodes),
            edge_states=edge_states,
            edge_tokens=edge_tokens,
            edge_words=edge_words,
        )

    def sees(self) -> torch.Tensor:
        """Which node sees which, bool (N, N): itself and the nodes above it."""
        size = len(self.node_tokens)
        sees_NN = torch.eye(size, dtype=torch.bool)
        for node, parent in enumerate(self.node_parents):
            if parent > 0:  # its parent is a node, and has its own row already
                sees_NN[node] |= sees_NN[parent - 1]
        return sees_NN


def packed_mask(
    prompt_mask_BL: torch.Tensor, sees_NN: torch.Tensor, prefix: int = 0
) -> torch.Tensor:
    """Who attends to whom in prompts followed by nodes: bool (B, 1, L + N, K + L + N).

    Args:
        prompt_mask_BL: 0 for padding, which stands on the left.
        sees_NN: Which node sees which.
        prefix: K, how many tokens stand before all of them, that all of them see.
    """
    length, size = prompt_mask_BL.shape[1], len(sees_NN)
    total = length + size
    mask_QK = torch.ones(total, total, dtype=torch.bool, device=sees_NN.device).tril()
    mask_QK[length:, length:] = sees_NN
    keys_BK = torch.nn.functional.pad(prompt_mask_BL.bool(), (0, size), value=True)
    mask_BQK = mask_QK & keys_BK[:, None, :]
    # Padding sees itself: a row that sees nothing would be divided by zero.
    mask_BQK |= torch.eye(total, dtype=torch.bool, device=mask_BQK.device)
    return torch.nn.functional.pad(mask_BQK, (prefix, 0), value=True)[:, None]


def packed_positions(positions_PBL: torch.Tensor, depths_N: torch.Tensor) -> torch.Tensor:
    """Position ids of prompts followed by nodes: (P, B, L + N) from those of the prompts."""
    last_PB1 = positions_PBL[..., -1:]
    return torch.cat([positions_PBL, last_PB1 + depths_N], -1)
