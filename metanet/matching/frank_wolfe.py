"""Frank–Wolfe matching: all groups of all networks at once, over doubly stochastic matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from metanet.axis import Perm
from metanet.blocks import Block, blocks_of, split
from metanet.group import GroupElement
from metanet.matching.assignment import assign
from metanet.matching.pair import STATISTICS
from metanet.spec import WeightSpec

State = Mapping[str, Tensor]
Soft = dict[str, Tensor]
"""Group -> doubly stochastic ``[n, n]``; unit i of the universe is Σ_j P_ij of unit j."""
LEAST = 1e-7
"""Relative gain of a step below which the search ends."""


def frank_wolfe(
    spec: WeightSpec, states: Sequence[State], *, max_steps: int = 50
) -> tuple[GroupElement, ...]:
    r"""Take networks to a common order of units, all groups jointly.

        maximise over P:  F = Σ_{p<q} Σ_blocks ⟨P_p·θ_p, P_q·θ_q⟩,   every P_p^g doubly stochastic.

    A step goes from P towards the vertices S that its gradient selects, one linear assignment per network and
    group; F along P + γ(S − P) is a polynomial in γ, which is maximised exactly. At the end every P goes to
    the nearest permutation. It begins at the barycentre mixed with the identity, so that no network is
    special. Nested groups stay as they are.

    Args:
        spec: of all networks.
        states: their state dicts.
        max_steps: steps at most.

    Returns:
        One element per network.

    References:
        Crisostomi et al. 2024, C²M³, https://arxiv.org/abs/2405.17897. Frank and Wolfe 1956.
    """
    inside = {group.parent for group in spec.groups if group.parent is not None}
    free = [group.name for group in spec.groups if group.parent is None and group.name not in inside]
    blocks, values = _blocks(spec, states, set(free))
    sizes = spec.sizes
    soft: list[Soft] = [
        {name: 0.5 * torch.eye(sizes[name]) + 0.5 / sizes[name] for name in free} for _ in states
    ]
    moved = [
        [_pieces(block, x, [p])[0] for x, p in zip(tensors, soft, strict=True)]
        for block, tensors in zip(blocks, values, strict=True)
    ]
    now = float(_objective(blocks, [[[x] for x in found] for found in moved])(0.0))
    for _ in range(max_steps):
        vertices = [_vertices(gradient) for gradient in _gradients(blocks, values, moved, soft)]
        pieces = [
            [_pieces(block, x, [p, s]) for x, p, s in zip(tensors, soft, vertices, strict=True)]
            for block, tensors in zip(blocks, values, strict=True)
        ]
        objective = _objective(blocks, pieces)
        gamma = _best(objective)
        after = float(objective(gamma))
        if after - now <= LEAST * abs(now):
            break
        soft, now = _between(soft, vertices, gamma), after
        moved = [[_at(found, gamma) for found in tensors] for tensors in pieces]
    return tuple(
        GroupElement(
            spec, {name: torch.from_numpy(assign(matrix.numpy())) for name, matrix in found.items()}, {}
        )
        for found in soft
    )


def _blocks(
    spec: WeightSpec, states: Sequence[State], free: set[str]
) -> tuple[list[Block], list[list[Tensor]]]:
    """Return the blocks that carry a free group, and for each its values in every network."""
    blocks, values = [], []
    by_entry: dict[str, list[Block]] = {}
    for block in blocks_of(spec):
        by_entry.setdefault(block.entry, []).append(block)
    for name, parts in by_entry.items():
        if name.endswith(STATISTICS) or not states[0][name].is_floating_point():
            continue
        tensors = [split(state[name].detach().float(), spec.axes[name], spec.sizes) for state in states]
        for i, block in enumerate(parts):
            if free.intersection(block.groups):
                blocks.append(block)
                values.append([tensor[i] for tensor in tensors])
    return blocks, values


def _times(matrix: Tensor, value: Tensor, dim: int) -> Tensor:
    """Return a block with one dimension multiplied by a matrix, or permuted by the columns of its ones."""
    if matrix.dtype == torch.long:
        return value.index_select(dim, matrix)
    product: Tensor = torch.tensordot(matrix, value, ([1], [dim]))
    return product.movedim(0, dim)


def _pieces(block: Block, value: Tensor, ends: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    """Return what a block is along a line of matrices, as the coefficients of a polynomial.

    With k dimensions that are multiplied by P + γ(S − P), it is Σ_j (1−γ)^(k−j) γ^j · pieces[j].

    Args:
        block: the block.
        value: its values.
        ends: P and S by group, or P alone: its one piece is then the block at P.
    """
    pieces = [value]
    for dim, atom in enumerate(block.atoms):
        if not isinstance(atom, Perm) or atom.group not in ends[0]:
            continue
        grown = [_times(ends[0][atom.group], piece, dim) for piece in pieces]
        if len(ends) > 1:
            last = [_times(ends[1][atom.group], piece, dim) for piece in pieces]
            grown = [grown[0], *(x + y for x, y in zip(grown[1:], last, strict=False)), last[-1]]
        pieces = grown
    return pieces


def _at(pieces: Sequence[Tensor], gamma: float) -> Tensor:
    """Return the block at a point of the line."""
    degree = len(pieces) - 1
    value = torch.zeros_like(pieces[0])
    for j, piece in enumerate(pieces):
        value += piece * ((1 - gamma) ** (degree - j) * gamma**j)
    return value


def _objective(blocks: Sequence[Block], pieces: Sequence[Sequence[Sequence[Tensor]]]) -> Polynomial:
    """Return F along the line, a polynomial in γ, from the pieces of every block and network."""
    total = Polynomial([0.0])
    ahead, back = Polynomial([0.0, 1.0]), Polynomial([1.0, -1.0])
    for found in pieces:
        count = len(found[0])
        products = np.zeros((count, count))
        summed = [torch.stack([tensors[j] for tensors in found]).sum(0) for j in range(count)]
        for sign, tensors in ((0.5, summed), *((-0.5, tensors) for tensors in found)):
            flat = torch.stack([piece.flatten() for piece in tensors]).double()
            products += sign * (flat @ flat.T).numpy()
        for i in range(count):
            for j in range(count):
                total += products[i, j] * back ** (2 * count - 2 - i - j) * ahead ** (i + j)
    return total


def _gradients(
    blocks: Sequence[Block],
    values: Sequence[Sequence[Tensor]],
    moved: Sequence[Sequence[Tensor]],
    soft: Sequence[Soft],
) -> list[Soft]:
    gradients: list[Soft] = [{name: torch.zeros_like(p) for name, p in found.items()} for found in soft]
    for block, tensors, now in zip(blocks, values, moved, strict=True):
        total = torch.stack(list(now)).sum(0)
        for network, tensor in enumerate(tensors):
            others = total - now[network]
            for dim, atom in enumerate(block.atoms):
                if isinstance(atom, Perm) and atom.group in soft[network]:
                    partly = tensor
                    for other, inner in enumerate(block.atoms):
                        if other != dim and isinstance(inner, Perm) and inner.group in soft[network]:
                            partly = _times(soft[network][inner.group], partly, other)
                    left, right = (x.movedim(dim, 0).reshape(x.shape[dim], -1) for x in (others, partly))
                    gradients[network][atom.group] += left @ right.T
    return gradients


def _vertices(gradient: Soft) -> dict[str, Tensor]:
    """Return for every group the permutation along which the objective rises fastest: a column per row."""
    return {name: torch.from_numpy(assign(matrix.numpy())) for name, matrix in gradient.items()}


def _between(soft: Sequence[Soft], vertices: Sequence[Mapping[str, Tensor]], gamma: float) -> list[Soft]:
    found: list[Soft] = []
    for here, towards in zip(soft, vertices, strict=True):
        found.append({name: (1 - gamma) * p for name, p in here.items()})
        for name, columns in towards.items():
            found[-1][name][torch.arange(len(columns)), columns] += gamma
    return found


def _best(polynomial: Polynomial) -> float:
    """Return where in [0, 1] a polynomial is largest."""
    roots = [complex(root) for root in polynomial.deriv().roots()]
    candidates = [0.0, 1.0, *(root.real for root in roots if abs(root.imag) < 1e-9 and 0 < root.real < 1)]
    return max(candidates, key=lambda gamma: float(polynomial(gamma)))
