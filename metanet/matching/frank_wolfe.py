"""Frank–Wolfe matching: all groups of all networks at once, over doubly stochastic matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
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
    degree = 2 * max((sum(name in free for name in block.groups) for block in blocks), default=1)
    points = np.linspace(0.0, 1.0, degree + 1)
    now = _objective(blocks, values, soft)
    for _ in range(max_steps):
        vertices = [_vertices(gradient) for gradient in _gradients(blocks, values, soft)]
        samples = [_objective(blocks, values, _between(soft, vertices, gamma)) for gamma in points]
        gamma = _best(points, samples)
        moved = _between(soft, vertices, gamma)
        after = _objective(blocks, values, moved)
        if after - now <= LEAST * abs(now):
            break
        soft, now = moved, after
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


def _moved(block: Block, value: Tensor, soft: Soft, skip: int = -1) -> Tensor:
    """Return a block with all its dimensions but one multiplied by their matrices."""
    for dim, atom in enumerate(block.atoms):
        if dim != skip and isinstance(atom, Perm) and atom.group in soft:
            value = torch.tensordot(soft[atom.group], value, ([1], [dim])).movedim(0, dim)
    return value


def _objective(blocks: Sequence[Block], values: Sequence[Sequence[Tensor]], soft: Sequence[Soft]) -> float:
    total = 0.0
    for block, tensors in zip(blocks, values, strict=True):
        moved = torch.stack([_moved(block, x, p) for x, p in zip(tensors, soft, strict=True)])
        total += 0.5 * float(moved.sum(0).square().sum() - moved.square().sum())
    return total


def _gradients(
    blocks: Sequence[Block], values: Sequence[Sequence[Tensor]], soft: Sequence[Soft]
) -> list[Soft]:
    gradients: list[Soft] = [{name: torch.zeros_like(p) for name, p in found.items()} for found in soft]
    for block, tensors in zip(blocks, values, strict=True):
        moved = [_moved(block, x, p) for x, p in zip(tensors, soft, strict=True)]
        total = torch.stack(moved).sum(0)
        for network, tensor in enumerate(tensors):
            others = total - moved[network]
            for dim, atom in enumerate(block.atoms):
                if isinstance(atom, Perm) and atom.group in soft[network]:
                    partly = _moved(block, tensor, soft[network], skip=dim)
                    left, right = (x.movedim(dim, 0).reshape(x.shape[dim], -1) for x in (others, partly))
                    gradients[network][atom.group] += left @ right.T
    return gradients


def _vertices(gradient: Soft) -> Soft:
    """Return for every group the permutation matrix along which the objective rises fastest."""
    found: Soft = {}
    for name, matrix in gradient.items():
        columns = torch.from_numpy(assign(matrix.numpy()))
        found[name] = torch.zeros_like(matrix)
        found[name][torch.arange(len(columns)), columns] = 1.0
    return found


def _between(soft: Sequence[Soft], vertices: Sequence[Soft], gamma: float) -> list[Soft]:
    return [
        {name: torch.lerp(p, towards[name], float(gamma)) for name, p in found.items()}
        for found, towards in zip(soft, vertices, strict=True)
    ]


def _best(points: np.ndarray, samples: Sequence[float]) -> float:
    """Return where in [0, 1] the polynomial through the samples is largest."""
    polynomial = np.polynomial.Polynomial.fit(points, samples, len(points) - 1)
    roots = [complex(root) for root in polynomial.deriv().roots()]
    candidates = [0.0, 1.0, *(root.real for root in roots if abs(root.imag) < 1e-9 and 0 < root.real < 1)]
    return max(candidates, key=lambda gamma: float(polynomial(gamma)))
