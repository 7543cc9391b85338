"""Walk: a layer's linear map, or its transpose, as a short list of steps on tensors.

A layer forwards and a layer backwards are the same walk: pool the blocks by sums, multiply by the matrices
of the signatures, spread the results. Backwards, readings and writings exchange their roles and matrices are
transposed; that means are taken and not sums is left to the matrices' rows. What is added to a large block
by broadcasting is written first and its product accumulated onto it: one pass for all of the sums, one for
the product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metanet.nn.views import Plan, Slot, diagonal, gather


@dataclass(frozen=True, slots=True)
class Spread:
    """Add a node to its parent, broadcast along ``dim`` (0: onto the diagonal).

    Args:
        node: that is added.
        parent: that it is added to.
        dim: dimension of the parent along which the node is constant.
        size: extent of that dimension.
        merged: of a diagonal.
        other: a second step of the same parent, taken at once where the parent has no value yet.
        fresh: the parent has no value yet.
    """

    node: int
    parent: int
    dim: int
    size: int
    merged: tuple[tuple[int, ...], ...]
    fresh: bool
    other: Spread | None = None


@dataclass(frozen=True, slots=True)
class Multiply:
    """Multiply what some slots hold by the matrix of a signature.

    Args:
        number: of the signature.
        reads: slots whose tensors are concatenated.
        writes: slots the result goes to.
        blocks: of the slots written to.
        late: all slots are whole blocks: the product is accumulated after everything was spread.
    """

    number: int
    reads: tuple[Slot, ...]
    writes: tuple[Slot, ...]
    blocks: tuple[int, ...]
    late: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a late product that belongs to one block.

    Args:
        number: of the signature.
        position: of the block among the slots written to.
    """

    number: int
    position: int


@dataclass(frozen=True, slots=True)
class Walk:
    """The steps of one direction.

    Args:
        plan: of the layer.
        products: in the order of the signatures.
        spreads: of every block, in an order in which a node is complete before it is added to its parent.
        pieces: of every block.
    """

    plan: Plan
    products: tuple[Multiply, ...]
    spreads: tuple[tuple[Spread, ...], ...]
    pieces: tuple[tuple[Piece, ...], ...]


def make_walk(plan: Plan, *, backward: bool) -> Walk:
    """Return the walk of a layer, from readings to writings or, backwards, from writings to readings."""
    products = []
    filled: set[int] = set()
    pieces: list[list[Piece]] = [[] for _ in plan.shapes]
    for number, product in enumerate(plan.products):
        reads, writes, blocks = product.readings, product.writings, product.write_blocks
        if backward:
            reads, writes, blocks = writes, reads, product.read_blocks
        late = bool(product.groups) and all(plan.nodes[s.node].parent < 0 and s.order is None for s in writes)
        products.append(Multiply(number, reads, writes, blocks, late))
        if late:
            for position, block in enumerate(blocks):
                pieces[block].append(Piece(number, position))
        else:
            filled |= {slot.node for slot in writes}
    children: dict[int, list[int]] = {}
    for number, node in enumerate(plan.nodes):
        if node.parent >= 0:
            children.setdefault(node.parent, []).append(number)

    def settle(number: int) -> list[Spread]:
        before: list[Spread] = []
        steps: list[Spread] = []
        for child in sorted(children.get(number, []), key=lambda c: plan.nodes[c].dim == 0):
            before += settle(child)
            node = plan.nodes[child]
            if child in filled:
                fresh = number not in filled
                steps.append(Spread(child, number, node.dim, node.size, node.merged, fresh))
                filled.add(number)
        if len(steps) > 1 and steps[0].fresh and steps[1].dim:
            steps[:2] = [replace(steps[0], other=steps[1])]
        return before + steps

    spreads = tuple(tuple(settle(number)) for number in range(len(plan.shapes)))
    return Walk(plan, tuple(products), spreads, tuple(map(tuple, pieces)))


def run_walk(
    walk: Walk,
    nodes: Sequence[Tensor],
    matrices: Sequence[Tensor],
    widths: Sequence[int],
    finish: Callable[[int, Tensor], None],
    *,
    bias: Tensor | None = None,
    visit: Callable[[int, Tensor], None] | None = None,
) -> list[Tensor]:
    """Apply a layer's linear map, or its transpose, without recording anything.

    What is done to one block is done in a row, so that the block is still in cache.

    Args:
        walk: which direction.
        nodes: tensor of every node of the view tree (`pool_block`).
        matrices: of every signature, in this direction: ``[sum of source widths, sum of target widths]``.
        widths: target width of every block.
        finish: called with the number and tensor of every target block once it is complete; the tensor is
            the caller's, who may write to it.
        bias: added to the product without indices.
        visit: called with the number of every signature and what its matrix is about to be multiplied with.

    Returns:
        What every matrix was multiplied with, ``[n · sizes, sum of source widths]``.
    """
    values: list[Tensor | None] = [None] * len(nodes)
    columns: list[Sequence[Tensor]] = []
    flats: list[Tensor] = []
    for product, matrix in zip(walk.products, matrices, strict=True):
        source = gather(product.reads, nodes)
        flat = source.reshape(-1, source.shape[-1])
        flats.append(flat)
        extents = [widths[block] for block in product.blocks]
        if product.late:
            columns.append(matrix.split(extents, 1))
            continue
        columns.append(())
        if visit is not None:
            visit(product.number, flat)
        result = flat @ matrix if bias is None or product.number else torch.addmm(bias, flat, matrix)
        parts = result.view(*source.shape[:-1], matrix.shape[1]).split(extents, -1)
        for slot, part in zip(product.writes, parts, strict=True):
            placed = part if slot.back is None else part.permute(slot.back)
            value = values[slot.node]
            values[slot.node] = placed if value is None else value.add_(placed)
    for block, (spreads, pieces) in enumerate(zip(walk.spreads, walk.pieces, strict=True)):
        for step in spreads:
            _spread(step, values)
        for piece in pieces:
            flat, column = flats[piece.number], columns[piece.number][piece.position]
            if visit is not None and piece.position == 0:
                visit(piece.number, flat)
            whole = values[block]
            if whole is None:
                values[block] = (flat @ column).view(-1, *walk.plan.shapes[block], widths[block])
            else:
                if whole.ndim > 2 and any(
                    whole.stride(d) != whole.stride(d + 1) * whole.shape[d + 1] for d in range(whole.ndim - 2)
                ):  # written in another order of its indices
                    values[block] = whole = whole.contiguous()
                whole.view(-1, widths[block]).addmm_(flat, column)
        done = values[block]
        assert done is not None
        finish(block, done)
    return flats


def pool_block(plan: Plan, nodes: list[Tensor | None], block: int, value: Tensor) -> None:
    """Fill in the nodes of one block's views, pooled by sums."""
    nodes[block] = value
    for number in plan.views[block]:
        node = plan.nodes[number]
        parent = nodes[node.parent]
        assert parent is not None
        nodes[number] = diagonal(parent, node.merged) if node.dim == 0 else parent.sum(node.dim)


def complete(nodes: Sequence[Tensor | None]) -> list[Tensor]:
    """Return the nodes, all of which are filled in."""
    found = [node for node in nodes if node is not None]
    assert len(found) == len(nodes)
    return found


def _spread(step: Spread, values: list[Tensor | None]) -> None:
    value = values[step.node]
    assert value is not None
    if step.dim == 0:
        whole = values[step.parent]
        assert whole is not None
        diagonal(whole, step.merged).add_(value)
        return
    wide = value.unsqueeze(step.dim)
    if not step.fresh:
        whole = values[step.parent]
        assert whole is not None
        whole.add_(wide)
        return
    if step.other is None:
        shape = list(wide.shape)
        shape[step.dim] = step.size
        values[step.parent] = wide.expand(shape).clone(memory_format=torch.contiguous_format)
        return
    second = values[step.other.node]
    assert second is not None
    values[step.parent] = torch.add(wide, second.unsqueeze(step.other.dim))
