"""Parameter graphs: a network as a `torch_geometric` graph and back.

Nodes are units (inputs, channels, heads, outputs, and one node for every bias), edges are parameters: one
edge per scalar. A kernel is parallel edges with its positions as coordinates, not one edge with a
kernel-shaped feature, so that networks of any kernel sizes share one encoder. Parameter-free connections
(residuals, heads) are edges of value one. What the function depends on beside the parameters stands in words
(`metanet.graphs.words`) on the blocks of nodes and edges.

References:
    Lim et al. 2024, Graph metanetworks for processing diverse neural architectures,
    https://arxiv.org/abs/2312.04501. Beside its choices this graph keeps q, k, v and heads apart, and carries
    running statistics, hyperparameters, activations and the order of layers.
    Kofinas et al. 2024, Graph neural networks for learning equivariant representations of neural networks,
    https://arxiv.org/abs/2403.12143.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from metanet.features import WeightFeatures, feature_layout, feature_spec
from metanet.graphs.operations import build_schema
from metanet.graphs.schema import GraphSchema
from metanet.skeleton import Operation
from metanet.spec import WeightSpec

BLOCK_INDICES = ("node_block", "edge_block", "word_block")


class ParameterGraph(Data):  # type: ignore[misc]
    """The graph of one network: a `Data` whose index of blocks is shifted when graphs are batched.

    Beside the tensors of `GraphSchema.tensors` it has ``edge_attr`` ``[E, channels]``, the parameters (one
    where an edge has none), ``num_blocks``, and its ``schema``.
    """

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Return by how much an index is shifted per graph."""
        return self.num_blocks if key in BLOCK_INDICES else super().__inc__(key, value, *args, **kwargs)

    def __cat_dim__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the dimension along which graphs are put together."""
        if key == "edge_index":
            return 1
        return 0 if isinstance(value, Tensor) else super().__cat_dim__(key, value, *args, **kwargs)


@lru_cache(maxsize=256)
def _schema(
    spec: WeightSpec, operations: tuple[Operation, ...], ties: tuple[tuple[str, ...], ...]
) -> GraphSchema:
    assert spec.operations == operations  # they tell apart specs that compare equal
    return build_schema(spec)


def graph_schema(spec: WeightSpec) -> GraphSchema:
    """Return the structure of a spec's parameter graph, built once.

    Raises:
        ValueError: the spec has no operations.
    """
    return _schema(spec, spec.operations, spec.ties)


def to_graph(weights: WeightFeatures) -> Data:
    """Return the parameter graph of a network, or the batch of graphs of several.

    Args:
        weights: features with any number of channels, of b networks.

    Returns:
        A `ParameterGraph` if b = 1, else a `torch_geometric.data.Batch` of them; the order of edges is that
        of `edge_values`. Structure is shared, not copied, by the graphs of one spec until they are batched.

    Raises:
        ValueError: hidden features (their fixed axes are folded away), or a spec without operations.
    """
    schema = graph_schema(weights.spec)
    values = edge_values(schema, weights)
    graphs = [_graph(schema, value) for value in values]
    return graphs[0] if len(graphs) == 1 else Batch.from_data_list(graphs)


def _graph(schema: GraphSchema, value: Tensor) -> ParameterGraph:
    tensors = schema.tensors(value.device)
    return ParameterGraph(
        edge_attr=value, num_nodes=schema.num_nodes, num_blocks=schema.num_blocks, schema=schema, **tensors
    )


def from_graph(graph: Data, spec: WeightSpec) -> WeightFeatures:
    """Return the weights of a graph, or of a batch of graphs of one spec: the exact inverse of `to_graph`.

    Args:
        graph: as `to_graph` made it; its ``edge_attr`` may have been replaced, its edges not.
        spec: of the network.

    Raises:
        ValueError: the graph has another number of edges than the spec's.
    """
    schema = graph_schema(spec)
    values = graph.edge_attr
    count = values.shape[0] // schema.num_edges if schema.num_edges else 0
    if not count or values.shape[0] != count * schema.num_edges:
        raise ValueError(
            f"the graph has {values.shape[0]} edges; one of this spec ({spec!r}) has {schema.num_edges}. "
            "Pass the spec of the network that the graph was made of"
        )
    return from_edge_values(schema, values.reshape(count, schema.num_edges, -1), spec)


def edge_values(schema: GraphSchema, weights: WeightFeatures) -> Tensor:
    """Return the values ``[b, E, channels]`` of all edges, one where an edge has no parameter."""
    if weights.folded:
        raise ValueError("a graph is made of parameters; hidden features have their fixed axes folded away")
    first = next(iter(weights.tensors.values()))
    b, channels = len(weights), weights.channels
    parts = []
    for edge, start, stop in zip(schema.edges, schema.edge_starts, schema.edge_starts[1:], strict=False):
        if edge.parameter is None:
            parts.append(first.new_ones(()).expand(b, stop - start, channels))
        else:
            parts.append(weights.tensors[edge.parameter].reshape(b, stop - start, channels))
    return torch.cat(parts, 1)


def from_edge_values(schema: GraphSchema, values: Tensor, spec: WeightSpec) -> WeightFeatures:
    """Return features of the edges' values ``[b, E, channels]``; edges of one parameter are averaged."""
    plain = feature_spec(spec)
    b, _, channels = values.shape
    found: dict[str, list[Tensor]] = {}
    for edge, start, stop in zip(schema.edges, schema.edge_starts, schema.edge_starts[1:], strict=False):
        if edge.parameter is not None:
            found.setdefault(edge.parameter, []).append(values[:, start:stop])
    tensors = {}
    for block in feature_layout(plain):
        parts = found[block.key]
        same = all(torch.equal(part, parts[0]) for part in parts[1:])
        value = parts[0] if same else torch.stack(parts).mean(0)
        shape = (b, *(plain.sizes[group] for group in block.groups), block.fixed * channels)
        tensors[block.key] = value.reshape(shape)
    return WeightFeatures(plain, tensors, channels=channels, batched=b > 1)
