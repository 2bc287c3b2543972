"""What travels from the world to the policy: frames and facts, as plain arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Observations:
    """A batch of observations with any leading shape.

    Attributes:
        frames: uint8 (..., H, W, 3), upright.
        facts: int32 (..., F), in the order of the environments' facts.
        states: float32 (..., S), privileged, for a critic alone; ``None`` where nobody asked.
    """

    frames: np.ndarray
    facts: np.ndarray
    states: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.facts)

    def __getitem__(self, index: Any) -> Observations:
        return self._map(lambda array: array[index])

    def flatten(self) -> Observations:
        """All leading axes as one: frames (B, H, W, 3), facts (B, F), states (B, S)."""
        leading = self.facts.ndim - 1
        return self._map(lambda array: array.reshape(-1, *array.shape[leading:]))

    def copy(self) -> Observations:
        """The same in memory of its own."""
        return self._map(np.copy)

    def empty(self, steps: int) -> Observations:
        """Room for as many of these, behind a new leading axis."""
        return self._map(lambda array: np.empty((steps, *array.shape), array.dtype))

    def put(self, index: Any, others: Observations) -> None:
        """Write others over some of these."""
        self.frames[index] = others.frames
        self.facts[index] = others.facts
        if self.states is not None:
            self.states[index] = others.states

    def _map(self, function: Callable[[np.ndarray], np.ndarray]) -> Observations:
        states = None if self.states is None else function(self.states)
        return Observations(function(self.frames), function(self.facts), states)

    @staticmethod
    def stack(parts: Sequence[Observations]) -> Observations:
        """Put observations of equal shape behind one new leading axis."""
        states = [part.states for part in parts if part.states is not None]
        return Observations(
            np.stack([part.frames for part in parts]),
            np.stack([part.facts for part in parts]),
            np.stack(states) if len(states) == len(parts) else None,
        )

    @staticmethod
    def from_env(observation: Mapping[str, Any], facts: Sequence[str]) -> Observations:
        """One observation of an environment, without a leading axis.

        Args:
            observation: Its dictionary.
            facts: Names of the facts to take, in their order.
        """
        values = np.array([observation[name] for name in facts], dtype=np.int32)
        return Observations(observation["image"], values)
