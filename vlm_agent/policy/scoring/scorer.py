"""``WordScorer``: from the backbone's hidden states to one score per word."""

from __future__ import annotations

import torch
from torch import nn

from vlm_agent.policy.scoring.functional import log_normalizers, phrase_scores, restricted_scores
from vlm_agent.policy.scoring.phrases import PhraseTree, packed_mask, packed_positions
from vlm_agent.policy.scoring.words import Words


class WordScorer(nn.Module):
    """Scores words by their first tokens or as whole phrases.

    It says which tokens are to stand behind the prompt (:meth:`extend`), and reads the scores from
    the hidden states of the prompt's end and of those tokens. It has no weights of its own.

    Args:
        words: The words as tokens.
        scoring: ``first_token``, ``phrase_sum``, ``phrase_mean`` or ``phrase_word``.
    """

    def __init__(self, words: Words, scoring: str) -> None:
        super().__init__()
        whole = scoring != "first_token"
        tokens = words.tokens if whole else tuple(ids[:1] for ids in words.tokens)
        tree = PhraseTree.of(tokens)
        divisors = {
            "first_token": [1] * len(tokens),
            "phrase_sum": [1] * len(tokens),
            "phrase_mean": [len(ids) for ids in tokens],
            "phrase_word": [len(word.split()) for word in words.words],
        }[scoring]
        self.divisors_are_equal = len(set(divisors)) == 1
        weights_EA = torch.zeros(len(tree.edge_words), len(tokens), dtype=torch.float64)
        for edge, word in enumerate(tree.edge_words):
            weights_EA[edge, word] = 1.0 / divisors[word]
        self.node_tokens: torch.Tensor
        self.node_depths: torch.Tensor
        self.sees: torch.Tensor
        self.edge_states: torch.Tensor
        self.edge_tokens: torch.Tensor
        self.weights: torch.Tensor
        constants = {
            "node_tokens": torch.tensor(tree.node_tokens, dtype=torch.int64),
            "node_depths": torch.tensor(tree.node_depths, dtype=torch.int64),
            "sees": tree.sees(),
            "edge_states": torch.tensor(tree.edge_states),
            "edge_tokens": torch.tensor(tree.edge_tokens),
            "weights": weights_EA,
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    @property
    def size(self) -> int:
        """N, how many tokens stand behind the prompt."""
        return len(self.node_tokens)

    def extend(
        self,
        ids_BL: torch.Tensor,
        mask_BL: torch.Tensor,
        positions_PBL: torch.Tensor,
        prefix: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Token ids, who sees whom, and positions, with the words' tokens behind the prompts.

        Args:
            ids_BL: Token ids of prompts, or of what follows their common prefix.
            mask_BL: 0 for padding, which stands on the left.
            positions_PBL: Their positions.
            prefix: K, the tokens of the prefix.

        Returns:
            (B, L + N); bool (B, 1, L + N, K + L + N); (P, B, L + N).
        """
        nodes_BN = self.node_tokens.expand(len(ids_BL), -1)
        return (
            torch.cat([ids_BL, nodes_BN], 1),
            packed_mask(mask_BL, self.sees, prefix),
            packed_positions(positions_PBL, self.node_depths),
        )

    def forward(self, states_BSD: torch.Tensor, head_VD: torch.Tensor) -> torch.Tensor:
        """Scores of the words up to a constant, which cancels in their softmax, fp32 (B, A).

        Args:
            states_BSD: Final hidden states of the prompt's end and of the N tokens behind it.
            head_VD: The language head's weight.
        """
        # The prompt's end is normalised for nothing where all words divide by the same number.
        return self._scores(states_BSD, head_VD, first=1 if self.divisors_are_equal else 0)

    def log_probs(self, states_BSD: torch.Tensor, head_VD: torch.Tensor) -> torch.Tensor:
        """The same with log-probabilities among the whole vocabulary, fp32 (B, A)."""
        return self._scores(states_BSD, head_VD, first=0)

    def _scores(self, states_BSD: torch.Tensor, head_VD: torch.Tensor, first: int) -> torch.Tensor:
        """Scores with the normalisers of all states from the ``first`` on."""
        scores_BE = restricted_scores(states_BSD, head_VD, self.edge_states, self.edge_tokens)
        normalizers_BS = scores_BE.new_zeros(states_BSD.shape[:2])
        if first < states_BSD.shape[1]:
            counted_BS = log_normalizers(states_BSD[:, first:], head_VD)
            normalizers_BS = nn.functional.pad(counted_BS, (first, 0))
        return phrase_scores(scores_BE, normalizers_BS, self.edge_states, self.weights)
