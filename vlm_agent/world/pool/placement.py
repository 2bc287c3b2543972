"""Where a process's environments run: on which cores, and on which GPU they draw."""

from __future__ import annotations

import os
from collections.abc import Mapping


def cores_per_process(environ: Mapping[str, str]) -> int:
    """How many of this machine's cores each process of the run may use, at least one."""
    cores = len(os.sched_getaffinity(0))
    return max(1, cores // int(environ.get("LOCAL_WORLD_SIZE", "1")))


def rendering_gpu(environ: Mapping[str, str], gpus: int) -> int | None:
    """The index, as EGL counts, of the GPU that this process's environments draw on.

    Each process of a run uses its own. EGL counts all GPUs of the machine, CUDA those that
    ``CUDA_VISIBLE_DEVICES`` names; where it names them by other things than numbers, the choice is
    EGL's.

    Args:
        environ: The environment that the launcher prepared.
        gpus: How many GPUs CUDA sees; with none the choice is EGL's.
    """
    if gpus == 0:
        return None
    local = int(environ.get("LOCAL_RANK", "0")) % gpus
    if not environ.get("CUDA_VISIBLE_DEVICES"):
        return local
    name = environ["CUDA_VISIBLE_DEVICES"].split(",")[local].strip()
    return int(name) if name.isdecimal() else None
