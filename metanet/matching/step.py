"""One exact step of coordinate descent: the best element of the groups of one move, all others staying."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from metanet.group import GroupElement
from metanet.matching.assignment import assign, assigned
from metanet.matching.gains import Gains, with_flips, with_sign
from metanet.matching.moves import Move, Node
from metanet.spec import FreedomKind, WeightSpec

FLIPS = ("sign", "even", "phase")
"""Freedoms that are isometries."""


class _Solved:
    """Best arrangements of a node for every pairing of the units above it."""

    def __init__(self, node: Node, values: Tensor, permutations: Tensor, below: list[_Solved]) -> None:
        self.node = node
        self.values = values
        self.permutations = permutations
        self.below = below

    def chosen(self, permutation: Tensor) -> _Solved:
        """Return what is left once the parent's units are paired by ``[copies, n]``."""
        copies, size = permutation.shape
        rows, units = torch.arange(copies)[:, None], torch.arange(size)

        def take(table: Tensor) -> Tensor:
            return table.reshape(copies, size, size, *table.shape[3:])[rows, units, permutation].flatten(0, 1)

        below = [inner.chosen(permutation) for inner in self.below]
        return _Solved(self.node, take(self.values), take(self.permutations), below)


def best_element(
    spec: WeightSpec,
    move: Move,
    gains: Mapping[tuple[str, ...], Gains],
    *,
    flips: bool = True,
    inertia: float = 0.0,
) -> GroupElement:
    """Return the element of a move's groups that gains most, one linear assignment per group and pairing.

    Nested groups are solved from the inside out: what a pairing of two parent units is worth is the value of
    the best assignment inside it.

    Args:
        spec: the spec.
        move: the groups.
        gains: by chain of groups (`metanet.matching.gains.gains_of`).
        flips: use signs, even flips and phases too.
        inertia: added to the gain of staying, for groups that a block carries twice.
    """
    freedoms: dict[tuple[str, FreedomKind], Tensor] = {}
    signs: dict[int, Tensor] = {}
    solved = _solve(spec, move.root, (), gains, flips=flips, inertia=inertia, freedoms=freedoms, signs=signs)
    permutations: dict[str, Tensor] = {}
    _collect(solved, permutations)
    kept = {}
    for (name, kind), choice in freedoms.items():
        permutation = permutations[name]
        values = choice.gather(-1, permutation.reshape(*choice.shape[:-1], 1)).squeeze(-1)
        kept[name, kind] = values.reshape(permutation.shape)
    actions: dict[int, Tensor] = {}
    for number, choice in signs.items():
        permutation = permutations[spec.actions[number].groups[0]].reshape(1, -1)
        values = choice.gather(-1, permutation[..., None]).reshape(-1).double()
        if bool((values < 0).any()):
            actions[number] = values
    return GroupElement(
        spec,
        {
            name: permutation if spec.group[name].parent else permutation.reshape(-1)
            for name, permutation in permutations.items()
        },
        {
            (name, kind): values if spec.group[name].parent else values.reshape(-1)
            for (name, kind), values in kept.items()
        },
        actions,
    )


def _solve(
    spec: WeightSpec,
    node: Node,
    above: tuple[str, ...],
    gains: Mapping[tuple[str, ...], Gains],
    *,
    flips: bool,
    inertia: float,
    freedoms: dict[tuple[str, FreedomKind], Tensor],
    signs: dict[int, Tensor],
) -> _Solved:
    chain = (*above, node.group)
    below = [
        _solve(spec, child, chain, gains, flips=flips, inertia=inertia, freedoms=freedoms, signs=signs)
        for child in node.children
    ]
    own = gains.get(chain)
    total: Tensor | None = None
    flippable = any(freedom.kind in FLIPS for freedom in spec.group[node.group].freedoms)
    if own is not None and flips and flippable and not below and not above:
        choice = with_flips(spec, node.group, own)
        total = choice.gains
        for kind, values in choice.values.items():
            freedoms[node.group, kind] = values  # type: ignore[index]
    elif own is not None and flips and own.sign is not None and not below and not above:
        choice = with_sign(own)
        total = choice.gains
        signs[own.sign] = choice.values["sign"]
    elif own is not None:
        total = own.plain
    for inner in below:
        total = inner.values if total is None else total + inner.values
    if total is None:
        size = spec.sizes[node.group]
        outer = next(iter(gains.values())).plain if gains else None
        copies = outer.shape[0] if outer is not None else 1
        pairs = [spec.sizes[name] for name in above for _ in (0, 1)]
        total = torch.zeros(copies, *pairs, size, size)
    if inertia:
        total = total + inertia * torch.eye(total.shape[-1], dtype=total.dtype)
    table = total.detach().numpy().reshape(-1, *total.shape[-2:])
    columns = np.empty(table.shape[:2], dtype=np.int64)
    worth = np.empty(len(table), dtype=np.float64)
    for i, matrix in enumerate(table):
        columns[i] = assign(matrix)
        worth[i] = assigned(matrix, columns[i])
    shape = total.shape[:-2]
    return _Solved(
        node,
        torch.from_numpy(worth).to(total.dtype).reshape(shape),
        torch.from_numpy(columns).reshape(*shape, -1),
        below,
    )


def _collect(solved: _Solved, into: dict[str, Tensor]) -> None:
    """Keep a node's permutations ``[copies, n]``, and of those below it the ones that belong to its pairs."""
    into[solved.node.group] = solved.permutations
    for inner in solved.below:
        _collect(inner.chosen(solved.permutations), into)
