"""Walk: a layer's linear map, or its transpose, as a short list of steps on tensors.

A layer forwards and a layer backwards are the same walk: pool the blocks by sums, multiply by the matrices
of the signatures, spread the results. Backwards, readings and writings exchange their roles and matrices are
transposed; that means are taken and not sums is left to the matrices' rows. What is added to a large block
by broadcasting is written first and its product accumulated onto it: one pass for all of the sums, one for
the product.
"""

from __future__ import annotations

from collections.abc import Sequence
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
class Walk:
    """The steps of one direction.

    Args:
        plan: of the layer.
        products: in the order of the signatures.
        spreads: in an order in which every node is complete before it is added to its parent.
    """

    plan: Plan
    products: tuple[Multiply, ...]
    spreads: tuple[Spread, ...]


def make_walk(plan: Plan, *, backward: bool) -> Walk:
    """Return the walk of a layer, from readings to writings or, backwards, from writings to readings."""
    products = []
    filled: set[int] = set()
    for number, product in enumerate(plan.products):
        reads, writes, blocks = product.readings, product.writings, product.write_blocks
        if backward:
            reads, writes, blocks = writes, reads, product.read_blocks
        late = bool(product.groups) and all(plan.nodes[s.node].parent < 0 and s.order is None for s in writes)
        products.append(Multiply(number, reads, writes, blocks, late))
        if not late:
            filled |= {slot.node for slot in writes}
    children: dict[int, list[int]] = {}
    for number, node in enumerate(plan.nodes):
        if node.parent >= 0:
            children.setdefault(node.parent, []).append(number)
    spreads: list[Spread] = []

    def settle(number: int) -> None:
        steps: list[Spread] = []
        for child in sorted(children.get(number, []), key=lambda c: plan.nodes[c].dim == 0):
            settle(child)
            node = plan.nodes[child]
            if child in filled:
                steps.append(Spread(child, number, node.dim, node.size, node.merged, number not in filled))
                filled.add(number)
        if len(steps) > 1 and steps[0].fresh and steps[1].dim:
            first, second = steps[:2]
            steps[:2] = [replace(first, other=second)]
        spreads.extend(steps)

    for number in range(len(plan.shapes)):
        settle(number)
    return Walk(plan, tuple(products), tuple(spreads))


def run_walk(
    walk: Walk,
    blocks: Sequence[Tensor],
    matrices: Sequence[Tensor],
    widths: Sequence[int],
    bias: Tensor | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Apply a layer's linear map, or its transpose, without recording anything.

    Args:
        walk: which direction.
        blocks: ``[n, *group axes, width]``.
        matrices: of every signature, in this direction: ``[sum of source widths, sum of target widths]``.
        widths: target width of every block.
        bias: added to the product without indices.

    Returns:
        The target blocks, and what every matrix was multiplied with, ``[n · sizes, sum of source widths]``.
    """
    nodes = pooled_nodes(walk, blocks)
    values: list[Tensor | None] = [None] * len(nodes)
    sources: list[Tensor] = []
    for product, matrix in zip(walk.products, matrices, strict=True):
        source = gather(product.reads, nodes)
        flat = source.reshape(-1, source.shape[-1])
        sources.append(flat)
        if not product.late:
            result = flat @ matrix if bias is None or product.number else torch.addmm(bias, flat, matrix)
            parts = result.view(*source.shape[:-1], matrix.shape[1]).split(
                [widths[b] for b in product.blocks], -1
            )
            for slot, part in zip(product.writes, parts, strict=True):
                placed = part if slot.back is None else part.permute(slot.back)
                value = values[slot.node]
                values[slot.node] = placed if value is None else value.add_(placed)
    for step in walk.spreads:
        _spread(step, values)
    for product, matrix, flat in zip(walk.products, matrices, sources, strict=True):
        if product.late:
            columns = matrix.split([widths[b] for b in product.blocks], 1)
            for slot, block, column in zip(product.writes, product.blocks, columns, strict=True):
                whole = values[slot.node]
                if whole is None:
                    shape = (blocks[0].shape[0], *walk.plan.shapes[block], widths[block])
                    values[slot.node] = torch.mm(flat, column).view(shape)
                else:
                    whole.view(-1, widths[block]).addmm_(flat, column)
    results = [value for value in values[: len(walk.plan.shapes)] if value is not None]
    assert len(results) == len(walk.plan.shapes)
    return results, sources


def pooled_nodes(walk: Walk, blocks: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensor of every node of the view tree, pooled by sums."""
    nodes: list[Tensor] = []
    for node in walk.plan.nodes:
        if node.parent < 0:
            nodes.append(blocks[node.block])
        elif node.dim == 0:
            nodes.append(diagonal(nodes[node.parent], node.merged))
        else:
            nodes.append(nodes[node.parent].sum(node.dim))
    return nodes


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


def gathered_sources(walk: Walk, blocks: Sequence[Tensor]) -> list[Tensor]:
    """Return what every matrix would be multiplied with, without doing it."""
    nodes = pooled_nodes(walk, blocks)
    return [gather(product.reads, nodes).flatten(0, -2) for product in walk.products]
