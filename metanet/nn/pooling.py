"""Invariant pooling of blocks over their group axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

Pooling = Literal["mean", "moments"]
"""``mean``; or ``moments``: mean, maximum and mean of squares side by side."""


def pooled_factor(pooling: Pooling) -> int:
    """Return how many values one channel of a block is pooled into.

    Raises:
        ValueError: an unknown pooling.
    """
    if pooling not in get_args(Pooling):
        raise ValueError(f"unknown pooling {pooling!r}; the known ones are {', '.join(get_args(Pooling))}")
    return 1 if pooling == "mean" else 3


def pool_features(blocks: Sequence[Tensor], pooling: Pooling) -> Tensor:
    """Pool blocks ``[b, *group axes, width]`` and lay them side by side: ``[b, pooled]``.

    Blocks without group axes are taken as they are.
    """
    parts: list[Tensor] = []
    for block in blocks:
        if block.ndim == 2:
            parts.append(block)
            continue
        flat = block.flatten(1, -2)
        parts.append(flat.mean(1))
        if pooling == "moments":
            parts += [flat.amax(1), flat.square().mean(1)]
    return torch.cat(parts, -1)
