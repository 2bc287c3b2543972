"""The heads beside the language head: values, and words without it."""

from __future__ import annotations

import torch
from torch import nn


class ValueHead(nn.Module):
    """An fp32 MLP from B rows of D numbers to B values.

    Its output layer starts at zero, so an untrained critic predicts 0 and not noise. It is kept
    outside PEFT and always in fp32, whatever the backbone's dtype.

    Args:
        input_size: D: the backbone's hidden size, or that of a privileged state.
        width: Width of the hidden layers.
        depth: How many hidden layers; 0 for a linear head.
        seed: Decides the weights; the global generator is left alone.
    """

    def __init__(self, input_size: int, width: int, depth: int = 1, seed: int = 0) -> None:
        super().__init__()
        sizes = [input_size] + [width] * depth
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.hidden = nn.ModuleList(
                nn.Linear(n, width, dtype=torch.float32) for n in sizes[:-1]
            )
            self.output = nn.Linear(sizes[-1], 1, dtype=torch.float32)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, rows_BD: torch.Tensor) -> torch.Tensor:
        """Values (B,), fp32, of rows (B, D) of any dtype."""
        with torch.autocast(rows_BD.device.type, enabled=False):
            features = rows_BD.float()
            for layer in self.hidden:
                features = torch.tanh(layer(features))
            return self.output(features).squeeze(-1)


class StateHead(nn.Module):
    """An fp32 linear layer from B hidden states of D numbers to B privileged states of S.

    Args:
        hidden_size: D.
        state_size: S.
        seed: Decides the weights; the global generator is left alone.
    """

    def __init__(self, hidden_size: int, state_size: int, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.output = nn.Linear(hidden_size, state_size, dtype=torch.float32)

    def forward(self, rows_BD: torch.Tensor) -> torch.Tensor:
        """States (B, S), fp32, of rows (B, D) of any dtype."""
        with torch.autocast(rows_BD.device.type, enabled=False):
            states_BS: torch.Tensor = self.output(rows_BD.float())
            return states_BS


def action_head(hidden_size: int, num_words: int) -> nn.Linear:
    """A linear layer of scores, under which every word is as probable at the start."""
    head = nn.Linear(hidden_size, num_words)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
