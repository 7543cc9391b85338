"""Chunks: parts of a bucket that stay in cache while several passes go over them, and bound what is held."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from torch import Tensor

Part: TypeAlias = tuple[slice, slice]
"""Some of the K tensors of a bucket, and a part of their flattened values."""
CHUNK = 1 << 15
"""Numbers of one bucket that are handled at once."""
FUSED = 32
"""Chunks that a compiled loop takes at once: it holds nothing between, and every call costs."""
LAUNCHED = 1 << 7
"""Chunks that an accelerator takes at once."""


def chunks(flat: Tensor, row: int = 1, size: int = CHUNK) -> Iterator[Part]:
    """Yield contiguous parts of ``[K, n]`` of about ``size`` numbers: some whole tensors, or a part of one.

    Args:
        flat: the numbers.
        row: what is shorter than a tensor is a multiple of this: the columns of a matrix.
        size: numbers of a part.
    """
    count, length = flat.shape
    size = size * LAUNCHED if flat.is_cuda else size
    height = max(size // max(length, 1), 1)
    width = max(length, 1) if length <= size else max(size // row, 1) * row
    for top in range(0, count, height):
        for start in range(0, length, width):
            yield slice(top, min(top + height, count)), slice(start, min(start + width, length))
