"""Memory that is kept between steps: fresh large tensors cost more in page faults than in arithmetic."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

ALIGNED = 16
"""Tensors that lie side by side begin at multiples of this many numbers, for the sake of vector units."""


class Buffers(threading.local):
    """Tensors by name, whose memory stays for the next call; what they hold is anything, zeros at first.

    Every thread has memory of its own: optimizers that share a rule may step at the same time.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}
        self._views: dict[tuple[str, torch.dtype, torch.device, tuple[int, ...]], Tensor] = {}

    def take(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Return a tensor of a shape, of the type and on the device of another; these have memory apart."""
        memory = (name, like.dtype, like.device)
        key = (*memory, tuple(shape))
        if key not in self._views:
            count, kept = prod(shape), self._kept.get(memory)
            if kept is None or len(kept) < count:
                self._views = {other: view for other, view in self._views.items() if other[:3] != memory}
                self._kept[memory] = kept = like.new_zeros(count)
            self._views[key] = kept[:count].view(key[3])
        return self._views[key]

    def __reduce__(self) -> tuple[type[Buffers], tuple[()]]:
        """Leave the memory out of copies and pickles."""
        return Buffers, ()


def padded(tensors: Sequence[Tensor]) -> int:
    """Return how many numbers tensors ``[K, …]`` take side by side, per K."""
    return sum(_span(tensor[0].numel()) for tensor in tensors)


def laid(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return views of ``[…, K, padded]`` memory with the shapes ``[K, …]`` of some tensors, side by side."""
    views, start = [], 0
    for tensor in tensors:
        length = tensor[0].numel()
        views.append(flat[..., start : start + length].unflatten(-1, tensor.shape[1:]))
        start += _span(length)
    return views


def together(views: Sequence[Tensor], lead: int = 1) -> Tensor | None:
    """Return the memory that `laid` made views of, or None for tensors that lie otherwise.

    Args:
        views: tensors that begin with ``lead`` dimensions of one shape.
        lead: number of these dimensions; 1 for ``[K, …]``.

    Returns:
        ``[…, K, padded]``, gaps included.
    """
    first, end = views[0], 0
    shape, strides, begin = first.shape[:lead], first.stride()[:lead], first.data_ptr()
    for view in views:
        place = (view.data_ptr() - begin) // view.element_size()
        if place != end or view.shape[:lead] != shape or view.stride()[:lead] != strides:
            return None
        end += _span(prod(view.shape[lead:]))
    if len(views) == 1 or strides[-1] != end:
        return None
    return first.as_strided((*shape, end), (*strides, 1))


def _span(length: int) -> int:
    return -(-length // ALIGNED) * ALIGNED
