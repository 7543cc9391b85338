"""Sums of squares of large tensors, chunk by chunk: no temporary of their size, and nearly exact."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1 << 16
"""Values whose difference stays in the cache while it is squared and summed."""
SMALL = 1 << 14
"""Values up to which everything is done in float64."""


def squared_norm(x: Tensor) -> float:
    """Return ‖x‖²; sums of chunks are added in float64."""
    flat = x.reshape(-1)
    if flat.numel() <= SMALL:
        return float(flat.double().square().sum())
    buffer = torch.empty(CHUNK, dtype=flat.dtype)
    total = 0.0
    for part in flat.split(CHUNK):
        squares = torch.mul(part, part, out=buffer[: part.numel()])
        total += float(squares.sum(dtype=torch.float64))
    return total


def squared_distance(x: Tensor, y: Tensor) -> float:
    """Return ‖x − y‖²; sums of chunks are added in float64."""
    left, right = x.reshape(-1), y.reshape(-1)
    if left.numel() <= SMALL:
        return float((left - right).double().square().sum())
    buffer = torch.empty(CHUNK, dtype=torch.promote_types(x.dtype, y.dtype))
    total = 0.0
    for one, other in zip(left.split(CHUNK), right.split(CHUNK), strict=True):
        difference = torch.sub(one, other, out=buffer[: one.numel()])
        total += float(difference.square_().sum(dtype=torch.float64))
    return total


def all_finite(x: Tensor) -> bool:
    """Tell whether all values are finite; their sum, which one pass gives, settles nearly every case."""
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())
