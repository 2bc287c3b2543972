"""Partitions of a rollout's samples into minibatches, equally many in all processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlm_agent.common.seeding import derive_rng


@dataclass(frozen=True)
class Minibatch:
    """What this process puts into one optimiser step.

    Attributes:
        index: Its samples; never empty, since every process has to take part in the step.
        weight: Of their mean in the mean over the processes, so that every sample of all of them
            counts the same: 1 where all have equally many, 0 where ``index`` only stands in.
    """

    index: np.ndarray
    weight: float


class Minibatches:
    """How the samples of one rollout are dealt out.

    Where something is learnt from every step, minibatches have ``batch_size`` samples, and the
    last one what is left. Elsewhere processes may have more samples or fewer: then they agree on
    as many minibatches as the largest share needs, and each deals its own out evenly.

    Args:
        seed: The run's seed.
        rank: This process's index.
        batch_size: Samples per minibatch and process, at most.
        counts: How many samples each process has.
        update: Number of the update.
        is_whole: Whether something is learnt from every step, in all processes.
    """

    def __init__(
        self,
        seed: int,
        rank: int,
        batch_size: int,
        counts: Sequence[int],
        update: int,
        is_whole: bool = True,
    ) -> None:
        self.seed, self.rank, self.update = seed, rank, update
        self.batch_size = batch_size
        self.counts = counts
        self.is_whole = is_whole
        self.number = -(-max(counts) // batch_size)

    @property
    def weight(self) -> float:
        """Of the mean over all samples of this process in the mean over the processes."""
        return self.counts[self.rank] * len(self.counts) / max(sum(self.counts), 1)

    def __call__(self, epoch: int) -> list[Minibatch]:
        """A fresh partition for each epoch."""
        rng = derive_rng(self.seed, "shuffle", self.rank, self.update, epoch)
        count, size = self.counts[self.rank], self.batch_size
        order = rng.permutation(count)
        if self.is_whole:
            return [Minibatch(part, 1.0) for part in np.split(order, range(size, count, size))]
        return [
            Minibatch(part if len(part) else np.zeros(1, np.int64), self._weight(number))
            for number, part in enumerate(np.array_split(order, self.number))
        ]

    def _weight(self, number: int) -> float:
        """Of a minibatch, by how many samples of it each process has."""
        # As np.array_split deals: the first parts have one more.
        sizes = [count // self.number + (number < count % self.number) for count in self.counts]
        return sizes[self.rank] * len(sizes) / sum(sizes)
