"""Randomness is derived, not stored: a seed is a pure function of where it is used."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
"""Whose episodes: what is learnt from, what a policy is chosen by, what it is measured by."""


def derive_seed(run_seed: int, *coordinates: int | str) -> int:
    """A 32-bit seed from the run's seed and the coordinates of its use.

    Any change of any coordinate gives an unrelated seed, and the same coordinates give the same
    seed on every machine and in every process, so that no generator state has to be saved.

    >>> derive_seed(0, "reset", 3) == derive_seed(0, "reset", 3) != derive_seed(0, "reset", 4)
    True
    """
    text = "/".join(repr(c) for c in (run_seed, *coordinates))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def derive_rng(run_seed: int, *coordinates: int | str) -> np.random.Generator:
    """A NumPy generator seeded with :func:`derive_seed`."""
    return np.random.default_rng(derive_seed(run_seed, *coordinates))


def episode_seed(split: Split, run_seed: int, *coordinates: int | str) -> int:
    """The reset seed of an episode; no two splits share one, whatever the run's seed.

    The lowest two bits name the split, the others come from :func:`derive_seed`.
    """
    return derive_seed(run_seed, *coordinates) >> 2 << 2 | SPLITS.index(split)
