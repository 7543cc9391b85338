"""Incidence: how features travel between the nodes and the edges of parameter graphs, in two forms.

`IndexIncidence` is PyG's gather and scatter, for any batch. `DenseIncidence` serves networks of one structure
without index tensors (`metanet.nn.dense_exchange`). Both give the same numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import prod

import torch
from torch import Tensor, nn
from torch_geometric.utils import scatter

from metanet.graphs.schema import GraphSchema
from metanet.nn.dense_exchange import dense_exchange
from metanet.nn.product_messages import dense_product, index_product


class Incidence(ABC):
    """How nodes, edges, node blocks (sites) and graphs exchange features ``[…, n, channels]``."""

    @abstractmethod
    def exchange(
        self,
        edges: Tensor,
        source: Tensor,
        target: Tensor,
        maps: tuple[nn.LayerNorm, nn.Linear, nn.Linear | None],
        *,
        incoming: bool,
        outgoing: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Let edges hear from their two units, change, and tell them.

        With ``z = SiLU(linear(norm(e)) + source_j + target_i)`` on the edge from j to i: ``e += out(z)``;
        units collect the mean of z over the edges of every edge block, summed over the edge blocks.

        Args:
            edges: ``[…, E, c]``.
            source: ``[…, N, c]``, what units send along outgoing edges.
            target: ``[…, N, c]``, what units send along incoming edges.
            maps: norm, linear and, unless edges stay as they are, out.
            incoming: whether units collect from incoming edges.
            outgoing: whether they collect from outgoing ones.

        Returns:
            Edges, and what units collect from incoming and from outgoing edges ``[…, N, c]``.
        """

    @abstractmethod
    def product(self, values: Tensor, units: Tensor, gains: Tensor, *, outgoing: bool) -> Tensor:
        """Let units collect what the units across their edges send, times the edges' values.

        Args:
            values: ``[…, E, k]``.
            units: ``[…, N, c]``, what units send.
            gains: ``[E, k, c]`` of the values (`metanet.nn.product_messages`).
            outgoing: collect from the edges that leave a unit instead of those that arrive.

        Returns:
            ``[…, N, c]``.
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
        self, edge_index: Tensor, fan: Tensor, node_block: Tensor, block_graph: Tensor, num_graphs: int
    ) -> None:
        self.source, self.target = edge_index
        self.fan = fan
        sites, self.site = torch.unique(node_block, return_inverse=True)
        self.site_graph = block_graph[sites]
        self.node_graph = block_graph[node_block]
        self.num_graphs = num_graphs
        self.num_nodes = node_block.shape[0]

    def exchange(
        self,
        edges: Tensor,
        source: Tensor,
        target: Tensor,
        maps: tuple[nn.LayerNorm, nn.Linear, nn.Linear | None],
        *,
        incoming: bool,
        outgoing: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Gather and scatter; see `Incidence.exchange`."""
        norm, linear, out = maps
        z = nn.functional.silu(linear(norm(edges)) + source[self.source] + target[self.target])
        weight = self.fan.to(z).reciprocal()
        n = self.num_nodes
        into = scatter(z * weight[:, :1], self.target, dim_size=n, reduce="sum") if incoming else None
        back = scatter(z * weight[:, 1:], self.source, dim_size=n, reduce="sum") if outgoing else None
        return edges if out is None else edges + out(z), into, back

    def product(self, values: Tensor, units: Tensor, gains: Tensor, *, outgoing: bool) -> Tensor:
        """Gather and scatter; see `Incidence.product`."""
        ends = (self.target, self.source) if outgoing else (self.source, self.target)
        return index_product(values, units, gains, ends, self.fan[:, int(outgoing)], self.num_nodes)

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

    def exchange(
        self,
        edges: Tensor,
        source: Tensor,
        target: Tensor,
        maps: tuple[nn.LayerNorm, nn.Linear, nn.Linear | None],
        *,
        incoming: bool,
        outgoing: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Broadcast and average; see `Incidence.exchange`."""
        return dense_exchange(edges, source, target, maps, self.schema, incoming=incoming, outgoing=outgoing)

    def product(self, values: Tensor, units: Tensor, gains: Tensor, *, outgoing: bool) -> Tensor:
        """Multiply matrices; see `Incidence.product`."""
        return dense_product(values, units, gains, self.schema, outgoing=outgoing)

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
