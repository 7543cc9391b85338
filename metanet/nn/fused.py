"""The fast route through a stack of layers: one autograd function, run in chunks that stay in cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from metanet.nn.walk import Walk, gathered_sources, run_walk

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
        record = any(ctx.needs_input_grad)
        saved: list[Tensor] = []
        results: list[list[Tensor]] = []
        for part in trunk.chunks(blocks):
            current = [block[part] for block in blocks]
            for layer, (bias, matrices) in enumerate(_by_layer(trunk, parameters)):
                current, sources = run_walk(trunk.walks[0], current, matrices, trunk.widths[layer + 1], bias)
                if record:
                    saved += sources
                if trunk.activated(layer):
                    for value in current:
                        value.relu_()
                    if record:
                        saved += current
            results.append([_mean(value) for value in current] if trunk.means else current)
        ctx.save_for_backward(*parameters, *saved)
        ctx.trunk, ctx.num_blocks = trunk, num_blocks
        ctx.parts = trunk.chunks(blocks)
        return tuple(r[0] if len(r) == 1 else torch.cat(r) for r in zip(*results, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        trunk: Trunk = ctx.trunk
        saved = list(ctx.saved_tensors)
        count = 1 + len(trunk.walks[0].products)
        parameters = saved[: count * trunk.num_layers]
        totals = [torch.zeros_like(parameter) for parameter in parameters]
        transposed = [parameter.t() for parameter in parameters]
        needs_input = any(ctx.needs_input_grad[2 : 2 + ctx.num_blocks])
        inputs: list[list[Tensor]] = []
        for part in reversed(ctx.parts):
            upstream = [grad[part] for grad in grads]
            if trunk.means:
                shapes = trunk.walks[0].plan.shapes
                upstream = [_unmean(g, shape) for g, shape in zip(upstream, shapes, strict=True)]
            for layer in range(trunk.num_layers - 1, -1, -1):
                if trunk.activated(layer):
                    values = _pop(saved, ctx.num_blocks)
                    owned = layer + 1 < trunk.num_layers
                    upstream = [_masked(g, v, owned) for g, v in zip(upstream, values, strict=True)]
                sources = _pop(saved, count - 1)
                here = slice(layer * count + 1, (layer + 1) * count)
                below = needs_input or layer > 0
                upstream, targets = _down(trunk, layer, upstream, transposed[here], below)
                totals[layer * count].add_(targets[0].sum(0))
                for total, source, target in zip(totals[here], sources, targets, strict=True):
                    total.addmm_(source.t(), target)
            inputs.append(upstream)
        gradients: list[Tensor | None] = [None] * ctx.num_blocks
        if needs_input:
            gradients = [g[0] if len(g) == 1 else torch.cat(g) for g in zip(*inputs[::-1], strict=True)]
        return (None, None, *gradients, *totals)


def _by_layer(trunk: Trunk, parameters: Sequence[Tensor]) -> list[tuple[Tensor, Sequence[Tensor]]]:
    count = 1 + len(trunk.walks[0].products)
    return [
        (parameters[i * count], parameters[i * count + 1 : (i + 1) * count]) for i in range(trunk.num_layers)
    ]


def _down(
    trunk: Trunk, layer: int, upstream: Sequence[Tensor], matrices: Sequence[Tensor], below: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients of a layer's input blocks (if wanted) and of what its products gave."""
    walk = trunk.walks[1]
    if below:
        return run_walk(walk, upstream, matrices, trunk.widths[layer])
    return [], gathered_sources(walk, upstream)


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


def _masked(grad: Tensor, value: Tensor, owned: bool) -> Tensor:
    """Return the gradient where the activation let something through; in place if it is ours."""
    if owned:
        return torch.ops.aten.threshold_backward.grad_input(grad, value, 0, grad_input=grad)  # type: ignore[no-any-return]
    return torch.ops.aten.threshold_backward(grad, value, 0)  # type: ignore[no-any-return]
