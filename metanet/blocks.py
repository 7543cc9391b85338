"""Blocks: what is left of a tensor after splitting its Concat axes and factoring its Product axes.

Every dimension of a block is one atom: a `Fixed` axis or the units of one group. Layers, graphs and matching
work on blocks; `split` and `join` are exact inverses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from metanet.axis import Atom, Axis, Concat, Fixed, Perm, Product, axis_blocks, axis_size, bound_to
from metanet.spec import WeightSpec


@dataclass(frozen=True, slots=True)
class Block:
    """A part of an entry whose dimensions are each one atom.

    Args:
        entry: name of the state-dict entry.
        path: which part was taken of every Concat met, from left to right; empty if there is none.
        atoms: one per dimension of the block.
        dims: for every atom, the dimension of the entry it came from.
    """

    entry: str
    path: tuple[int, ...]
    atoms: tuple[Atom, ...]
    dims: tuple[int, ...]

    @property
    def key(self) -> str:
        """Name of the block: the entry's, with ``[i]`` for every part of a Concat."""
        return self.entry + "".join(f"[{i}]" for i in self.path)

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups of the permuted dimensions, in order; a group may occur more than once."""
        return tuple(atom.group for atom in self.atoms if isinstance(atom, Perm))

    @property
    def fixed(self) -> tuple[int, ...]:
        """Sizes of the fixed dimensions, in order."""
        return tuple(atom.size for atom in self.atoms if isinstance(atom, Fixed))

    def parents(self, spec: WeightSpec) -> tuple[int, ...]:
        """Return for every atom the position of the one that its group is nested under, or -1."""
        found = []
        for at, atom in enumerate(self.atoms):
            parent = spec.group[atom.group].parent if isinstance(atom, Perm) else None
            place = -1 if parent is None else bound_to(at, parent, self.atoms, self.dims)
            assert place is not None  # a spec checks this
            found.append(place)
        return tuple(found)

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the block's shape, given the sizes of the groups."""
        return tuple(axis_size(atom, sizes) for atom in self.atoms)


def blocks_of(spec: WeightSpec, *, tied: bool = False) -> tuple[Block, ...]:
    """Return the blocks of every entry, in order.

    Args:
        spec: the spec.
        tied: keep the further names of tied parameters too (by default a tied one gives its blocks once).
    """
    again = {name for tie in spec.ties for name in tie[1:]} if not tied else set()
    return tuple(
        block for name, axes in spec.entries if name not in again for block in entry_blocks(name, axes)
    )


def entry_blocks(name: str, axes: Sequence[Axis]) -> Iterator[Block]:
    """Yield the blocks of one entry in the order of `split`."""
    yield from (Block(name, path, atoms, dims) for path, atoms, dims in axis_blocks(axes))


def split(tensor: Tensor, axes: Sequence[Axis], sizes: Mapping[str, int]) -> list[Tensor]:
    """Split ``[*leading, *shape]`` into its blocks ``[*leading, *block shape]``; views where possible."""
    return _split(tensor, list(axes), tensor.ndim - len(axes), sizes)


def _split(tensor: Tensor, todo: list[Axis], dim: int, sizes: Mapping[str, int]) -> list[Tensor]:
    if not todo:
        return [tensor]
    axis, rest = todo[0], todo[1:]
    if isinstance(axis, Product):
        shape = [axis_size(factor, sizes) for factor in axis.axes]
        return _split(tensor.unflatten(dim, shape), [*axis.axes, *rest], dim, sizes)
    if isinstance(axis, Concat):
        parts = tensor.split([axis_size(part, sizes) for part in axis.axes], dim)
        return [
            block
            for part, inner in zip(parts, axis.axes, strict=True)
            for block in _split(part, [inner, *rest], dim, sizes)
        ]
    return _split(tensor, rest, dim + 1, sizes)


def join(
    blocks: Sequence[Tensor], axes: Sequence[Axis], sizes: Mapping[str, int], *, leading: int = 0
) -> Tensor:
    """Put the blocks of one entry together again: the inverse of `split`.

    Args:
        blocks: in the order of `split`, each ``[*leading, *block shape, *trailing]``.
        axes: of the entry.
        sizes: of the groups.
        leading: number of dimensions before the axes.
    """
    queue = list(blocks)
    result = _join(queue, list(axes), leading, sizes)
    assert not queue
    return result


def _join(queue: list[Tensor], todo: list[Axis], dim: int, sizes: Mapping[str, int]) -> Tensor:
    if not todo:
        return queue.pop(0)
    axis, rest = todo[0], todo[1:]
    if isinstance(axis, Product):
        inner = _join(queue, [*axis.axes, *rest], dim, sizes)
        return inner.flatten(dim, dim + len(axis.axes) - 1)
    if isinstance(axis, Concat):
        return torch.cat([_join(queue, [part, *rest], dim, sizes) for part in axis.axes], dim)
    return _join(queue, rest, dim + 1, sizes)


def block_numel(block: Block, sizes: Mapping[str, int]) -> int:
    """Return the number of values of a block."""
    return prod(block.shape(sizes))
