"""The value head: what the policy's last hidden state says about the return to come."""

from __future__ import annotations

import torch
from torch import nn


class ValueHead(nn.Module):
    """An fp32 MLP on the final hidden state at the last prompt position.

    Its output layer starts at zero, so an untrained critic predicts 0 and not noise. It is kept
    outside PEFT and always in fp32, whatever the backbone's dtype.

    Args:
        hidden_size: D, the backbone's hidden size.
        width: Width of the hidden layers.
        depth: How many hidden layers; 0 for a linear head.
    """

    def __init__(self, hidden_size: int, width: int, depth: int = 1) -> None:
        super().__init__()
        sizes = [hidden_size] + [width] * depth
        self.hidden = nn.ModuleList(nn.Linear(n, width, dtype=torch.float32) for n in sizes[:-1])
        self.output = nn.Linear(sizes[-1], 1, dtype=torch.float32)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, hidden_BD: torch.Tensor) -> torch.Tensor:
        """Values (B,), fp32, of hidden states (B, D) of any dtype."""
        with torch.autocast(hidden_BD.device.type, enabled=False):
            features = hidden_BD.float()
            for layer in self.hidden:
                features = torch.tanh(layer(features))
            return self.output(features).squeeze(-1)
