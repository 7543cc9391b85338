"""Incidence: how features travel between the nodes and the edges of parameter graphs, in two forms.

`IndexIncidence` is PyG's gather and scatter, for any batch. `DenseIncidence` serves networks of one structure
without index tensors: an edge block is a ``[b, *dims, channels]`` view, reading a unit is a broadcast and
collecting at it a mean along axes. Both give the same numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch_geometric.utils import scatter

from metanet.graph_schema import GraphSchema, pad_shape


class Incidence(ABC):
    """Linear maps between the features of nodes ``x``, edges ``e``, node blocks ``s`` and graphs ``u``."""

    @abstractmethod
    def to_edges(self, edges: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Return ``edges`` plus, on every edge, what its source and its target unit send (may reuse it)."""

    @abstractmethod
    def to_nodes(self, edges: Tensor, *, outgoing: bool) -> tuple[Tensor, Tensor | None]:
        """Return what units collect from incoming, and outgoing, edges.

        It is the mean over the edges of every edge block at the unit, summed over the edge blocks.
        """

    @abstractmethod
    def to_blocks(self, nodes: Tensor) -> Tensor:
        """Return the mean over every node block."""

    @abstractmethod
    def to_graphs(self, blocks: Tensor) -> Tensor:
        """Return the mean over the node blocks of every graph."""

    @abstractmethod
    def from_graphs(self, graphs: Tensor) -> Tensor:
        """Return each node's graph's features, or something that broadcasts to them."""


class IndexIncidence(Incidence):
    """Gather and scatter over the index tensors of a (batched) graph.

    Args:
        edge_index: ``[2, E]``.
        fan: ``[E, 2]``: number of edges of the edge's block that meet at its target, at its source.
        node_block: ``[N]``.
        block_graph: ``[blocks]`` graph of every block; blocks without nodes (those of edges) do not count.
        num_graphs: number of graphs.
    """

    def __init__(
        self,
        edge_index: Tensor,
        fan: Tensor,
        node_block: Tensor,
        block_graph: Tensor,
        num_graphs: int,
    ) -> None:
        self.source, self.target = edge_index
        self.fan = fan
        sites, self.site = torch.unique(node_block, return_inverse=True)
        self.site_graph = block_graph[sites]
        self.node_graph = block_graph[node_block]
        self.num_graphs = num_graphs
        self.num_nodes = node_block.shape[0]

    def to_edges(self, edges: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Gather; see `Incidence.to_edges`."""
        return edges + source[self.source] + target[self.target]

    def to_nodes(self, edges: Tensor, *, outgoing: bool) -> tuple[Tensor, Tensor | None]:
        """Scatter; see `Incidence.to_nodes`."""
        weight = self.fan.to(edges).reciprocal()
        n = self.num_nodes
        into = scatter(edges * weight[:, :1], self.target, dim_size=n, reduce="sum")
        out = scatter(edges * weight[:, 1:], self.source, dim_size=n, reduce="sum") if outgoing else None
        return into, out

    def to_blocks(self, nodes: Tensor) -> Tensor:
        """Scatter; see `Incidence.to_blocks`."""
        result: Tensor = scatter(nodes, self.site, dim_size=self.site_graph.shape[0], reduce="mean")
        return result

    def to_graphs(self, blocks: Tensor) -> Tensor:
        """Scatter; see `Incidence.to_graphs`."""
        result: Tensor = scatter(blocks, self.site_graph, dim_size=self.num_graphs, reduce="mean")
        return result

    def from_graphs(self, graphs: Tensor) -> Tensor:
        """Gather; see `Incidence.from_graphs`."""
        return graphs[self.node_graph]


class DenseIncidence(Incidence):
    """Broadcasts and means over the blocks of one structure; features are ``[b, N or E, channels]``."""

    def __init__(self, schema: GraphSchema) -> None:
        self.schema = schema

    def to_edges(self, edges: Tensor, source: Tensor, target: Tensor) -> Tensor:
        """Broadcast; see `Incidence.to_edges`."""
        return _ToEdges.apply(edges, source, target, self.schema)  # type: ignore[no-any-return,no-untyped-call]

    def to_nodes(self, edges: Tensor, *, outgoing: bool) -> tuple[Tensor, Tensor | None]:
        """Average; see `Incidence.to_nodes`."""
        into, out = _ToNodes.apply(edges, self.schema, outgoing)  # type: ignore[no-untyped-call]
        return into, out if outgoing else None

    def to_blocks(self, nodes: Tensor) -> Tensor:
        """Average; see `Incidence.to_blocks`."""
        sizes = [prod(block.shape) for block in self.schema.nodes]
        return torch.stack([part.mean(1) for part in nodes.split(sizes, 1)], 1)

    def to_graphs(self, blocks: Tensor) -> Tensor:
        """Average; see `Incidence.to_graphs`."""
        return blocks.mean(1)

    def from_graphs(self, graphs: Tensor) -> Tensor:
        """Broadcast; see `Incidence.from_graphs`."""
        return graphs[:, None]


def _spread(
    nodes: Tensor, start: int, stop: int, sizes: Sequence[int], shape: Sequence[int], dims: Sequence[int]
) -> Tensor:
    """Return a node block ``[b, n, c]`` as ``[b, *dims of the edge block or 1, c]``."""
    b, _, c = nodes.shape
    order, padded = pad_shape(shape, dims)
    units = nodes[:, start:stop].reshape(b, *sizes, c)
    return units.permute(0, *(i + 1 for i in order), -1).reshape(b, *padded, c)


def _collect(edges: Tensor, sizes: Sequence[int], dims: Sequence[int]) -> Tensor:
    """Return the sums over the other dimensions of an edge block ``[b, *shape, c]`` as ``[b, n, c]``."""
    other = [d + 1 for d in range(edges.ndim - 2) if d not in dims]
    total = edges.sum(other) if other else edges
    order = sorted(range(len(dims)), key=dims.__getitem__)
    back = sorted(range(len(order)), key=order.__getitem__)
    return total.permute(0, *(i + 1 for i in back), -1).reshape(edges.shape[0], prod(sizes), edges.shape[-1])


def _add_nodes(edges: Tensor, schema: GraphSchema, sides: Sequence[tuple[Tensor, bool, bool]]) -> None:
    """Add node features ``(nodes, at target, weighted)`` to the edges in place."""
    b, _, c = edges.shape
    for block, start, stop in zip(schema.edges, schema.edge_starts, schema.edge_starts[1:], strict=False):
        view = edges[:, start:stop].view(b, *block.shape, c)
        for nodes, at_target, weighted in sides:
            end, dims = (block.target, block.target_dims) if at_target else (block.source, block.source_dims)
            first, last = schema.node_starts[end], schema.node_starts[end + 1]
            part = _spread(nodes, first, last, schema.nodes[end].shape, block.shape, dims)
            view.add_(part, alpha=1 / max(1, block.fan(dims)) if weighted else 1.0)


def _sum_edges(edges: Tensor, schema: GraphSchema, at_target: bool, weighted: bool) -> Tensor:
    b, _, c = edges.shape
    result = edges.new_zeros(b, schema.num_nodes, c)
    for block, start, stop in zip(schema.edges, schema.edge_starts, schema.edge_starts[1:], strict=False):
        end, dims = (block.target, block.target_dims) if at_target else (block.source, block.source_dims)
        total = _collect(edges[:, start:stop].view(b, *block.shape, c), schema.nodes[end].shape, dims)
        first, last = schema.node_starts[end], schema.node_starts[end + 1]
        result[:, first:last].add_(total, alpha=1 / max(1, block.fan(dims)) if weighted else 1.0)
    return result


class _ToEdges(torch.autograd.Function):
    """``edges + broadcast(source) + broadcast(target)``, in place of ``edges``."""

    @staticmethod
    def forward(ctx: Any, edges: Tensor, source: Tensor, target: Tensor, schema: GraphSchema) -> Tensor:
        ctx.schema = schema
        ctx.mark_dirty(edges)
        _add_nodes(edges, schema, [(source, False, False), (target, True, False)])
        return edges

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        grad = grad.contiguous()
        return (
            grad,
            _sum_edges(grad, ctx.schema, at_target=False, weighted=False),
            _sum_edges(grad, ctx.schema, at_target=True, weighted=False),
            None,
        )


class _ToNodes(torch.autograd.Function):
    """Means of the edges of every block at its target units, and at its source units."""

    @staticmethod
    def forward(ctx: Any, edges: Tensor, schema: GraphSchema, outgoing: bool) -> tuple[Tensor, Tensor]:
        ctx.schema, ctx.outgoing, ctx.shape = schema, outgoing, edges.shape
        edges = edges.contiguous()
        into = _sum_edges(edges, schema, at_target=True, weighted=True)
        out = _sum_edges(edges, schema, at_target=False, weighted=True) if outgoing else edges.new_zeros(())
        return into, out

    @staticmethod
    def backward(ctx: Any, into: Tensor, out: Tensor) -> tuple[Tensor, None, None]:
        grad = into.new_zeros(ctx.shape)
        sides = [(into, True, True), (out, False, True)]
        _add_nodes(grad, ctx.schema, sides if ctx.outgoing else sides[:1])
        return grad, None, None
