"""Pooling and spreading: the tensors behind the readings and writings of a basis.

All views of a block form a tree: the block itself, its diagonals, and below each what is left after one
index is averaged away. Reading walks the tree downwards (every pooled tensor is computed once, from its
parent), writing walks it upwards (small sums are added up before they are broadcast); each is the other's
adjoint. Pooling is by sums here; a layer's matrices carry the factors that make means of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import Tensor

from metanet.features import BlockLayout
from metanet.nn.basis import Basis, View, equivariant_basis


@dataclass(frozen=True, slots=True)
class Node:
    """A view of a block without the order of its indices; its tensor is ``[b, *kept classes, width]``.

    Args:
        block: number of the block.
        merged: set partition of the block's group axes.
        kept: kept classes, ascending.
        parent: node it is pooled from; -1 for the block itself.
        dim: dimension of the parent's tensor that is averaged; 0 for a diagonal.
        size: number of indices that are averaged.
    """

    block: int
    merged: tuple[tuple[int, ...], ...]
    kept: tuple[int, ...]
    parent: int
    dim: int
    size: int


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a reading or writing finds its tensor: a node and the order of its indices.

    Args:
        node: number of the node.
        order: dimensions of the node's tensor, batch and width included; None if they are in order.
        back: the inverse order; None likewise.
    """

    node: int
    order: tuple[int, ...] | None
    back: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Product:
    """One matrix product of a layer: from the readings of a signature to its writings.

    Args:
        groups: of the kept indices.
        sizes: of the kept indices.
        readings: slots that are concatenated.
        writings: slots the result is split into.
        read_blocks: block of every reading.
        write_blocks: block of every writing.
        counts: number of values that are averaged into one by every reading.
    """

    groups: tuple[str, ...]
    sizes: tuple[int, ...]
    readings: tuple[Slot, ...]
    writings: tuple[Slot, ...]
    read_blocks: tuple[int, ...]
    write_blocks: tuple[int, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a layer runs: nodes in topological order, parents (and first the blocks) before children.

    Args:
        basis: what it computes.
        nodes: of the view tree.
        products: one per signature.
        shapes: sizes of the group axes of every block.
        views: for every block, the numbers of its nodes but the first, which is the block itself.
    """

    basis: Basis
    nodes: tuple[Node, ...]
    products: tuple[Product, ...]
    shapes: tuple[tuple[int, ...], ...]
    views: tuple[tuple[int, ...], ...]


def make_plan(layout: tuple[BlockLayout, ...], sizes: Mapping[str, int]) -> Plan:
    """Return the plan of the layers on some blocks, given the sizes of the groups."""
    used = {group for block in layout for group in block.groups}
    return _make_plan(layout, tuple(sorted((group, sizes[group]) for group in used)))


@lru_cache(maxsize=256)
def _make_plan(layout: tuple[BlockLayout, ...], items: tuple[tuple[str, int], ...]) -> Plan:
    sizes = dict(items)
    basis = equivariant_basis(layout)
    nodes: list[Node] = []
    index: dict[tuple[int, tuple[tuple[int, ...], ...], tuple[int, ...]], int] = {}

    def add(block: int, merged: tuple[tuple[int, ...], ...], kept: tuple[int, ...]) -> int:
        key = (block, merged, kept)
        if key in index:
            return index[key]
        extents = [sizes[layout[block].groups[members[0]]] for members in merged]
        missing = [c for c in range(len(merged)) if c not in kept]
        if missing:
            dropped = min(missing, key=lambda c: (extents[c], c))
            wider = tuple(sorted((*kept, dropped)))
            node = Node(
                block, merged, kept, add(block, merged, wider), 1 + wider.index(dropped), extents[dropped]
            )
        else:
            whole = tuple((axis,) for axis in range(len(layout[block].groups)))
            parent = -1 if merged == whole else add(block, whole, tuple(range(len(whole))))
            node = Node(block, merged, kept, parent, 0, 1)
        index[key] = len(nodes)
        nodes.append(node)
        return index[key]

    for number, block in enumerate(layout):
        axes = tuple((axis,) for axis in range(len(block.groups)))
        add(number, axes, tuple(range(len(axes))))

    def slot(view: View) -> Slot:
        ascending = tuple(sorted(view.kept))
        node = add(view.block, view.merged, ascending)
        if ascending == view.kept:
            return Slot(node, None, None)
        order = (0, *(1 + ascending.index(c) for c in view.kept), 1 + len(ascending))
        return Slot(node, order, tuple(sorted(range(len(order)), key=order.__getitem__)))

    def count(view: View) -> int:
        groups = layout[view.block].groups
        return prod(sizes[groups[view.merged[c][0]]] for c in view.dropped)

    products = tuple(
        Product(
            s.groups,
            tuple(sizes[g] for g in s.groups),
            tuple(map(slot, s.readings)),
            tuple(map(slot, s.writings)),
            tuple(r.block for r in s.readings),
            tuple(w.block for w in s.writings),
            tuple(count(r) for r in s.readings),
        )
        for s in basis.signatures
    )
    shapes = tuple(tuple(sizes[group] for group in block.groups) for block in layout)
    views = tuple(
        tuple(i for i, node in enumerate(nodes) if node.block == block and node.parent >= 0)
        for block in range(len(layout))
    )
    return Plan(basis, tuple(nodes), products, shapes, views)


def diagonal(tensor: Tensor, merged: Sequence[Sequence[int]]) -> Tensor:
    """Return the view of ``[b, *axes, width]`` in which the axes of every class run together."""
    strides = tensor.stride()
    shape = tensor.shape
    size = (shape[0], *(shape[1 + members[0]] for members in merged), shape[-1])
    step = (strides[0], *(sum(strides[1 + axis] for axis in members) for members in merged), strides[-1])
    return tensor.as_strided(size, step, tensor.storage_offset())


def pool(plan: Plan, blocks: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensor of every node, pooled by sums, given the blocks'."""
    values: list[Tensor] = []
    for node in plan.nodes:
        if node.parent < 0:
            values.append(blocks[node.block])
        elif node.dim == 0:
            values.append(diagonal(values[node.parent], node.merged))
        else:
            values.append(values[node.parent].sum(node.dim))
    return values


def gather(slots: Sequence[Slot], values: Sequence[Tensor | None]) -> Tensor:
    """Return the node tensors of some slots side by side: ``[b, *sizes, sum of widths]``."""
    parts = []
    for slot in slots:
        value = values[slot.node]
        assert value is not None
        parts.append(value if slot.order is None else value.permute(slot.order))
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def scatter(slots: Sequence[Slot], parts: Sequence[Tensor], values: list[Tensor | None]) -> None:
    """Add tensors ``[b, *sizes, width]`` to the nodes of some slots."""
    for slot, part in zip(slots, parts, strict=True):
        placed = part if slot.back is None else part.permute(slot.back)
        value = values[slot.node]
        values[slot.node] = placed if value is None else value + placed


def spread(plan: Plan, values: list[Tensor | None]) -> list[Tensor]:
    """Add every node to its parent, broadcasting, and return the blocks': the adjoint of `pool`.

    Args:
        plan: of the layer.
        values: tensor of every node, None for nothing; used up.
    """
    for number in range(len(plan.nodes) - 1, -1, -1):
        node, value = plan.nodes[number], values[number]
        if node.parent < 0 or value is None:
            continue
        whole = values[node.parent]
        if node.dim == 0:
            assert whole is not None
            values[node.parent] = whole = whole.clone(memory_format=torch.contiguous_format)
            diagonal(whole, node.merged).add_(value)
            continue
        wide = value.unsqueeze(node.dim)
        shape = [*wide.shape[: node.dim], node.size, *wide.shape[node.dim + 1 :]]
        values[node.parent] = wide.expand(shape) if whole is None else whole + wide
    return [value for value in values[: len(plan.shapes)] if value is not None]
