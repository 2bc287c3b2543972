"""Image features of a rollout, kept for the update as far as memory allows."""

from __future__ import annotations

import numpy as np
import torch


class FeatureCache:
    """What a frozen vision tower made of each frame of a rollout, in host memory.

    Args:
        samples: How many frames the rollout has; their slots are ``0 … samples - 1``.
        limit: Bytes that may be used. Slots beyond what fits are not kept.
    """

    def __init__(self, samples: int, limit: float) -> None:
        self.samples = samples
        self.limit = limit
        self._held = np.zeros(samples, bool)
        self._features: torch.Tensor | None = None  # made when it is known how large they are

    def put(self, slots: np.ndarray, features_BSPD: torch.Tensor) -> None:
        """Keep the features of B frames, or of those among them that still fit."""
        if self._features is None:
            dtype = _dtype_they_were_made_in(features_BSPD)
            each = features_BSPD[0].numel() * dtype.itemsize
            capacity = min(self.samples, int(self.limit // each))
            self._features = torch.empty((capacity, *features_BSPD.shape[1:]), dtype=dtype)
        fits = slots < len(self._features)
        kept = features_BSPD[torch.from_numpy(fits)]
        self._features[slots[fits]] = kept.to(self._features.dtype).cpu()
        self._held[slots[fits]] = True

    def get(self, slots: np.ndarray) -> tuple[np.ndarray, torch.Tensor | None]:
        """Which slots are held, bool (B,), and the features of those, or ``None`` without any."""
        held = self._held[slots]
        if self._features is None or not held.any():
            return held, None
        return held, self._features[slots[held]]


def _dtype_they_were_made_in(features: torch.Tensor) -> torch.dtype:
    """bfloat16 for float32 values that all are bfloat16's, and not all 0; else their own.

    With mixed precision accelerate hands a model's outputs over in float32, whatever they were
    computed in, which would take twice the memory for the same numbers.
    """
    narrow = features.to(torch.bfloat16)
    is_exact = torch.equal(narrow.to(features.dtype), features) and bool(features.any())
    return torch.bfloat16 if is_exact else features.dtype
