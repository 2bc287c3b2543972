"""What frozen parts of a policy made of observations, kept so that a later pass can begin there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence


class KeptRow(NamedTuple):
    """What was made of one observation.

    Attributes:
        values: (S, P, D) image features, or (S, D) states that leave the trunk; in host memory.
        prefix: K, how many tokens the prompt shared with the others: these have no states here.
    """

    values: torch.Tensor
    prefix: int


@dataclass(frozen=True)
class Kept:
    """What was made of B observations.

    Attributes:
        values: (B, S, P, D) image features, or (B, S, D) states that leave the trunk.
        prefix: K, 0 with image features.
        lengths: How many of the S states of each row are no padding, which stands on the left
            (B,); ``None`` if none is.
    """

    values: torch.Tensor
    prefix: int = 0
    lengths: torch.Tensor | None = None

    def rows(self) -> list[KeptRow]:
        """One by one, in host memory, without padding."""
        values = self.values.detach().cpu()
        whole = [values.shape[1]] * len(values)
        lengths = whole if self.lengths is None else self.lengths.tolist()
        return [
            KeptRow(row[len(row) - length :].clone(), self.prefix)
            for row, length in zip(values, lengths, strict=True)
        ]


def stack_rows(rows: list[KeptRow]) -> torch.Tensor:
    """Values (B, S, …) of rows, padded on the left to the longest."""
    return pad_sequence([row.values for row in rows], batch_first=True, padding_side="left")


def complete(
    kept: Sequence[KeptRow | None], prefix: int, make: Callable[[np.ndarray], Kept]
) -> list[KeptRow]:
    """What was kept of each observation, and is made now where it was not.

    Args:
        kept: Of each, if anything was.
        prefix: K, how many tokens their prompts share now.
        make: Makes what is missing, from the indices of the observations.

    Returns:
        All of them, or none if those that are missing share fewer tokens.
    """
    rows = [row if row and row.prefix == prefix else None for row in kept]
    missing = [i for i, row in enumerate(rows) if row is None]
    if missing:
        made = make(np.array(missing))
        if made.prefix != prefix:
            return []
        for i, row in zip(missing, made.rows(), strict=True):
            rows[i] = row
    return [row for row in rows if row is not None]
