"""Leaves: the atoms of an entry's axes, counted over all dimensions, and tensors seen along some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from metanet.axis import Atom, Axis, Concat, Fixed, Perm, Product, axis_size


@dataclass(frozen=True, slots=True)
class Leaf:
    """One atom of an entry's axes.

    Args:
        atom: itself.
        dim: the dimension of the entry that it is part of.
        path: which child was taken at every Product and Concat from that dimension's axis down to it.
        parts: ``(depth, part)`` for every Concat among these.
    """

    atom: Atom
    dim: int
    path: tuple[int, ...]
    parts: tuple[tuple[int, int], ...]


@lru_cache(maxsize=8192)
def leaves_of(axes: tuple[Axis, ...]) -> tuple[Leaf, ...]:
    """Return the leaves of an entry from left to right."""

    def walk(axis: Axis, dim: int, path: tuple[int, ...], parts: tuple[tuple[int, int], ...]) -> list[Leaf]:
        if isinstance(axis, (Fixed, Perm)):
            return [Leaf(axis, dim, path, parts)]
        found = []
        for i, child in enumerate(axis.axes):
            taken = (*parts, (len(path), i)) if isinstance(axis, Concat) else parts
            found += walk(child, dim, (*path, i), taken)
        return found

    return tuple(leaf for dim, axis in enumerate(axes) for leaf in walk(axis, dim, (), ()))


def apart(first: Sequence[Leaf], second: Sequence[Leaf]) -> bool:
    """Return whether two sets of leaves of one entry lie in different parts of some Concat."""
    return any(_diverge(a, b) for a in first for b in second)


def _diverge(a: Leaf, b: Leaf) -> bool:
    if a.dim != b.dim:
        return False
    common = 0
    while common < min(len(a.path), len(b.path)) and a.path[common] == b.path[common]:
        common += 1
    return common in dict(a.parts) and common in dict(b.parts)


def leaf_view(
    tensor: Tensor, axes: tuple[Axis, ...], leaves: Sequence[int], sizes: Mapping[str, int]
) -> tuple[Tensor, tuple[int, ...]]:
    """View a tensor with some of its leaves as dimensions of their own.

    A Concat that holds one of the leaves is narrowed to its part; other leaves stay where they are.

    Args:
        tensor: ``[*leading, *shape]``.
        axes: of the entry.
        leaves: numbers of the leaves.
        sizes: of the groups.

    Returns:
        A view of the tensor's memory, and for every leaf the dimension of the view that it became.
    """
    found = [leaves_of(axes)[i] for i in leaves]
    places: dict[int, int] = {}
    start = tensor.ndim - len(axes)
    for dim in reversed(range(len(axes))):
        paths = {i: leaf.path for i, leaf in enumerate(found) if leaf.dim == dim}
        if paths:
            rank = tensor.ndim
            tensor, opened = _open(tensor, start + dim, axes[dim], paths, sizes)
            places = {i: place + tensor.ndim - rank for i, place in places.items()} | opened
    return tensor, tuple(places[i] for i in range(len(found)))


def _open(
    tensor: Tensor, at: int, axis: Axis, paths: Mapping[int, tuple[int, ...]], sizes: Mapping[str, int]
) -> tuple[Tensor, dict[int, int]]:
    if isinstance(axis, (Fixed, Perm)):
        return tensor, dict.fromkeys(paths, at)
    widths = [axis_size(part, sizes) for part in axis.axes]
    if isinstance(axis, Concat):
        part = next(iter(paths.values()))[0]
        assert all(path[0] == part for path in paths.values())
        tensor = tensor.narrow(at, sum(widths[:part]), widths[part])
        return _open(tensor, at, axis.axes[part], {i: path[1:] for i, path in paths.items()}, sizes)
    assert isinstance(axis, Product)
    tensor = tensor.unflatten(at, widths)
    places: dict[int, int] = {}
    for child in reversed(range(len(widths))):
        inner = {i: path[1:] for i, path in paths.items() if path[0] == child}
        if inner:
            rank = tensor.ndim
            tensor, opened = _open(tensor, at + child, axis.axes[child], inner, sizes)
            places = {i: place + tensor.ndim - rank for i, place in places.items()} | opened
    return tensor, places


def leaf_positions(axis: Axis, path: Sequence[int], sizes: Mapping[str, int]) -> Tensor:
    """Return, for every index of an axis, its index along the leaf that a path leads to.

    Args:
        axis: of one dimension.
        path: of the leaf (`Leaf.path`), or of a node above it.
        sizes: of the groups.

    Returns:
        ``[size]`` integers, -1 outside of the part of a Concat that the leaf lies in.
    """
    if not path:
        return torch.arange(axis_size(axis, sizes))
    assert isinstance(axis, (Product, Concat))
    widths = [axis_size(part, sizes) for part in axis.axes]
    inner = leaf_positions(axis.axes[path[0]], path[1:], sizes)
    before, after = widths[: path[0]], widths[path[0] + 1 :]
    if isinstance(axis, Concat):
        return torch.cat([inner.new_full((sum(before),), -1), inner, inner.new_full((sum(after),), -1)])
    return inner.repeat_interleave(prod(after)).repeat(prod(before))
