"""Frames as image inputs, a whole batch at once where that gives what the library gives."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlm_agent.policy.backbone.families import Family


class FrameProcessor:
    """Makes image inputs of frames with a model's own image processor.

    The library's processors take one picture after the other, in many steps. Where a frame is
    resized and becomes patches of normalised bytes (the Qwen families), the same is done here for
    the batch, if a trial shows the same bits.

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
        self._batched: dict[tuple[int, ...], FramePatches | None] = {}

    def __call__(self, frames_BHWC: np.ndarray, device: torch.device) -> dict[str, torch.Tensor]:
        """Image inputs of uint8 frames (B, H, W, 3), on the device."""
        shape = frames_BHWC.shape[1:]
        if shape not in self._batched:
            self._batched[shape] = self._trial(shape)
        began = time.perf_counter()
        made = (self._batched[shape] or self.one_by_one)(frames_BHWC)
        made = {name: value.to(device) for name, value in made.items()}
        self.seconds += time.perf_counter() - began
        return made

    def one_by_one(self, frames_BHWC: np.ndarray) -> dict[str, torch.Tensor]:
        """Image inputs by the library, on the CPU."""
        images: list[Any] = list(frames_BHWC)
        if self.family.nested_images:
            images = [[image] for image in images]
        made = self.image_processor(images=images, return_tensors="pt", **self.family.image_options)
        return self.family.image_part(made)

    def _trial(self, shape: tuple[int, ...]) -> FramePatches | None:
        """Patches for frames of this shape, if they are the library's to the last bit."""
        if not hasattr(self.image_processor, "temporal_patch_size"):
            return None
        frames = np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)
        expected = self.one_by_one(frames)
        _, rows, columns = expected["image_grid_thw"][0].tolist()
        patches = FramePatches(self.image_processor, rows, columns)
        found = patches(frames)
        same = all(torch.equal(expected[name], found[name]) for name in expected)
        return patches if same else None


class FramePatches:
    """Qwen's patches of frames of one size.

    Args:
        image_processor: Gives sizes, and what each byte becomes.
        rows: Rows of patches that a frame has after resizing.
        columns: Columns.
    """

    def __init__(self, image_processor: Any, rows: int, columns: int) -> None:
        self.size: int = image_processor.patch_size
        self.merge: int = image_processor.merge_size
        self.time: int = image_processor.temporal_patch_size
        self.resample = image_processor.resample
        self.rows, self.columns = rows, columns
        self.table = _byte_table(image_processor).ravel()
        self.offsets_C1 = np.arange(3, dtype=np.int16)[:, None] * 256

    def __call__(self, frames_BHWC: np.ndarray) -> dict[str, torch.Tensor]:
        """``pixel_values`` (B x patches, C x time x size x size), ``image_grid_thw`` (B, 3)."""
        height, width = self.rows * self.size, self.columns * self.size
        if frames_BHWC.shape[1:3] != (height, width):
            pictures = [
                Image.fromarray(f).resize((width, height), self.resample) for f in frames_BHWC
            ]
            frames_BHWC = np.stack([np.asarray(picture) for picture in pictures])
        batch = len(frames_BHWC)
        blocks = frames_BHWC.reshape(
            batch,
            self.rows // self.merge,
            self.merge,
            self.size,
            self.columns // self.merge,
            self.merge,
            self.size,
            3,
        ).transpose(0, 1, 4, 2, 5, 7, 3, 6)
        bytes_PCX = blocks.reshape(-1, 3, self.size**2)
        values_PCTX = np.empty((len(bytes_PCX), 3, self.time, self.size**2), np.float32)
        # A picture is a film whose frames are all the same.
        values_PCTX[:] = self.table.take(bytes_PCX + self.offsets_C1)[:, :, None]
        grid = torch.tensor([[1, self.rows, self.columns]] * batch)
        values = torch.from_numpy(values_PCTX.reshape(len(bytes_PCX), -1))
        return {"pixel_values": values, "image_grid_thw": grid}


def _byte_table(image_processor: Any) -> np.ndarray:
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
    return values_CHW.reshape(3, -1)[:, :256].numpy()
