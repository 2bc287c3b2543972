"""Patch embeddings as matrix products."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn import functional


class PatchProjection(nn.Conv3d):
    """A 3-D convolution that is a matrix product where its input is one kernel large.

    Qwen's vision towers embed patches that were cut out before, each with a convolution of just
    its size; as a convolution that takes several times as long.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Project (N, C, T, H, W) to (N, D, 1, 1, 1), or as any convolution does."""
        if input.shape[2:] != self.kernel_size or any(self.padding) or self.groups > 1:
            return super().forward(input)
        projected_ND = functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)
        return projected_ND[..., None, None, None]


def project_patches(vision: Iterable[nn.Module]) -> None:
    """Let the 3-D convolutions of a vision tower compute so; their weights stay where they are."""
    for tower in vision:
        for module in tower.modules():
            if type(module) is nn.Conv3d:
                module.__class__ = PatchProjection
