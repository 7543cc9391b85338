"""Chunks: parts of a bucket that stay in cache while several passes go over them, and bound what is held."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

CHUNK = 1 << 14
"""Numbers of one bucket that are handled at once."""


def chunks(flat: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield contiguous parts of ``[K, n]`` of `CHUNK` numbers: some whole rows, or a part of one."""
    count, length = flat.shape
    height = max(CHUNK // max(length, 1), 1)
    width = max(min(length, CHUNK), 1)
    for top in range(0, count, height):
        for start in range(0, length, width):
            yield slice(top, min(top + height, count)), slice(start, min(start + width, length))
