"""Rounds of message passing of a graph metanetwork."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metanet.nn.incidence import Incidence


class UnitUpdate(nn.Module):
    """What units and graphs make of what the units collected: two-layer perceptrons with residuals.

    The hidden layer of the units' perceptron, and what graphs see of the units, is modulated by what their
    site is, so that one set of weights can treat first layers, last layers and attention heads differently.

    Args:
        channels: number of channels c.
        collected: number of things each unit collected.
    """

    def __init__(self, channels: int, collected: int) -> None:
        super().__init__()
        self.graph_to_node = nn.Linear(channels, 2 * channels, bias=False)
        self.node_in = nn.Linear((1 + collected) * channels, 2 * channels)
        self.node_out = nn.Linear(2 * channels, channels)
        self.site_to_node = nn.Linear(channels, 4 * channels)
        self.site_to_graph = nn.Linear(channels, 2 * channels)
        self.graph_mix = nn.Linear(3 * channels, channels)
        self.graph_out = nn.Linear(channels, channels)

    def forward(
        self,
        nodes: Tensor,
        x: Tensor,
        collected: list[Tensor],
        graphs: Tensor,
        u: Tensor,
        sites: Tensor,
        incidence: Incidence,
    ) -> tuple[Tensor, Tensor]:
        """Return updated nodes ``[…, N, c]`` and graphs ``[b, c]``.

        Args:
            nodes: ``[…, N, c]``, and x the normalised ones.
            x: ``[…, N, c]``.
            collected: from every way, ``[…, N, c]``.
            graphs: ``[b, c]``, and u the normalised ones.
            u: ``[b, c]``.
            sites: ``[N, c]`` what the units are.
            incidence: of the graphs.
        """
        gain, shift = self.site_to_node(sites).chunk(2, -1)
        told = self.node_in(torch.cat([x, *collected], -1)) + incidence.from_graphs(self.graph_to_node(u))
        told = torch.addcmul(shift, told, 1 + gain)
        nodes = nodes + self.node_out(nn.functional.silu(told))
        shown = torch.cat([nodes, collected[0]], -1) * self.site_to_graph(sites)
        pooled = incidence.to_graphs(incidence.to_blocks(shown))
        graphs = graphs + self.graph_out(nn.functional.silu(self.graph_mix(torch.cat([u, pooled], -1))))
        return nodes, graphs


class GMNProductConv(nn.Module):
    r"""One round of product messages: what a unit sends is multiplied by the weight of the edge.

    As `GMNConv`, with :math:`z_{ij} = (1, v_{ij}) G_t \odot B\,\mathrm{LN}(x_j)` collected as
    `metanet.nn.product_messages` says; edges keep no features, so that a dense block is one matrix product.

    Args:
        channels: number of channels c of nodes and graphs.
        features: number k of features of an edge's value.
        bidirectional: units collect from their readers too.

    References:
        Kalogeropoulos et al. 2024, Scale equivariant graph metanetworks, https://arxiv.org/abs/2406.10685,
        eq. 11, on the updates of Lim et al. 2024.
    """

    def __init__(self, channels: int, features: int, *, bidirectional: bool = True) -> None:
        super().__init__()
        self.channels, self.features, self.bidirectional = channels, features, bidirectional
        self.norm_nodes = nn.LayerNorm(channels)
        self.norm_graphs = nn.LayerNorm(channels)
        ways = 2 if bidirectional else 1
        self.send = nn.ModuleList(nn.Linear(channels, channels, bias=False) for _ in range(ways))
        self.gain = nn.ModuleList(nn.Linear(channels, features * channels) for _ in range(ways))
        self.update = UnitUpdate(channels, ways)

    def forward(
        self,
        nodes: Tensor,
        values: Tensor,
        places: Tensor,
        graphs: Tensor,
        sites: Tensor,
        incidence: Incidence,
    ) -> tuple[Tensor, Tensor]:
        """Return updated nodes ``[…, N, c]`` and graphs ``[b, c]``.

        Args:
            nodes: ``[…, N, c]``.
            values: ``[…, E, k]`` features of the edges' values.
            places: ``[E, c]`` what an edge is.
            graphs: ``[b, c]``.
            sites: ``[N, c]`` what a unit is.
            incidence: of the graphs.
        """
        x, u = self.norm_nodes(nodes) + sites, self.norm_graphs(graphs)
        collected = [
            incidence.product(
                values, send(x), gain(places).unflatten(-1, (self.features, -1)), outgoing=bool(way)
            )
            for way, (send, gain) in enumerate(zip(self.send, self.gain, strict=True))
        ]
        return self.update(nodes, x, collected, graphs, u, sites, incidence)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Show the channels."""
        return f"{self.channels}, features={self.features}, bidirectional={self.bidirectional}"


class GMNConv(nn.Module):
    r"""One round of message passing, pre-norm with residuals, on nodes x, edges e and graphs u.

    .. math::
        z_{ij} &= \mathrm{SiLU}(A\,\mathrm{LN}(e_{ij}) + B\,\mathrm{LN}(x_j)
                  + C\,\mathrm{LN}(x_i) + D\,\mathrm{LN}(u)) \\
        e_{ij} &\mathrel{+}= E\, z_{ij} \\
        x_i &\mathrel{+}= \mathrm{MLP}(\mathrm{LN}(x_i), \textstyle\sum_t \mathrm{mean}_{j \in t} z_{ij},
               \sum_t \mathrm{mean}_{j \in t} z_{ji}, u) \\
        u &\mathrel{+}= \mathrm{MLP}(\mathrm{LN}(u), \mathrm{mean}_s\,\mathrm{mean}_{i \in s} (x_i, \bar z_i))

    Means are over the edges of one parameter tensor t at a unit and over the units of one site s; tensors
    are summed and sites averaged, so that a bias is not drowned by a wide layer's weights. The paper takes
    one mean over all of them. ``bidirectional`` collects from outgoing edges too, with weights of its own:
    the paper's reversed edges without doubling the edges.

    Args:
        channels: number of channels c of nodes, edges and graphs.
        bidirectional: units collect from their readers too.
        update_nodes: whether x and u are updated; the last round of an equivariant network needs e alone.
        update_edges: whether e is updated; the last round of an invariant network does not need it.

    References:
        Lim et al. 2024, Graph metanetworks for processing diverse neural architectures,
        https://arxiv.org/abs/2312.04501.
    """

    def __init__(
        self,
        channels: int,
        *,
        bidirectional: bool = True,
        update_nodes: bool = True,
        update_edges: bool = True,
    ) -> None:
        super().__init__()
        if not (update_nodes or update_edges):
            raise ValueError("a round that updates neither nodes nor edges does nothing")
        self.channels, self.bidirectional, self.update_nodes = channels, bidirectional, update_nodes
        self.norm_nodes = nn.LayerNorm(channels)
        self.norm_edges = nn.LayerNorm(channels)
        self.norm_graphs = nn.LayerNorm(channels)
        self.edge_in = nn.Linear(channels, channels)
        self.source = nn.Linear(channels, channels, bias=False)
        self.target = nn.Linear(channels, channels, bias=False)
        self.graph_to_edge = nn.Linear(channels, channels, bias=False)
        self.edge_out = nn.Linear(channels, channels) if update_edges else None
        if not update_nodes:
            return
        self.update = UnitUpdate(channels, 2 if bidirectional else 1)

    def forward(
        self, nodes: Tensor, edges: Tensor, graphs: Tensor, sites: Tensor, incidence: Incidence
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return updated nodes ``[…, N, c]``, edges ``[…, E, c]`` and graphs ``[b, c]``; sites ``[N, c]``."""
        x, u = self.norm_nodes(nodes) + sites, self.norm_graphs(graphs)
        edges, into, out = incidence.exchange(
            edges,
            self.source(x),
            self.target(x) + incidence.from_graphs(self.graph_to_edge(u)),
            (self.norm_edges, self.edge_in, self.edge_out),
            incoming=self.update_nodes,
            outgoing=self.update_nodes and self.bidirectional,
        )
        if into is None:
            return nodes, edges, graphs
        collected = [into] if out is None else [into, out]
        nodes, graphs = self.update(nodes, x, collected, graphs, u, sites, incidence)
        return nodes, edges, graphs

    def extra_repr(self) -> str:
        """Show the channels."""
        updates = f"update_nodes={self.update_nodes}, update_edges={self.edge_out is not None}"
        return f"{self.channels}, bidirectional={self.bidirectional}, {updates}"
