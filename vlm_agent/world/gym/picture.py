"""Where a Gymnasium environment's picture comes from, and how it becomes a square frame."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from PIL import Image

from vlm_agent.common.errors import UserError, unknown_name

OBSERVATION = "observation"
RENDER = "render"


def finds_picture(space: spaces.Space) -> str | None:
    """Which part of an observation is a picture: a key, the whole of it, or ``None``."""
    if _is_picture(space):
        return OBSERVATION
    if isinstance(space, spaces.Dict):
        keys = [key for key, part in space.spaces.items() if _is_picture(part)]
        return keys[0] if len(keys) == 1 else None
    return None


def _is_picture(space: spaces.Space) -> bool:
    is_bytes = isinstance(space, spaces.Box) and space.dtype == np.uint8
    return is_bytes and len(space.shape) == 3 and space.shape[-1] == 3 and min(space.shape[:2]) > 7


class Picture:
    """Takes pictures of an environment.

    Args:
        env: The environment.
        source: A key of its observation, ``observation``, ``render``, or ``None``: the observation
            or the part of it that is a picture, if there is one, else ``render``.
        size: Side of the square frame, in pixels.

    Raises:
        UserError: There is no such key.
    """

    def __init__(self, env: gym.Env, source: str | None, size: int) -> None:
        space = env.observation_space
        self.env = env
        self.source = source or finds_picture(space) or RENDER
        self.size = size
        if self.source not in (OBSERVATION, RENDER):
            keys = list(space.spaces) if isinstance(space, spaces.Dict) else []
            if self.source not in keys:
                known = [*keys, OBSERVATION, RENDER]
                raise UserError(f"picture: {unknown_name('source', self.source, known)}")

    def take(self, observation: Any) -> np.ndarray:
        """The frame of the present state, uint8 (size, size, 3).

        Args:
            observation: The environment's last one.

        Raises:
            UserError: What is there is no picture.
        """
        return square(self._raw(observation), self.size)

    def _raw(self, observation: Any) -> np.ndarray:
        if self.source == RENDER:
            try:
                found = self.env.render()
            except Exception as error:
                raise UserError(
                    f"picture: render() failed: {type(error).__name__}: {error}"
                ) from error
        else:
            found = observation if self.source == OBSERVATION else observation[self.source]
        if not isinstance(found, np.ndarray) or found.dtype != np.uint8:
            kind = getattr(found, "dtype", type(found).__name__)
            raise UserError(
                f"picture: {self.source!r} gave {kind}, expected an array of uint8 (H, W, 3)"
                + (": is its render_mode rgb_array?" if found is None else "")
            )
        if found.ndim != 3 or found.shape[-1] != 3:
            raise UserError(
                f"picture: {self.source!r} has the shape {found.shape}, expected (H, W, 3)"
            )
        return found


def square(picture: np.ndarray, size: int) -> np.ndarray:
    """The middle of a picture as a square of that side, uint8 (size, size, 3)."""
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    cropped = picture[top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(cropped)
    # A box averages what falls into a pixel, and repeats pixels where there are too few.
    resized = Image.fromarray(cropped).resize((size, size), Image.Resampling.BOX)
    return np.asarray(resized)
