"""Randomness is derived, not stored: a seed is a pure function of where it is used."""

from __future__ import annotations

import hashlib

import numpy as np


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
