"""GraphSchema: the structure of a parameter graph, shared by every network of one architecture.

Nodes and edges come in *blocks*. A node block is the units of one axis at one place of the computation. An
edge block is all edges of one part of a parameter (or of one parameter-free connection); its dimensions
index the source units, the target units, both (a diagonal: norms, residuals, depthwise kernels) or neither
(parallel edges: kernel positions). The index form (PyG) and the dense form of a metanetwork both follow from
these few lines of description.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate
from math import prod
from typing import Literal, get_args

import torch
from torch import Tensor

from metanet.axis import Atom, Fixed
from metanet.graphs.words import Word, word_tensors

NodeKind = Literal["input", "constant", "unit", "bias", "norm", "join", "hub", "output", "unused"]
EdgeKind = Literal[
    "weight", "bias", "gain", "running_mean", "running_var", "recurrent", "embedding", "parameter",
    "residual", "structure", "unused",
]  # fmt: skip
NODE_KINDS: tuple[NodeKind, ...] = get_args(NodeKind)
EDGE_KINDS: tuple[EdgeKind, ...] = get_args(EdgeKind)
COORDINATES = 3
"""Number of coordinates of an edge among its parallel edges (the last three fixed dimensions)."""


@dataclass(frozen=True, slots=True)
class NodeBlock:
    """The units of one axis at one place of the computation.

    Args:
        kind: what they are.
        atoms: one per dimension of the block; no atoms: a single node.
        shape: size of every atom.
        order: position of their operation among those that have nodes.
        words: the operation.
    """

    kind: NodeKind
    atoms: tuple[Atom, ...]
    shape: tuple[int, ...]
    order: int
    words: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class EdgeBlock:
    """The edges of one part of a parameter, or of one parameter-free connection.

    Args:
        kind: what they are.
        atoms: one per dimension.
        shape: size of every dimension; a parameter's are its groups, then its fixed axes.
        source: position of the source node block.
        target: position of the target node block.
        source_dims: for every dimension of the source block, the edge dimension that indexes it.
        target_dims: the same for the target block.
        parameter: the block of the weights that holds the edges' values; None: they all are one.
        words: the operation, the parameter's role in it, and the steps between the source and it.
    """

    kind: EdgeKind
    atoms: tuple[Atom, ...]
    shape: tuple[int, ...]
    source: int
    target: int
    source_dims: tuple[int, ...]
    target_dims: tuple[int, ...]
    parameter: str | None
    words: tuple[Word, ...]

    def fan(self, dims: tuple[int, ...]) -> int:
        """Return how many of the edges meet at one unit, given the dimensions that index the units."""
        return prod(self.shape) // max(1, prod(self.shape[d] for d in dims))


def pad_shape(shape: Sequence[int], dims: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return how units are laid along the edges: the order of their dimensions, and the padded shape."""
    order = sorted(range(len(dims)), key=dims.__getitem__)
    return order, [size if dim in dims else 1 for dim, size in enumerate(shape)]


@dataclass(frozen=True, eq=False)
class GraphSchema:
    """Structure of a parameter graph.

    Args:
        nodes: node blocks; the graph's nodes in this order, row-major within a block.
        edges: edge blocks; the graph's edges in this order, row-major within a block.
    """

    nodes: tuple[NodeBlock, ...]
    edges: tuple[EdgeBlock, ...]
    _tensors: dict[torch.device, dict[str, Tensor]] = field(default_factory=dict, repr=False)

    @cached_property
    def node_starts(self) -> tuple[int, ...]:
        """First node of every block, and the number of nodes."""
        return (0, *accumulate(prod(block.shape) for block in self.nodes))

    @cached_property
    def edge_starts(self) -> tuple[int, ...]:
        """First edge of every block, and the number of edges."""
        return (0, *accumulate(prod(block.shape) for block in self.edges))

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return self.node_starts[-1]

    @property
    def num_edges(self) -> int:
        """Number of edges."""
        return self.edge_starts[-1]

    @property
    def num_blocks(self) -> int:
        """Number of blocks, those of nodes and of edges together."""
        return len(self.nodes) + len(self.edges)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the structure."""
        return blake2b(repr((self.nodes, self.edges)).encode(), digest_size=16).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GraphSchema) and (self is other or self.fingerprint == other.fingerprint)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __getstate__(self) -> dict[str, object]:
        return {"nodes": self.nodes, "edges": self.edges, "_tensors": {}}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        return (
            f"GraphSchema({self.num_nodes} nodes in {len(self.nodes)} blocks, "
            f"{self.num_edges} edges in {len(self.edges)} blocks)"
        )

    def tensors(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Return the structure as tensors, made once per device.

        Returns:
            ``x`` ``[N, 4]``: order and relative order of the operation, index among fixed units (-1: none)
            and their number; ``node_type``, ``node_block`` ``[N]``; ``edge_index`` ``[2, E]``;
            ``edge_type``, ``edge_block`` ``[E]``; ``edge_position`` ``[E, 3]`` (-1: no such coordinate);
            ``block_type``, ``block_key`` ``[blocks]`` (node blocks first), ``block_fan`` ``[blocks, 2]``:
            number of edges of the block that meet at a target and at a source unit; the ``word_…`` tensors
            of `word_tensors`.
        """
        device = torch.device(device)
        if device not in self._tensors:
            cpu = torch.device("cpu")
            if cpu not in self._tensors:
                self._tensors[cpu] = self._build()
            self._tensors[device] = {name: t.to(device) for name, t in self._tensors[cpu].items()}
        return self._tensors[device]

    def _build(self) -> dict[str, Tensor]:
        n, offset = len(self.nodes), len(self.nodes)
        node_sizes = torch.tensor([prod(block.shape) for block in self.nodes], dtype=torch.long)
        edge_sizes = torch.tensor([prod(block.shape) for block in self.edges], dtype=torch.long)
        node_kinds = [NODE_KINDS.index(block.kind) for block in self.nodes]
        edge_kinds = [EDGE_KINDS.index(block.kind) for block in self.edges]
        labels = [None] * n + [block.parameter for block in self.edges]
        fans = [(1, 1)] * n + [(b.fan(b.target_dims), b.fan(b.source_dims)) for b in self.edges]
        node_block = torch.arange(n).repeat_interleave(node_sizes)
        edge_block = torch.arange(len(self.edges)).repeat_interleave(edge_sizes)
        index = [self._edge_index(block) for block in self.edges]
        top = max([1, *(block.order for block in self.nodes)])
        return {
            "x": torch.cat([_node_numbers(block, top) for block in self.nodes]),
            "node_type": torch.tensor(node_kinds)[node_block],
            "node_block": node_block,
            "edge_index": torch.cat(index, 1) if index else torch.zeros(2, 0, dtype=torch.long),
            "edge_type": torch.tensor(edge_kinds, dtype=torch.long)[edge_block],
            "edge_block": edge_block + offset,
            "edge_position": torch.cat([torch.zeros(0, COORDINATES), *map(_edge_position, self.edges)]),
            "block_type": torch.tensor(node_kinds + edge_kinds),
            "block_key": torch.tensor([block_key(label) for label in labels]),
            "block_fan": torch.tensor(fans),
            **word_tensors([block.words for block in self.nodes] + [block.words for block in self.edges]),
        }

    def _edge_index(self, block: EdgeBlock) -> Tensor:
        ends = []
        for node, dims in ((block.source, block.source_dims), (block.target, block.target_dims)):
            shape = self.nodes[node].shape
            order, padded = pad_shape(block.shape, dims)
            units = torch.arange(prod(shape)).reshape(shape).permute(order).reshape(padded)
            ends.append((units + self.node_starts[node]).expand(block.shape).reshape(-1))
        return torch.stack(ends)


def block_key(label: str | None) -> int:
    """Return a stable 63-bit number for a parameter's block, 0 for none."""
    if label is None:
        return 0
    return int.from_bytes(blake2b(label.encode(), digest_size=8).digest(), "big") >> 1


def _node_numbers(block: NodeBlock, top: int) -> Tensor:
    shape = block.shape
    fixed = [dim for dim, atom in enumerate(block.atoms) if isinstance(atom, Fixed)]
    size = prod(shape[dim] for dim in fixed)
    index = torch.full((1,) * len(shape), -1)
    if fixed:
        index = torch.arange(size).reshape([shape[dim] if dim in fixed else 1 for dim in range(len(shape))])
    index = index.expand(shape).reshape(-1).float()
    same = torch.ones_like(index)
    return torch.stack(
        [same * block.order, same * block.order / top, index, same * (size if fixed else 0)], 1
    )


def _edge_position(block: EdgeBlock) -> Tensor:
    """Return ``[edges, COORDINATES]``: index along the fixed dimensions that no unit carries.

    With more dimensions than coordinates, the leading ones share the first coordinate, row-major.
    """
    ends = {*block.source_dims, *block.target_dims}
    free = [d for d, atom in enumerate(block.atoms) if d not in ends and isinstance(atom, Fixed)]
    keep = COORDINATES - 1
    shared, single = free[: max(0, len(free) - keep)], free[max(0, len(free) - keep) :]
    result = torch.full((*block.shape, COORDINATES), -1.0)
    for place, dims in enumerate([shared, *([d] for d in single)], COORDINATES - 1 - len(single)):
        if dims:
            index = torch.arange(prod(block.shape[d] for d in dims)).float()
            view = [size if d in dims else 1 for d, size in enumerate(block.shape)]
            result[..., place] = index.reshape(view)
    return result.reshape(-1, COORDINATES)
