"""Random masks that depend on a seed, a tensor's name and an element's index, and on nothing else.

References:
    J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3"
    (Philox), SC 2011. https://doi.org/10.1145/2063384.2063405
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

PER_COUNTER = 8
"""32-bit draws that one step of Philox 4x64 gives."""


def draw_key(seed: int, tensor: str, model: int) -> int:
    """Return the 128-bit key of the draws for one tensor of one model."""
    text = f"{seed}\0{model}\0{tensor}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")


def draws(key: int, start: int, count: int) -> NDArray[np.uint32]:
    """Return ``[count]`` uniform 32-bit numbers; each depends on ``key`` and its own index alone."""
    first, skip = divmod(start, PER_COUNTER)
    steps = -(-(skip + count) // PER_COUNTER)
    raw = np.random.Philox(key=key, counter=first).random_raw(4 * steps)
    return raw.astype("<u8", copy=False).view(np.dtype("<u4"))[skip : skip + count]


def keep_mask(
    key: int, start: int, count: int, probability: float | NDArray[np.floating]
) -> NDArray[np.bool_]:
    """Draw which elements to keep, each by itself.

    Args:
        key: from `draw_key`.
        start: index of the first element in its tensor.
        count: number of elements.
        probability: of keeping an element: one number in [0, 1], or ``[count]``.

    Returns:
        ``[count]`` booleans; P(keep) is exact to 2⁻³².
    """
    if isinstance(probability, np.ndarray):
        return draws(key, start, count) < np.ldexp(probability.astype(np.float64), 32)
    if probability >= 1:
        return np.ones(count, np.bool_)
    threshold = round(probability * 2.0**32)
    return draws(key, start, count) < np.uint32(min(threshold, 2**32 - 1))
