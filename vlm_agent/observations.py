"""What travels from the robot to the policy: frames and scene facts, as plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FACTS: tuple[str, ...] = ("gripper_closed", "last_action", "step", "words_left")
"""The scene facts a prompt may use, in the order of the last axis of ``Observations.facts``."""


@dataclass(frozen=True)
class Observations:
    """A batch of observations with any leading shape.

    Attributes:
        frames: uint8 (..., H, W, 3), upright.
        facts: int32 (..., len(FACTS)).
    """

    frames: np.ndarray
    facts: np.ndarray

    def __len__(self) -> int:
        return len(self.facts)

    def __getitem__(self, index: Any) -> Observations:
        return Observations(self.frames[index], self.facts[index])

    def flatten(self) -> Observations:
        """All leading axes as one: frames (B, H, W, 3), facts (B, F)."""
        return Observations(
            self.frames.reshape(-1, *self.frames.shape[-3:]),
            self.facts.reshape(-1, self.facts.shape[-1]),
        )

    @staticmethod
    def stack(parts: Sequence[Observations]) -> Observations:
        """Put observations of equal shape behind one new leading axis."""
        return Observations(
            np.stack([part.frames for part in parts]), np.stack([part.facts for part in parts])
        )

    @staticmethod
    def from_env(observation: dict[str, Any]) -> Observations:
        """One observation of ``LanguageActionEnv``, without a leading axis."""
        facts = np.array([observation[name] for name in FACTS], dtype=np.int32)
        return Observations(observation["image"], facts)
