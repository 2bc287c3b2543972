"""Figures over all processes of a run; with one process, over that one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from vlm_agent.common.errors import Stopped, UserError

T = TypeVar("T")


def gather_unless_stopped(work: Callable[[], list[T]]) -> list[T]:
    """Do something in each process, and have what all have made, one behind the other.

    Raises:
        Stopped: It was left in one of them; then it is in all.
    """
    mine: list[Any]
    try:
        mine = work()
    except Stopped as stopped:
        mine = [stopped]
    everyone = gather_object(mine) if rank_and_size()[1] > 1 else mine
    for one in everyone:
        if isinstance(one, Stopped):
            raise one
    return everyone


def decided_by_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """What the main process makes, in all: others might see a shared disk otherwise.

    Raises:
        UserError: It did there.
    """
    made: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            made = [work()]
        except UserError as error:
            made = [error]
    broadcast_object_list(made)
    if isinstance(made[0], UserError):
        raise made[0]
    result: T = made[0]
    return result


def concatenate_ranks(array: np.ndarray) -> np.ndarray:
    """The flattened arrays of all ranks, one behind the other."""
    return np.concatenate(gather_object([array.ravel()]))


def normalize_over_ranks(array: np.ndarray) -> np.ndarray:
    """Shift and scale this rank's array: zero mean and unit variance over all ranks together."""
    everyone = concatenate_ranks(array)
    return (array - everyone.mean()) / (everyone.std() + 1e-8)


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


def parts_of(index: np.ndarray, size: int | None) -> list[np.ndarray]:
    """A minibatch's samples in parts of at most ``size``; ``None`` for one part."""
    return np.split(index, range(size, len(index), size)) if size else [index]


def rank_and_size() -> tuple[int, int]:
    """Index and number of the processes that run together; (0, 1) for one alone."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
