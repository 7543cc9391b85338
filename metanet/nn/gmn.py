"""Graph metanetwork: message passing on parameter graphs with node, edge and global updates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from metanet.features import WeightFeatures
from metanet.graphs.conversion import edge_values, from_edge_values, graph_schema
from metanet.graphs.schema import EDGE_KINDS, GraphSchema
from metanet.nn.gmn_conv import GMNConv, GMNProductConv
from metanet.nn.graph_encoding import PlaceEncoder, ValueEncoder, ValueStandardizer, WordEncoder
from metanet.nn.incidence import DenseIncidence, Incidence, IndexIncidence

__all__ = ["GMN", "GMNConv", "GMNProductConv"]

Readout = Literal["graph", "edge"]
Message = Literal["mlp", "product"]


@dataclass(frozen=True, slots=True)
class _Input:
    """What a forward pass needs of its input, in the dense form (``values [b, E, k]``) or the index form."""

    tensors: dict[str, Tensor]
    values: Tensor
    incidence: Incidence
    num_blocks: int
    schema: GraphSchema | None


class GMN(nn.Module):
    """Graph metanetwork of any architecture, or of any mixture of them.

    It reads the features of one spec (`WeightFeatures`) or the graphs of `to_graph`, batched with PyG or not,
    and is invariant (``readout="graph"``) or equivariant (``readout="edge"``) to permutations of hidden
    units. Graphs of one structure run in dense form, without index tensors. Nothing is normalised over the
    batch: what comes out for a network does not depend on the others in it.

    Args:
        hidden_channels: c.
        num_layers: rounds of message passing.
        out_channels: of the readout.
        in_channels: values per parameter.
        readout: ``"graph"`` gives ``[b, out_channels]``; ``"edge"`` one output per parameter:
            `WeightFeatures` from features, ``[E, out_channels]`` from graphs.
        readout_channels: width of the invariant readout; default 4 c.
        num_frequencies: sines and cosines of the parameters as further input; 0: none.
        message: ``"mlp"`` as Lim et al. (`GMNConv`), or ``"product"`` (`GMNProductConv`): unit times weight,
            as the network itself computes; cheaper, and better where the values matter (INRs).
        bidirectional: units collect from their readers too.
        dropout: before the last linear map of the invariant readout.
        dense: use the dense form where it applies.

    References:
        Lim et al. 2024, Graph metanetworks for processing diverse neural architectures,
        https://arxiv.org/abs/2312.04501. Departures: see `GMNConv` (means per tensor and site), words in
        place of layer indices and type embeddings, standardised inputs.
    """

    def __init__(
        self,
        hidden_channels: int,
        num_layers: int,
        out_channels: int,
        *,
        in_channels: int = 1,
        readout: Readout = "graph",
        readout_channels: int | None = None,
        num_frequencies: int = 0,
        message: Message = "mlp",
        bidirectional: bool = True,
        dropout: float = 0.0,
        dense: bool = True,
    ) -> None:
        super().__init__()
        if min(hidden_channels, num_layers, out_channels, in_channels) < 1:
            raise ValueError("hidden_channels, num_layers, out_channels and in_channels must be positive")
        if readout not in ("graph", "edge"):
            raise ValueError(f"readout is 'graph' or 'edge', found {readout!r}")
        if message not in ("mlp", "product"):
            raise ValueError(f"message is 'mlp' or 'product', found {message!r}")
        c = hidden_channels
        self.in_channels, self.out_channels, self.readout, self.dense = (
            in_channels,
            out_channels,
            readout,
            dense,
        )
        has_edges = message == "mlp" or readout == "edge"
        self.standardize = ValueStandardizer(in_channels)
        self.words = WordEncoder(c)
        self.places = PlaceEncoder(c)
        self.value = ValueEncoder(in_channels, c, num_frequencies, linear=has_edges)
        self.block_to_value = nn.Linear(c, 2 * c) if has_edges else None
        self.norm_sites = nn.LayerNorm(c)
        self.hidden_channels = c
        self.layers = nn.ModuleList()
        for i in range(num_layers):
            last = i == num_layers - 1
            if message == "product" and not (last and readout == "edge"):
                features = 1 + in_channels * (1 + 2 * num_frequencies)
                self.layers.append(GMNProductConv(c, features, bidirectional=bidirectional))
            else:
                updates = {
                    "update_nodes": readout == "graph" or not last,
                    "update_edges": readout == "edge" or not last,
                }
                self.layers.append(GMNConv(c, bidirectional=bidirectional, **updates))
        wide = readout_channels or 4 * c
        if readout == "graph":
            self.unit = nn.Sequential(nn.LayerNorm(c), nn.Linear(c, wide), nn.SiLU())
            self.site = nn.Sequential(nn.Linear(wide, wide), nn.SiLU())
            self.key = nn.Linear(c, wide)
            self.head = nn.Sequential(
                nn.Linear(wide + c, wide), nn.SiLU(), nn.Dropout(dropout), nn.Linear(wide, out_channels)
            )
        else:
            self.edge = nn.Sequential(nn.LayerNorm(c), nn.Linear(c, c), nn.SiLU(), nn.Linear(c, out_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all linear maps anew, with the variance kept: torch's default lets messages die out."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def fit(self, inputs: WeightFeatures | Data | Iterable[WeightFeatures | Data]) -> GMN:
        """Fit the statistics by which parameters are standardised, per parameter tensor and kind of edge.

        Args:
            inputs: features or graphs of the training networks, or several of them. Tensors met here are
                standardised by their own statistics (found by name), others by those of their kind.

        Returns:
            This network; the statistics are part of its state dict.
        """
        many = [inputs] if isinstance(inputs, (WeightFeatures, Data)) else inputs
        self.standardize.fit(
            (edge.parameter, EDGE_KINDS.index(edge.kind), part.reshape(-1, self.in_channels))
            for one in many
            for schema, values in _networks(one)
            for edge, part in zip(schema.edges, values.split(_edge_sizes(schema), 1), strict=True)
            if edge.parameter is not None
        )
        return self

    def forward(self, inputs: WeightFeatures | Data) -> Tensor | WeightFeatures:
        """Return ``[b, out_channels]``, or with ``readout="edge"`` what the class says.

        Raises:
            ValueError: the values have another number of channels than ``in_channels``.
        """
        given = self._prepare(inputs)
        if given.values.shape[-1] != self.in_channels:
            raise ValueError(
                f"this GMN reads {self.in_channels} values per parameter, found {given.values.shape[-1]}; "
                "set in_channels"
            )
        sites, values, places, graphs = self._encode(given)
        nodes = torch.zeros_like(sites)
        if given.schema is not None:
            nodes = nodes.expand(len(values), *sites.shape)
        edges: Tensor | None = None
        factors: Tensor | None = None
        for layer in self.layers:
            if isinstance(layer, GMNProductConv):
                factors = _with_one(self.value.features(values)) if factors is None else factors
                nodes, graphs = layer(nodes, factors, places, graphs, sites, given.incidence)
            else:
                edges = self._edges(values, places) if edges is None else edges
                nodes, edges, graphs = layer(nodes, edges, graphs, sites, given.incidence)
        if self.readout == "graph":
            to_blocks, to_graphs = given.incidence.to_blocks, given.incidence.to_graphs
            keys = to_blocks(self.key(sites if given.schema is None else sites[None]))
            shown = to_graphs(self.site(to_blocks(self.unit(nodes))) * keys)
            result: Tensor = self.head(torch.cat([shown, graphs], -1))
            return result
        per_edge: Tensor = self.edge(edges)
        if isinstance(inputs, WeightFeatures):
            schema = graph_schema(inputs.spec)
            values = per_edge.reshape(-1, schema.num_edges, self.out_channels)
            found = from_edge_values(schema, values, inputs.spec)
            return inputs.with_tensors(found.tensors, channels=self.out_channels)
        return per_edge.reshape(-1, self.out_channels)

    def _prepare(self, inputs: WeightFeatures | Data) -> _Input:
        dtype = self.places.node.weight.dtype
        if isinstance(inputs, WeightFeatures):
            schema = graph_schema(inputs.spec)
            values = edge_values(schema, inputs).to(dtype)
            tensors = schema.tensors(values.device)
            if self.dense:
                return _Input(tensors, values, DenseIncidence(schema), schema.num_blocks, schema)
            tensors = _repeat(schema, tensors, len(values))
            counts = torch.full((len(values),), schema.num_blocks, device=values.device)
            values = values.flatten(0, 1)
        else:
            values = inputs.edge_attr.to(dtype)
            shared = _one_structure(inputs) if self.dense else None
            if shared is not None:
                values = values.reshape(-1, shared.num_edges, values.shape[-1])
                return _Input(
                    shared.tensors(values.device), values, DenseIncidence(shared), shared.num_blocks, shared
                )
            tensors = {key: value for key, value in inputs.to_dict().items() if isinstance(value, Tensor)}
            counts = torch.as_tensor(inputs.num_blocks, device=values.device).reshape(-1)
        block_graph = torch.arange(len(counts), device=values.device).repeat_interleave(counts)
        incidence = IndexIncidence(
            tensors["edge_index"],
            tensors["block_fan"][tensors["edge_block"]],
            tensors["node_block"],
            block_graph,
            len(counts),
        )
        return _Input(tensors, values, incidence, int(counts.sum()), None)

    def _encode(self, given: _Input) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return sites ``[N, c]``, values ``[…, E, in]``, places ``[E, c]``, graphs ``[b, c]``."""
        t, dtype = given.tensors, self.places.node.weight.dtype
        blocks = self.words(t, given.num_blocks)
        is_edge = torch.ones(given.num_blocks, dtype=torch.bool, device=blocks.device)
        is_edge[t["node_block"]] = False
        mean, scale = self.standardize(t["block_key"], t["block_type"], is_edge)
        node_block, edge_block = t["node_block"], t["edge_block"]
        sites = self.norm_sites(self.places.nodes(t["x"].to(dtype)) + blocks[node_block])
        places = blocks[edge_block] + self.places.edges(t["edge_position"].to(dtype))
        values = (given.values - mean[edge_block]) * scale[edge_block]
        count = len(values)
        if given.schema is None:
            assert isinstance(given.incidence, IndexIncidence)
            count = given.incidence.num_graphs
        return sites, values, places, sites.new_zeros(count, self.hidden_channels)

    def _edges(self, values: Tensor, places: Tensor) -> Tensor:
        assert self.block_to_value is not None
        gain, shift = self.block_to_value(places).chunk(2, -1)
        edges: Tensor = self.value(values, 1 + gain, shift)
        return edges

    def __repr__(self) -> str:
        return (
            f"GMN({self.in_channels} -> {self.out_channels} channels per {self.readout} | "
            f"{len(self.layers)} layers x {self.hidden_channels} channels)"
        )


def _with_one(values: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(values[..., :1]), values], -1)


def _edge_sizes(schema: GraphSchema) -> list[int]:
    return [stop - start for start, stop in zip(schema.edge_starts, schema.edge_starts[1:], strict=False)]


def _repeat(schema: GraphSchema, tensors: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return the structure of ``count`` disjoint copies of a graph."""
    shifts = {
        "node_block": schema.num_blocks,
        "edge_block": schema.num_blocks,
        "word_block": schema.num_blocks,
        "edge_index": schema.num_nodes,
    }
    result = {}
    for name, tensor in tensors.items():
        copies = tensor[None].expand(count, *tensor.shape)
        if name in shifts:
            start = torch.arange(count, device=tensor.device) * shifts[name]
            copies = copies + start.reshape(-1, *(1 for _ in tensor.shape))
        result[name] = copies.transpose(0, 1).flatten(1) if name == "edge_index" else copies.flatten(0, 1)
    return result


def _one_structure(graph: Data) -> GraphSchema | None:
    """Return the structure that all graphs of a batch share, if they do and are still as it says."""
    found = getattr(graph, "schema", None)
    schemas = found if isinstance(found, list) else [found]
    first = schemas[0]
    if not isinstance(first, GraphSchema) or any(schema != first for schema in schemas[1:]):
        return None
    count = len(schemas)
    if graph.edge_index.shape[1] != count * first.num_edges or graph.num_nodes != count * first.num_nodes:
        return None
    expected = _repeat(first, first.tensors(graph.edge_index.device), count)
    same = all(
        torch.equal(graph[name], expected[name]) for name in ("edge_index", "node_block", "edge_block")
    )
    return first if same else None


def _networks(inputs: WeightFeatures | Data) -> Iterable[tuple[GraphSchema, Tensor]]:
    """Yield structure and values ``[b, E, channels]`` of the networks in features or a batch of graphs."""
    if isinstance(inputs, WeightFeatures):
        schema = graph_schema(inputs.spec)
        yield schema, edge_values(schema, inputs)
        return
    schemas = inputs.schema if isinstance(inputs.schema, list) else [inputs.schema]
    values = inputs.edge_attr.split([schema.num_edges for schema in schemas])
    for schema, value in zip(schemas, values, strict=True):
        yield schema, value[None]
