"""Figures over all processes of a run; with one process, over that one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from vlm_agent.ppo.advantages import explained_variance


def concatenate_ranks(array: np.ndarray) -> np.ndarray:
    """The flattened arrays of all ranks, one behind the other."""
    return np.concatenate(gather_object([array.ravel()]))


def normalize_over_ranks(array: np.ndarray) -> np.ndarray:
    """Shift and scale this rank's array: zero mean and unit variance over all ranks together."""
    everyone = concatenate_ranks(array)
    return (array - everyone.mean()) / (everyone.std() + 1e-8)


def explained_variance_over_ranks(predicted: np.ndarray, target: np.ndarray) -> float:
    """:func:`explained_variance` of the arrays of all ranks together."""
    return explained_variance(concatenate_ranks(predicted), concatenate_ranks(target))


def shares_over_ranks(indices: np.ndarray, count: int) -> list[float]:
    """How large a part of all ranks' indices each of ``0 … count - 1`` is."""
    everyone = np.bincount(concatenate_ranks(indices), minlength=count)
    return (everyone / everyone.sum()).tolist()


def mean_over_ranks(
    accelerator: Accelerator, rows: Sequence[dict[str, torch.Tensor]]
) -> dict[str, float]:
    """The mean of each scalar over the rows of all ranks, which have equally many."""
    table = torch.stack([torch.stack(list(row.values())) for row in rows])
    means = accelerator.reduce(table.mean(0), "mean").tolist()
    return dict(zip(rows[0], means, strict=True))


def max_over_ranks(accelerator: Accelerator, value: torch.Tensor) -> float:
    """The largest of the ranks' scalars."""
    return float(accelerator.gather(value.reshape(1)).max())
