r"""Product messages: what a unit sends is multiplied by the weight of the edge, as the network itself does.

On the edge from j to i of the edge block t, with (standardised, encoded) value v of k numbers,

.. math:: m_i = \sum_t \sum_{j \in t} \Big(\frac{g_{t0}}{n_t}
    + \frac{1}{\sqrt{(k - 1)\,n_t}} \sum_{1 \le l < k} v_{ijl}\, g_{tl}\Big) \odot x_j

where n_t edges of t meet at i, feature 0 is one (a mean of the neighbours) and the gains g_t belong to the
block and, for parallel edges, to the place (kernel position). No features are kept on edges: for a dense
block the sum over j is one matrix product.

References:
    Kalogeropoulos et al. 2024, Scale equivariant graph metanetworks, https://arxiv.org/abs/2406.10685,
    eq. 11 (the product of both; here without its scale equivariance). Kofinas et al. 2024, Graph
    neural networks for learning equivariant representations of neural networks,
    https://arxiv.org/abs/2403.12143, eq. 8 (messages modulated by the edge).
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch_geometric.utils import scatter

from metanet.graphs.schema import EdgeBlock, GraphSchema

_LETTERS = "abdefghijlmnopqrstuvwxyz"  # dimensions of an edge block; B batch, k values, c channels


def index_product(
    values: Tensor, units: Tensor, gains: Tensor, ends: tuple[Tensor, Tensor], fan: Tensor, num_nodes: int
) -> Tensor:
    """Collect products over index tensors.

    Args:
        values: ``[E, k]`` features of the edges' values, the first one being one.
        units: ``[N, c]`` what units send.
        gains: ``[E, k, c]``.
        ends: ``[E]`` unit that sends and unit that collects, of every edge.
        fan: ``[E]`` number of edges of the edge's block that meet at the collecting unit.
        num_nodes: N.

    Returns:
        ``[N, c]``.
    """
    sender, collector = ends
    scaled = values * _scale(fan.to(values), values.shape[-1])
    message = torch.einsum("ek,ekc->ec", scaled, gains) * units[sender]
    result: Tensor = scatter(message, collector, dim_size=num_nodes, reduce="sum")
    return result


def _scale(fan: Tensor, features: int) -> Tensor:
    """Return ``[…, k]``: a mean for the constant feature, a sum of unit variance for the others."""
    varied = (fan * max(1, features - 1)).rsqrt()
    return torch.stack([fan.reciprocal(), *[varied] * (features - 1)], -1)


def dense_product(
    values: Tensor, units: Tensor, gains: Tensor, schema: GraphSchema, *, outgoing: bool
) -> Tensor:
    """Collect products over the blocks of one structure; the same numbers as `index_product`.

    Args:
        values: ``[b, E, k]``.
        units: ``[b, N, c]``.
        gains: ``[E, k, c]``, alike on edges of a block that differ in their units alone.
        schema: the structure.
        outgoing: units collect from the edges that leave them instead of those that arrive.

    Returns:
        ``[b, N, c]``.
    """
    collected: dict[int, Tensor] = {}
    for block, start, stop in zip(schema.edges, schema.edge_starts, schema.edge_starts[1:], strict=False):
        sender, collector = (block.target, block.source) if outgoing else (block.source, block.target)
        lo, hi = schema.node_starts[sender], schema.node_starts[sender + 1]
        message = _block_product(
            values[:, start:stop],
            units[:, lo:hi],
            gains[start:stop],
            block,
            schema.nodes[sender].shape,
            outgoing=outgoing,
        )
        collected[collector] = collected[collector] + message if collector in collected else message
    empty = units.new_zeros(())
    parts = [
        collected[i] if i in collected else empty.expand(units.shape[0], prod(node.shape), units.shape[-1])
        for i, node in enumerate(schema.nodes)
    ]
    return torch.cat(parts, 1)


def _block_product(
    values: Tensor, units: Tensor, gains: Tensor, block: EdgeBlock, shape: tuple[int, ...], *, outgoing: bool
) -> Tensor:
    b, _, k = values.shape
    c = units.shape[-1]
    from_dims, to_dims = (
        (block.target_dims, block.source_dims) if outgoing else (block.source_dims, block.target_dims)
    )
    letters = _LETTERS[: len(block.shape)]
    senders = "".join(letters[dim] for dim in from_dims)
    collectors = "".join(letters[dim] for dim in to_dims)
    free = [dim for dim in range(len(block.shape)) if dim not in from_dims and dim not in to_dims]
    places = "".join(letters[dim] for dim in free)
    gain = gains.reshape(*block.shape, k, c)
    for dim in range(len(block.shape)):
        if dim not in free:
            gain = gain.narrow(dim, 0, 1)
    scale = _scale(torch.tensor(float(block.fan(to_dims)), dtype=gain.dtype, device=gain.device), k)
    gain = gain.reshape(*(block.shape[dim] for dim in free), k, c) * scale[:, None]
    sent = torch.einsum(f"B{senders}c,{places}kc->B{senders}{places}kc", units.reshape(b, *shape, c), gain)
    message = torch.einsum(
        f"B{letters}k,B{senders}{places}kc->B{collectors}c", values.reshape(b, *block.shape, k), sent
    )
    return message.flatten(1, -2) if to_dims else message[:, None]
