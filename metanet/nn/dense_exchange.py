"""The exchange between nodes and edges for networks of one structure, as one autograd function.

An edge block is a ``[b, *dims, channels]`` view: reading a unit is a broadcast, collecting at it a sum along
axes. Norm, product, broadcasts, activation and sums run on a few networks at a time, so that what is in
between stays in cache; the backward pass computes it again instead of keeping it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metanet.graphs.schema import GraphSchema

CHUNK_BYTES = 1 << 20
"""Size of the largest intermediate tensor on a CPU: a few of them fit a core's cache."""


def dense_exchange(
    edges: Tensor,
    source: Tensor,
    target: Tensor,
    maps: tuple[nn.LayerNorm, nn.Linear, nn.Linear | None],
    schema: GraphSchema,
    *,
    incoming: bool,
    outgoing: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return what `metanet.nn.incidence.Incidence.exchange` says.

    Args:
        edges: ``[b, E, c]``.
        source: ``[b, N, c]``.
        target: ``[b, N, c]``.
        maps: norm, linear and out.
        schema: structure of all b networks.
        incoming: whether units collect from incoming edges.
        outgoing: whether they collect from outgoing ones.
    """
    norm, linear, out = maps
    dtype = edges.dtype
    weights: list[Tensor | None] = [norm.weight, norm.bias, linear.weight, linear.bias]
    weights += [None, None] if out is None else [out.weight, out.bias]
    told, into, back = _Exchange.apply(  # type: ignore[no-untyped-call]
        edges.contiguous(),
        source.to(dtype).contiguous(),
        target.to(dtype).contiguous(),
        schema,
        norm.eps,
        incoming,
        outgoing,
        *weights,
    )
    return edges if out is None else told, into if incoming else None, back if outgoing else None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        edges: Tensor,
        source: Tensor,
        target: Tensor,
        schema: GraphSchema,
        eps: float,
        incoming: bool,
        outgoing: bool,
        *weights: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.schema, ctx.eps, ctx.sides = schema, eps, (incoming, outgoing)
        ctx.save_for_backward(edges, source, target, *weights)
        gamma, beta, a, a0, w, w0 = weights
        assert a is not None
        none = edges.new_zeros(0)
        told = none if w is None else torch.empty_like(edges)
        into = torch.empty_like(source) if incoming else none
        back = torch.empty_like(source) if outgoing else none
        with torch.autocast(edges.device.type, enabled=False):
            for part in _chunks(edges):
                e = edges[part]
                h = torch.native_layer_norm(e, e.shape[-1:], gamma, beta, eps)[0]
                z = nn.functional.linear(h, a, a0)
                _add_units(z, source[part], schema, at_target=False, weighted=False)
                _add_units(z, target[part], schema, at_target=True, weighted=False)
                nn.functional.silu(z, inplace=True)
                if incoming:
                    _sum_edges(z, into[part], schema, at_target=True, weighted=True)
                if outgoing:
                    _sum_edges(z, back[part], schema, at_target=False, weighted=True)
                if w is not None:
                    torch.add(e, nn.functional.linear(z, w, w0), out=told[part])
        return told, into, back

    @staticmethod
    def backward(ctx: Any, told: Tensor, into: Tensor, back: Tensor) -> tuple[Tensor | None, ...]:
        schema, (incoming, outgoing) = ctx.schema, ctx.sides
        edges, source, target, gamma, beta, a, a0, w, w0 = ctx.saved_tensors
        c = edges.shape[-1]
        told, into, back = told.contiguous(), into.contiguous(), back.contiguous()
        d_edges, d_source, d_target = map(torch.empty_like, (edges, source, target))
        d_gamma, d_beta, d_a, d_a0 = map(torch.zeros_like, (gamma, beta, a, a0))
        d_w, d_w0 = (None if t is None else torch.zeros_like(t) for t in (w, w0))
        for part in _chunks(edges):
            e = edges[part]
            h, mean, deviation = torch.native_layer_norm(e, e.shape[-1:], gamma, beta, ctx.eps)
            y = nn.functional.linear(h, a, a0)
            _add_units(y, source[part], schema, at_target=False, weighted=False)
            _add_units(y, target[part], schema, at_target=True, weighted=False)
            if w is None:
                d = torch.zeros_like(y)
            else:
                z = nn.functional.silu(y)
                flat = told[part].view(-1, c)
                assert d_w is not None
                assert d_w0 is not None
                d_w.addmm_(flat.t(), z.view(-1, c))
                d_w0.add_(flat.sum(0))
                d = (flat @ w).view_as(y)
            if incoming:
                _add_units(d, into[part], schema, at_target=True, weighted=True)
            if outgoing:
                _add_units(d, back[part], schema, at_target=False, weighted=True)
            d = torch.ops.aten.silu_backward(d, y)
            _sum_edges(d, d_source[part], schema, at_target=False, weighted=False)
            _sum_edges(d, d_target[part], schema, at_target=True, weighted=False)
            flat = d.view(-1, c)
            d_a.addmm_(flat.t(), h.view(-1, c))
            d_a0.add_(flat.sum(0))
            step, gain, shift = torch.ops.aten.native_layer_norm_backward(
                (flat @ a).view_as(e), e, [c], mean, deviation, gamma, beta, [True, True, True]
            )
            d_gamma.add_(gain)
            d_beta.add_(shift)
            if w is None:
                d_edges[part] = step
            else:
                torch.add(step, told[part], out=d_edges[part])
        return d_edges, d_source, d_target, None, None, None, None, d_gamma, d_beta, d_a, d_a0, d_w, d_w0


def _chunks(edges: Tensor) -> list[slice]:
    b = edges.shape[0]
    one = max(1, edges[0].numel() * edges.element_size()) if b else 1
    step = max(1, CHUNK_BYTES // one) if edges.device.type == "cpu" else max(1, b)
    return [slice(start, start + step) for start in range(0, b, step)]


class _Side(NamedTuple):
    """How one edge block meets its source or target units, as views of contiguous ``[b, E or N, c]`` tensors.

    Strides and offsets are in elements, without the leading dimension of networks.
    """

    shape: tuple[int, ...]
    edge_strides: tuple[int, ...]
    edge_offset: int
    unit_shape: tuple[int, ...]
    unit_strides: tuple[int, ...]
    spread_strides: tuple[int, ...]
    unit_offset: int
    others: tuple[int, ...]
    scale: float


@lru_cache(maxsize=128)
def _sides(schema: GraphSchema, c: int, at_target: bool) -> tuple[_Side, ...]:
    """Return how every edge block meets its units; dimensions of units in the order of the edges'."""
    sides = []
    for block, start in zip(schema.edges, schema.edge_starts, strict=False):
        end, dims = (block.target, block.target_dims) if at_target else (block.source, block.source_dims)
        unit_strides = dict(zip(dims, _strides(schema.nodes[end].shape, c), strict=True))
        sides.append(
            _Side(
                (*block.shape, c),
                (*_strides(block.shape, c), 1),
                start * c,
                (*(n for d, n in enumerate(block.shape) if d in dims), c),
                (*(unit_strides[d] for d in sorted(dims)), 1),
                (*(unit_strides.get(d, 0) for d in range(len(block.shape))), 1),
                schema.node_starts[end] * c,
                tuple(d + 1 for d in range(len(block.shape)) if d not in dims),
                1 / max(1, block.fan(dims)),
            )
        )
    return tuple(sides)


def _strides(shape: Sequence[int], c: int) -> list[int]:
    return [prod(shape[d + 1 :]) * c for d in range(len(shape))]


def _add_units(edges: Tensor, units: Tensor, schema: GraphSchema, *, at_target: bool, weighted: bool) -> None:
    """Add to every edge, in place, the features of its source or target unit (over the fan if weighted)."""
    b, n, c = units.shape
    per_graph, first, start = edges.shape[1] * c, edges.storage_offset(), units.storage_offset()
    for side in _sides(schema, c, at_target):
        view = edges.as_strided((b, *side.shape), (per_graph, *side.edge_strides), first + side.edge_offset)
        part = units.as_strided((b, *side.shape), (n * c, *side.spread_strides), start + side.unit_offset)
        view.add_(part, alpha=side.scale if weighted else 1)


def _sum_edges(edges: Tensor, units: Tensor, schema: GraphSchema, *, at_target: bool, weighted: bool) -> None:
    """Write to the units the sums, or with weights means, of the edges of every block that meet there."""
    b, n, c = units.shape
    per_graph, first, start = edges.shape[1] * c, edges.storage_offset(), units.storage_offset()
    units.zero_()
    for side in _sides(schema, c, at_target):
        view = edges.as_strided((b, *side.shape), (per_graph, *side.edge_strides), first + side.edge_offset)
        part = units.as_strided((b, *side.unit_shape), (n * c, *side.unit_strides), start + side.unit_offset)
        part.add_(view.sum(side.others) if side.others else view, alpha=side.scale if weighted else 1)
