"""What frozen parts of the policy made in a rollout, kept as far as memory allows."""

from __future__ import annotations

import numpy as np

from vlm_agent.policy.kept import Kept, KeptRow


class FeatureCache:
    """Image features, or states that leave the trunk, of the words of a rollout, in host memory.

    Args:
        limit: Bytes that may be used. What does not fit is not kept.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.used = 0
        self._rows: dict[int, KeptRow] = {}

    def put(self, slots: np.ndarray, kept: Kept) -> None:
        """Keep what was made of B observations, or of those among them that still fit.

        Args:
            slots: Their numbers, (B,); each is given once.
            kept: What was made of them.
        """
        if self.used >= self.limit:
            return
        for slot, row in zip(slots.tolist(), kept.rows(), strict=True):
            if self.used + row.values.nbytes <= self.limit:
                self._rows[slot] = row
                self.used += row.values.nbytes

    def get(self, slots: np.ndarray) -> list[KeptRow | None]:
        """What is held of each slot, if anything."""
        return [self._rows.get(slot) for slot in slots.tolist()]
