"""The fast route through a stack of layers: one autograd function, run in chunks that stay in cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metanet.nn.views import gather
from metanet.nn.walk import Walk, complete, pool_block, run_walk

CHUNK_BYTES = 1 << 21
"""Size of the largest block's activations in one chunk: a few times a core's second-level
cache, where fewer and longer operations outweigh the misses."""


@dataclass(frozen=True)
class Trunk:
    """What a stack of linear layers with ReLUs does, weights aside.

    Args:
        walks: forward and backward walk of the layers.
        widths: of every block before and after every layer, ``num_layers + 1`` rows.
        final: whether a ReLU follows the last layer too.
        means: return each block's mean over its group axes instead of the block.
    """

    walks: tuple[Walk, Walk]
    widths: tuple[tuple[int, ...], ...]
    final: bool
    means: bool

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return len(self.widths) - 1

    @property
    def per_layer(self) -> int:
        """Number of parameters of a layer: its bias and its matrices."""
        return 1 + len(self.walks[0].products)

    def activated(self, layer: int) -> bool:
        """Whether a ReLU follows a layer."""
        return self.final or layer + 1 < self.num_layers

    def chunks(self, blocks: Sequence[Tensor]) -> list[slice]:
        """Return the chunks of the batch: on a CPU what fits the cache, elsewhere all at once."""
        batch = blocks[0].shape[0]
        if blocks[0].device.type != "cpu":
            return [slice(0, batch)]
        shapes = self.walks[0].plan.shapes
        largest = max(prod(shape) * max(row[i] for row in self.widths) for i, shape in enumerate(shapes))
        length = max(1, CHUNK_BYTES // max(1, largest * blocks[0].element_size()))
        return [slice(start, min(start + length, batch)) for start in range(0, max(batch, 1), length)]


def run_trunk(trunk: Trunk, blocks: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[Tensor]:
    """Run a trunk.

    Args:
        trunk: what it does.
        blocks: ``[b, *group axes, width]``.
        parameters: for every layer its bias and its matrices (`EquivariantLinear.matrices`), in a row.

    Returns:
        Blocks ``[b, *group axes, width]``, or their means ``[b, width]``.
    """
    return list(_TrunkFunction.apply(trunk, len(blocks), *blocks, *parameters))  # type: ignore[no-untyped-call]


class _TrunkFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, trunk: Trunk, num_blocks: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        blocks, parameters = tensors[:num_blocks], tensors[num_blocks:]
        saved: list[Tensor] | None = [] if any(ctx.needs_input_grad) else None
        parts = trunk.chunks(blocks)
        results = [
            _chunk_forward(trunk, [block[part] for block in blocks], parameters, saved) for part in parts
        ]
        ctx.save_for_backward(*parameters, *(saved or ()))
        ctx.trunk, ctx.num_blocks, ctx.parts = trunk, num_blocks, parts
        return tuple(_joined(list(r)) for r in zip(*results, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        trunk: Trunk = ctx.trunk
        saved = list(ctx.saved_tensors)
        count = trunk.num_layers * trunk.per_layer
        parameters = saved[:count]
        totals = [torch.zeros_like(parameter) for parameter in parameters]
        transposed = [parameter.t() for parameter in parameters]
        below = any(ctx.needs_input_grad[2 : 2 + ctx.num_blocks])
        inputs = [
            _chunk_backward(trunk, [grad[part] for grad in grads], saved, transposed, totals, below)
            for part in reversed(ctx.parts)
        ]
        gradients: list[Tensor | None] = [None] * ctx.num_blocks
        if below:
            gradients = [_joined(list(g)) for g in zip(*inputs[::-1], strict=True)]
        return (None, None, *gradients, *totals)


def _chunk_forward(
    trunk: Trunk, blocks: Sequence[Tensor], parameters: Sequence[Tensor], saved: list[Tensor] | None
) -> list[Tensor]:
    """Run all layers; append to ``saved`` what each layer's matrices met, and its blocks if activated."""
    walk = trunk.walks[0]
    plan = walk.plan
    nodes: list[Tensor | None] = [None] * len(plan.nodes)
    for number, block in enumerate(blocks):
        pool_block(plan, nodes, number, block)
    for layer in range(trunk.num_layers):
        bias, *matrices = parameters[layer * trunk.per_layer : (layer + 1) * trunk.per_layer]
        outputs: list[Tensor | None] = [None] * len(plan.nodes)
        last, activated = layer + 1 == trunk.num_layers, trunk.activated(layer)

        def finish(
            number: int,
            value: Tensor,
            outputs: list[Tensor | None] = outputs,
            last: bool = last,
            activated: bool = activated,
        ) -> None:
            if activated:
                value.relu_()
            if last:
                outputs[number] = value
            else:
                pool_block(plan, outputs, number, value)

        flats = run_walk(walk, complete(nodes), matrices, trunk.widths[layer + 1], finish, bias=bias)
        nodes = outputs
        if saved is not None:
            saved += flats
            saved += complete(nodes[: len(blocks)]) if activated else []
    results = complete(nodes[: len(blocks)])
    return [_mean(value) for value in results] if trunk.means else results


def _chunk_backward(
    trunk: Trunk,
    grads: Sequence[Tensor],
    saved: list[Tensor],
    matrices: Sequence[Tensor],
    totals: Sequence[Tensor],
    below: bool,
) -> list[Tensor]:
    """Run all layers backwards, taking what the chunk saved off the list; return the inputs' gradients.

    ``totals`` collects the gradients of the parameters.
    """
    walk = trunk.walks[1]
    plan, num_blocks = walk.plan, len(grads)
    if trunk.means:
        grads = [_unmean(grad, shape) for grad, shape in zip(grads, plan.shapes, strict=True)]
    nodes: list[Tensor | None] = [None] * len(plan.nodes)
    values = _pop(saved, num_blocks) if trunk.activated(trunk.num_layers - 1) else None
    for number, grad in enumerate(grads):
        masked = grad if values is None else torch.ops.aten.threshold_backward(grad, values[number], 0)
        pool_block(plan, nodes, number, masked)
    for layer in range(trunk.num_layers - 1, -1, -1):
        first = layer * trunk.per_layer
        sources = _pop(saved, trunk.per_layer - 1)
        values = _pop(saved, num_blocks) if layer else None
        outputs: list[Tensor | None] = [None] * len(plan.nodes)

        def visit(number: int, flat: Tensor, first: int = first, sources: list[Tensor] = sources) -> None:
            if number == 0:
                totals[first].add_(flat.sum(0))
            totals[first + 1 + number].addmm_(sources[number].t(), flat)

        def finish(
            number: int,
            value: Tensor,
            outputs: list[Tensor | None] = outputs,
            values: list[Tensor] | None = values,
        ) -> None:
            if values is None:
                outputs[number] = value
                return
            torch.ops.aten.threshold_backward.grad_input(value, values[number], 0, grad_input=value)
            pool_block(plan, outputs, number, value)

        found = complete(nodes)
        if layer == 0 and not below:
            for product in walk.products:
                visit(product.number, gather(product.reads, found).flatten(0, -2))
            return []
        here = matrices[first + 1 : first + trunk.per_layer]
        run_walk(walk, found, here, trunk.widths[layer], finish, visit=visit)
        nodes = outputs
    return complete(nodes[:num_blocks])


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _pop(saved: list[Tensor], count: int) -> list[Tensor]:
    """Take the last tensors off a list, so that they are freed once they are used."""
    taken = saved[len(saved) - count :]
    del saved[len(saved) - count :]
    return taken


def _mean(value: Tensor) -> Tensor:
    return value.flatten(1, -2).mean(1) if value.ndim > 2 else value


def _unmean(grad: Tensor, shape: tuple[int, ...]) -> Tensor:
    if not shape:
        return grad
    small = (grad / prod(shape)).reshape(grad.shape[0], *[1] * len(shape), grad.shape[-1])
    return small.expand(grad.shape[0], *shape, grad.shape[-1])
