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
            each = features_BSPD[0].numel() * features_BSPD.element_size()
            capacity = min(self.samples, int(self.limit // each))
            self._features = torch.empty(
                (capacity, *features_BSPD.shape[1:]), dtype=features_BSPD.dtype
            )
        fits = slots < len(self._features)
        self._features[slots[fits]] = features_BSPD[torch.from_numpy(fits)].cpu()
        self._held[slots[fits]] = True

    def get(self, slots: np.ndarray) -> tuple[np.ndarray, torch.Tensor | None]:
        """Which slots are held, bool (B,), and the features of those, or ``None`` without any."""
        held = self._held[slots]
        if self._features is None or not held.any():
            return held, None
        return held, self._features[slots[held]]
