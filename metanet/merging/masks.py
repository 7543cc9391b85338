"""Random masks that depend on a seed, a tensor's name and an element's index, and on nothing else.

References:
    J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3"
    (Philox), SC 2011. https://doi.org/10.1145/2063384.2063405
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

PER_COUNTER = 16
"""16-bit draws that one step of Philox 4x64 gives."""


def draw_key(seed: int, tensor: str, model: int) -> int:
    """Return the 128-bit key of the draws for one tensor of one model."""
    text = f"{seed}\0{model}\0{tensor}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")


def draws(key: int, start: int, count: int) -> NDArray[np.uint16]:
    """Return ``[count]`` uniform 16-bit numbers; each depends on ``key`` and its own index alone."""
    first, skip = divmod(start, PER_COUNTER)
    steps = -(-(skip + count) // PER_COUNTER)
    raw = np.random.Philox(key=key, counter=first).random_raw(4 * steps)
    return raw.astype("<u8", copy=False).view(np.dtype("<u2"))[skip : skip + count]


def keep_mask(
    key: int, start: int, count: int, probability: float | NDArray[np.floating[Any]]
) -> NDArray[np.bool_]:
    """Draw which elements to keep, each by itself.

    Sixteen bits decide unless they equal those of the probability; then the next sixteen do, from a stream of
    their own.

    Args:
        key: from `draw_key`.
        start: index of the first element in its tensor.
        count: number of elements.
        probability: of keeping an element: one number in [0, 1], or ``[count]``.

    Returns:
        ``[count]`` booleans; P(keep) is right to 2⁻³² (of float32 probabilities, to their own rounding).
    """
    if not isinstance(probability, np.ndarray):
        if probability >= 1:
            return np.ones(count, np.bool_)
        high, low = divmod(int(probability * 2**32), 1 << 16)
        drawn = draws(key, start, count)
        mask = drawn < np.uint16(high)
        equal = np.flatnonzero(drawn == np.uint16(high))
        if low and equal.size:
            mask[equal] = _refinement(key, start + equal) < low
        return mask
    scaled = probability * probability.dtype.type(1 << 16)
    highs = scaled.astype(np.uint16)
    drawn = draws(key, start, count)
    mask = drawn < highs
    equal = np.flatnonzero(drawn == highs)
    if equal.size:
        mask[equal] = _refinement(key, start + equal) < (scaled[equal] - highs[equal]) * (1 << 16)
    return mask


def _refinement(key: int, indices: NDArray[np.intp]) -> NDArray[np.uint16]:
    """The second sixteen bits of a few draws."""
    other = key ^ _SECOND
    return np.array([draws(other, int(index), 1)[0] for index in indices], np.uint16)


_SECOND = 1 << 127
