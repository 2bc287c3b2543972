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
        width: Hidden width of the MLP.
    """

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(hidden_size, width, dtype=torch.float32)
        self.output = nn.Linear(width, 1, dtype=torch.float32)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, hidden_BD: torch.Tensor) -> torch.Tensor:
        """Values (B,), fp32, of hidden states (B, D) of any dtype."""
        with torch.autocast(hidden_BD.device.type, enabled=False):
            features = torch.tanh(self.hidden(hidden_BD.float()))
            return self.output(features).squeeze(-1)
