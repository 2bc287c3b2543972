"""``Lesson``: the passes of one stage of a warm start, which may be stopped between two batches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

from vlm_agent.common.errors import UserError
from vlm_agent.common.seeding import derive_rng
from vlm_agent.demonstrations.reading import Moments
from vlm_agent.imitation.update import pass_over, warmup_and_decay
from vlm_agent.recipe.recipe import Recipe


@dataclass
class Lesson:
    """So many passes over what is known, in batches; everything random comes from the seed.

    Attributes:
        known: All moments, the oldest first.
        epochs: Passes.
        peak: Of the learning rate, which rises to it and then falls to 0.
        stage: Its name.
        fresh: How many of the last moments each pass goes over; of the others it takes a share.
        share: This share.
        size: Moments of a batch.
        batches: Of a pass; as many in every process.
        seed: What the order comes from, with the stage's name.
        rank: This process's index.
        done: Batches so far.
        seen: What came of those of the present pass.
    """

    known: Moments
    epochs: int
    peak: float
    stage: str
    fresh: int
    share: float
    size: int
    batches: int
    seed: int
    rank: int
    done: int = 0
    seen: list[dict[str, torch.Tensor]] = field(default_factory=list)

    @classmethod
    def over(
        cls,
        known: Moments,
        epochs: int,
        peak: float,
        stage: str,
        fresh: int,
        recipe: Recipe,
        rank: int,
    ) -> Lesson:
        """A lesson as the recipe says; in every process it has as many batches."""
        share = recipe.imitation.dagger_replay
        count = fresh + round(share * (len(known) - fresh))
        size = min(recipe.imitation.sft_batch_size, count)
        batches = min(gather_object([count // size]))
        seed = recipe.run.seed
        return cls(known, epochs, peak, stage, fresh, share, size, batches, seed, rank)

    @property
    def total(self) -> int:
        """Batches of all passes."""
        return self.epochs * self.batches

    @property
    def epoch(self) -> int:
        """The number of the present pass, from 0."""
        return self.done // self.batches

    @property
    def ends_pass(self) -> bool:
        """Whether the last batch was the last of its pass."""
        return self.done % self.batches == 0

    @property
    def learning_rate(self) -> float:
        """Of the next batch."""
        return self.peak * warmup_and_decay(self.done / self.total)

    def order(self) -> np.ndarray:
        """What the present pass goes over, batch by batch (batches, size)."""
        rng = derive_rng(self.seed, self.stage, self.rank, self.epoch)
        order = pass_over(len(self.known), self.fresh, self.share, rng)
        return order[: self.batches * self.size].reshape(self.batches, self.size)

    def state_dict(self) -> dict[str, Any]:
        """How far it came, as JSON values."""
        return {
            "size": self.size,
            "batches": self.batches,
            "done": self.done,
            "seen": [{name: float(x) for name, x in row.items()} for row in self.seen],
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from there.

        Raises:
            UserError: Its passes had other batches.
        """
        if (state["size"], state["batches"]) != (self.size, self.batches):
            raise UserError(
                f"resume_from: a pass of {self.stage} had {state['batches']} batches of "
                f"{state['size']}, and would have {self.batches} of {self.size} now: "
                "sft_batch_size and dagger_replay have to stay what they were"
            )
        self.done = state["done"]
        self.seen = [
            {name: torch.tensor(x, device=device) for name, x in row.items()}
            for row in state["seen"]
        ]
