"""Chunks: parts of a bucket that stay in cache while several passes go over them, and bound what is held."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

CHUNK = 1 << 14
"""Numbers of one bucket that are handled at once."""


def chunks(flat: Tensor) -> Iterator[slice]:
    """Yield slices of the last dimension of ``[K, n]``, of `CHUNK` numbers or at least one column each."""
    count, length = flat.shape
    width = max(CHUNK // count, 1)
    for start in range(0, length, width):
        yield slice(start, min(start + width, length))
