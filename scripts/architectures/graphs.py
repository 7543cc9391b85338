"""Graph networks of PyTorch Geometric layers, called with node features and edge indices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from architectures.family import Example, Family, example, families, normal

EDGES = torch.tensor([[0, 1, 1, 2, 3, 3, 4, 5, 2, 0], [1, 0, 2, 1, 1, 4, 3, 2, 5, 4]])
NODES = normal(6, 4)
FEATURES = normal(10, 3)


class Graph(nn.Module):
    """Two graph convolutions with an activation between, mean over nodes, head."""

    def __init__(self, first: nn.Module, second: nn.Module, width: int) -> None:
        super().__init__()
        self.first, self.second, self.head = first, second, nn.Linear(width, 3)

    def forward(self, x: Tensor, edges: Tensor, *features: Tensor) -> Tensor:
        x = torch.relu(self.first(x, edges, *features))
        return self.head(self.second(x, edges, *features).mean(0))


def _layers(
    make: Callable[[int, int], nn.Module], *, features: bool = False, width: int = 6, inner: int = 8
) -> Callable[[], Example]:
    extra = (FEATURES,) if features else ()
    return example(lambda: Graph(make(4, inner), make(inner, width), width), NODES, EDGES, *extra)


def _geometric(name: str, **options: object) -> Callable[[int, int], nn.Module]:
    def make(inputs: int, outputs: int) -> nn.Module:
        import torch_geometric.nn as geometric

        layer: nn.Module = getattr(geometric, name)(inputs, outputs, **options)
        return layer

    return make


def _with_network(name: str, factor: int = 1, **options: object) -> Callable[[int, int], nn.Module]:
    def make(inputs: int, outputs: int) -> nn.Module:
        import torch_geometric.nn as geometric

        network = nn.Sequential(nn.Linear(factor * inputs, 7), nn.ReLU(), nn.Linear(7, outputs))
        layer: nn.Module = getattr(geometric, name)(network, **options)
        return layer

    return make


def _edge_network(inputs: int, outputs: int) -> nn.Module:
    import torch_geometric.nn as geometric

    layer: nn.Module = geometric.NNConv(
        inputs, outputs, nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, inputs * outputs))
    )
    return layer


def _gated(inputs: int, outputs: int) -> nn.Module:
    import torch_geometric.nn as geometric

    layer: nn.Module = geometric.GatedGraphConv(outputs, 2)
    return layer


FAMILIES: list[Family] = families(
    "graph networks",
    {
        "GCN": _layers(_geometric("GCNConv")),
        "GAT": _layers(lambda i, o: _geometric("GATConv", heads=2, concat=True)(i, o // 2)),
        "GATv2": _layers(lambda i, o: _geometric("GATv2Conv", heads=2, concat=True)(i, o // 2)),
        "GraphSAGE": _layers(_geometric("SAGEConv")),
        "GIN": _layers(_with_network("GINConv")),
        "GraphConv": _layers(_geometric("GraphConv")),
        "Chebyshev": _layers(_geometric("ChebConv", K=3)),
        "SGC": _layers(_geometric("SGConv", K=2)),
        "TAGCN": _layers(_geometric("TAGConv", K=2)),
        "ARMA": _layers(_geometric("ARMAConv", num_stacks=2)),
        "Graph transformer": _layers(lambda i, o: _geometric("TransformerConv", heads=2)(i, o // 2)),
        "EdgeConv": _layers(_with_network("EdgeConv", 2)),
        "NNConv (MPNN)": _layers(_edge_network, features=True),
        "GINE": _layers(_with_network("GINEConv", edge_dim=3), features=True),
        "Gated graph": _layers(_gated, width=8),
        "LEConv": _layers(_geometric("LEConv")),
        "ResGated": _layers(_geometric("ResGatedGraphConv")),
        "ClusterGCN": _layers(_geometric("ClusterGCNConv")),
        "MFConv": _layers(_geometric("MFConv", max_degree=4)),
        "GENConv": _layers(_geometric("GENConv")),
    },
)
