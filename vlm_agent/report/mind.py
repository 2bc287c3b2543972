"""``Mind``: a policy, as films and reports ask it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vlm_agent.world.observations import Observations


class Judgement(NamedTuple):
    """What a policy makes of B observations.

    Attributes:
        probabilities: Of the words, (B, A).
        values: The expected discounted returns, (B,); ``None`` where nothing tells them.
    """

    probabilities: np.ndarray
    values: np.ndarray | None


@dataclass(frozen=True)
class Mind:
    """Who spoke in some episodes.

    Attributes:
        words: The words, as it says them.
        facts: Names of the facts that it reads.
        prompt: From an observation's facts to what the model reads.
        judge: Scores observations; ``None`` if nobody can now, and only what was said is shown.
    """

    words: tuple[str, ...]
    facts: tuple[str, ...]
    prompt: Callable[[Sequence[int]], str]
    judge: Callable[[Observations], Judgement] | None = None
