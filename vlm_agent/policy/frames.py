"""Frames as image inputs, a whole batch at once where that gives what the library gives."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from vlm_agent.policy.families import Family

FrameBatch = Callable[[torch.Tensor], dict[str, torch.Tensor]]


class FrameProcessor:
    """Makes image inputs of frames with a model's own image processor.

    The library's processors take one picture after the other. Where a frame needs no resizing and
    becomes patches of normalised bytes (the Qwen families), the same is done here for the batch,
    on its device, if a trial shows the same bits.

    Args:
        image_processor: The model's.
        family: Says how it is called.

    Attributes:
        seconds: Time spent so far.
    """

    def __init__(self, image_processor: Any, family: Family) -> None:
        self.image_processor = image_processor
        self.family = family
        self.seconds = 0.0
        self._batched: dict[tuple[int, ...], FrameBatch | None] = {}

    def __call__(self, frames_BHWC: np.ndarray, device: torch.device) -> dict[str, torch.Tensor]:
        """Image inputs of uint8 frames (B, H, W, 3), on the device."""
        shape = frames_BHWC.shape[1:]
        if shape not in self._batched:
            self._batched[shape] = self._trial(shape)
        began = time.perf_counter()
        batched = self._batched[shape]
        if batched is not None:
            made = batched(torch.from_numpy(np.ascontiguousarray(frames_BHWC)).to(device))
        else:
            made = {k: v.to(device) for k, v in self.one_by_one(frames_BHWC).items()}
        self.seconds += time.perf_counter() - began
        return made

    def one_by_one(self, frames_BHWC: np.ndarray) -> dict[str, torch.Tensor]:
        """The same by the library."""
        images: list[Any] = list(frames_BHWC)
        if self.family.nested_images:
            images = [[image] for image in images]
        made = self.image_processor(images=images, return_tensors="pt", **self.family.image_options)
        return {name: made[name] for name in self.family.image_inputs if name in made}

    def _trial(self, shape: tuple[int, ...]) -> FrameBatch | None:
        """Patches for frames of this shape, if they are the library's to the last bit."""
        size = getattr(self.image_processor, "patch_size", None)
        merge = getattr(self.image_processor, "merge_size", None)
        if not isinstance(size, int) or not isinstance(merge, int):
            return None
        if shape[0] % (size * merge) or shape[1] % (size * merge):
            return None
        frames = np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)
        expected = self.one_by_one(frames)
        patches = FramePatches(self.image_processor)
        found = patches(torch.from_numpy(frames))
        same = expected.keys() == found.keys() and all(
            torch.equal(expected[name], found[name]) for name in expected
        )
        return patches if same else None


class FramePatches:
    """Qwen's patches of frames that need no resizing.

    Args:
        image_processor: Gives sizes, and what each byte becomes.
    """

    def __init__(self, image_processor: Any) -> None:
        self.size: int = image_processor.patch_size
        self.merge: int = image_processor.merge_size
        self.time: int = image_processor.temporal_patch_size
        self.table_CV = _byte_table(image_processor)

    def __call__(self, frames_BHWC: torch.Tensor) -> dict[str, torch.Tensor]:
        """``pixel_values`` (B x patches, C x time x size x size), ``image_grid_thw`` (B, 3)."""
        batch, height, width, channels = frames_BHWC.shape
        self.table_CV = self.table_CV.to(frames_BHWC.device)
        levels = self.table_CV.shape[1]
        offsets_C = torch.arange(channels, dtype=torch.int32, device=frames_BHWC.device) * levels
        values = self.table_CV.flatten()[frames_BHWC + offsets_C]
        rows, columns = height // self.size, width // self.size
        values = values.view(
            batch,
            rows // self.merge,
            self.merge,
            self.size,
            columns // self.merge,
            self.merge,
            self.size,
            channels,
        ).permute(0, 1, 4, 2, 5, 7, 3, 6)
        # A picture is a film whose frames are all the same.
        values = values.unsqueeze(6).expand(*values.shape[:6], self.time, *values.shape[6:])
        grid = torch.tensor([[1, rows, columns]], device=frames_BHWC.device).expand(batch, 3)
        return {
            "pixel_values": values.reshape(batch * rows * columns, -1),
            "image_grid_thw": grid.contiguous(),
        }


def _byte_table(image_processor: Any) -> torch.Tensor:
    """What each byte of each channel becomes, fp32 (3, 256), by the processor's own arithmetic.

    All bytes are laid out as one picture, so wide that nothing is resized.
    """
    side = image_processor.patch_size * image_processor.merge_size
    while side * side < max(256, image_processor.size["shortest_edge"]):
        side *= 2
    picture = np.resize(np.arange(256, dtype=np.uint8), (side, side))
    made = image_processor(images=[np.stack([picture] * 3, -1)], return_tensors="pt")
    size, merge, time = (
        image_processor.patch_size,
        image_processor.merge_size,
        image_processor.temporal_patch_size,
    )
    blocks = side // (size * merge)
    values = made["pixel_values"].view(blocks, blocks, merge, merge, 3, time, size, size)
    values_CHW = values[..., 0, :, :].permute(4, 0, 2, 5, 1, 3, 6).reshape(3, side, side)
    return values_CHW.reshape(3, -1)[:, :256].contiguous()


def image_inputs_of(inputs: Mapping[str, torch.Tensor], family: Family) -> dict[str, torch.Tensor]:
    """The part of encoded inputs that the vision tower reads."""
    return {name: inputs[name] for name in family.image_inputs if name in inputs}
