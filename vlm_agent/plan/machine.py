"""What a machine can do: measured constants of CPU cores, stated ones of GPUs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import psutil

from vlm_agent.common.errors import UserError, unknown_name
from vlm_agent.common.shipped import SHIPPED

CONSTANTS_FILE = SHIPPED / "recipes" / "results" / "plan_constants.json"
"""What ``vlm-agent plan --measure`` wrote."""

Work = Literal["decide", "decide_lora", "full", "lora"]
"""What a pass is for: scores alone, without adapters or with them; training of all weights, or of
adapters."""


@dataclass(frozen=True)
class Gpu:
    """A card as its maker states it.

    Attributes:
        name: Its name.
        memory: Bytes, as drivers count them.
        flops: Dense bfloat16 FLOP/s.
        bandwidth: Bytes per second of its memory.
    """

    name: str
    memory: float
    flops: float
    bandwidth: float


GIB = 2**30

GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h200", 140 * GIB, 989e12, 4.8e12),
        Gpu("h100", 79 * GIB, 989e12, 3.35e12),
        Gpu("a100", 79 * GIB, 312e12, 2.0e12),
        Gpu("a100-40gb", 39 * GIB, 312e12, 1.55e12),
        Gpu("l40s", 44 * GIB, 362e12, 0.86e12),
        Gpu("a10", 22 * GIB, 125e12, 0.6e12),
        Gpu("4090", 23.5 * GIB, 165e12, 1.0e12),
        Gpu("3090", 23.5 * GIB, 71e12, 0.94e12),
    )
}

GPU_SHARES: dict[Work, float] = {
    "decide": 0.3,
    "decide_lora": 0.25,
    "full": 0.35,
    "lora": 0.3,
}
"""Shares of a card's stated FLOP/s that passes are taken to reach. Not measured."""

GPU_LAYER_SECONDS = 3e-4
"""That a layer's kernels take to be started, forward; taken, not measured."""

NETWORK_BANDWIDTH = 12.5e9
"""Bytes per second between nodes, each way, where nobody says: 100 Gbit/s."""

LINK_BANDWIDTH = {"gpu": 50e9, "cpu": 1e9}
"""Bytes per second between processes of one node; taken, not measured."""

REDUCTION_SECONDS = 1e-3
"""That processes need to meet once; taken, not measured."""

GPU_PROGRAM_BYTES = 1.2e9
"""Of a CUDA context and its libraries on the card; taken, not measured."""


@dataclass(frozen=True)
class Machine:
    """Where a recipe is to run.

    Attributes:
        cores: CPU cores of a node.
        memory: Bytes of a node's host memory.
        gpu: Each of its GPUs; ``None``: the cores run the model.
        gpus: How many a node has.
        constants: What ``vlm-agent plan --measure`` wrote.
        nodes: How many such machines run together.
        network: Bytes per second between two of them.
    """

    cores: int
    memory: float
    gpu: Gpu | None
    gpus: int
    constants: Mapping[str, Any]
    nodes: int = 1
    network: float = NETWORK_BANDWIDTH

    @classmethod
    def here(cls) -> Machine:
        """The CPU cores and the memory of this machine."""
        cores = len(os.sched_getaffinity(0))
        return cls(cores, psutil.virtual_memory().total, None, 0, read_constants())

    @property
    def processes(self) -> int:
        """One for each GPU, or one for each node."""
        return self.on_node * self.nodes

    @property
    def on_node(self) -> int:
        """Processes of a node."""
        return max(1, self.gpus)

    def alone(self) -> Machine:
        """One process of it, with its share of a node."""
        gpus, cores = min(self.gpus, 1), max(1, self.cores // self.on_node)
        return replace(self, nodes=1, gpus=gpus, cores=cores, memory=self.memory / self.on_node)

    def reducing(self, size: float) -> float:
        """Seconds in which all processes have the mean of gradients of so many bytes.

        In a ring each process sends nearly all of it twice; its slowest link decides.
        """
        if self.processes == 1:
            return 0.0
        link = LINK_BANDWIDTH["gpu" if self.gpu else "cpu"]
        slowest = min(link, self.network) if self.nodes > 1 else link
        return REDUCTION_SECONDS + 2 * size * (1 - 1 / self.processes) / slowest

    def seconds(
        self, flops: float, width: int, layers: int, work: Work, weights: float = 0.0
    ) -> float:
        """Of one pass through some layers.

        Args:
            flops: Floating-point operations of the forward pass.
            width: Of the hidden states: narrow matrices use a core less well.
            layers: How many layers.
            work: What it is for.
            weights: Bytes of weights that a GPU has to read.
        """
        passes = 1 if work.startswith("decide") else 3
        if self.gpu is None:
            rate = _at_width(self.constants, f"{work}_flops", width)
            started = _at_width(self.constants, "layer_s", width)
            return passes * layers * started + flops / rate
        computed = passes * flops / (GPU_SHARES[work] * self.gpu.flops)
        read = passes * weights / self.gpu.bandwidth
        return passes * layers * GPU_LAYER_SECONDS + max(computed, read)

    def word_seconds(self, frame_size: int) -> float:
        """Core-seconds in which an environment moves by one word, and is seen."""
        small, large = self.constants["word_s_112"], self.constants["word_s_224"]
        per_pixel = max(0.0, large - small) / (224**2 - 112**2)
        return small + per_pixel * (frame_size**2 - 112**2)


def _at_width(constants: Mapping[str, Any], name: str, width: int) -> float:
    """A constant between the widths at which it was measured; beyond them, that of the nearest."""
    widths = sorted(constants["widths"])
    width = min(max(width, widths[0]), widths[-1])
    above = next(known for known in widths if known >= width)
    below = max(known for known in widths if known <= width)
    low, high = (math.log(constants[f"{name}_{known}"]) for known in (below, above))
    if above == below:
        return math.exp(low)
    share = math.log(width / below) / math.log(above / below)
    return math.exp(low + share * (high - low))


def find_gpu(name: str) -> Gpu:
    """A card by its name.

    Raises:
        UserError: It is not known.
    """
    if name not in GPUS:
        raise UserError(f"--gpu: {unknown_name('GPU', name, GPUS)}")
    return GPUS[name]


def read_constants() -> dict[str, Any]:
    """The measured constants."""
    constants: dict[str, Any] = json.loads(CONSTANTS_FILE.read_text())
    return constants
