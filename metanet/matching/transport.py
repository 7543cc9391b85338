"""Optimal transport fusion: units of one network are spread over those of another, of other widths too."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from metanet.axis import Perm
from metanet.blocks import Block, block_numel, blocks_of, split
from metanet.matching.coupling import optimal_coupling
from metanet.matching.mixing import mix_block
from metanet.matching.pair import STATISTICS
from metanet.matching.soft_map import (
    SoftMap,
    SoftMatching,
    check_widths,
    mixed_shares,
    nested_groups,
    reading_dimensions,
)
from metanet.spec import WeightSpec

State = Mapping[str, Tensor]


def transport_matching(
    spec: WeightSpec,
    a: State,
    b: State,
    *,
    spec_a: WeightSpec | None = None,
    fixed: Collection[str] = (),
    regularization: float = 0.0,
) -> SoftMatching:
    r"""Spread the units of b over those of a, group by group, by optimal transport of their weights.

        T = argmin Σ_ij T_ij ‖a_i − b̂_j‖²,   M = m T,   U = n Tᵀ,   row Ŵ = M W,   reader Ŵ = W U

    for a group of m units in a and n in b: a_i are the weights and biases by which unit i is written, b̂_j
    those of unit j behind groups that are spread already. Groups go from fixed inputs inwards: next comes the
    one of whose rows most are known. For equal widths T is a permutation over n (Birkhoff), and the map is a
    group element; else units are mixed, and b computes another function.

    Args:
        spec: of network b; derived, so that it says who writes and who reads.
        a: state dict of the network that stays.
        b: state dict of the network to be moved.
        spec_a: of network a, where its widths are others; None if it is the same.
        fixed: groups of equal width that stay as they are; nested ones must.
        regularization: entropy of the couplings, as a fraction of the mean cost; 0 solves exactly.

    Returns:
        The map, which gives b the shapes of a, and the mean squared distance of what was paired.

    Raises:
        ValueError: networks that differ in more than widths, nested groups that are not fixed, fixed groups
            of different widths, or too many units to be solved without regularization.

    References:
        Singh and Jaggi 2020, Model Fusion via Optimal Transport, https://arxiv.org/abs/1910.05653. Departs
        from it in what readers are multiplied by: it is n Tᵀ, so that the weight of a unit that is copied is
        split among its copies, where the paper's m Tᵀ would scale every layer by m/n; and in groups that
        several layers write (residual streams), whose rows are compared together.
    """
    target = spec if spec_a is None else spec_a
    check_widths(spec, target)
    held = set(fixed)
    if nested := sorted(nested_groups(spec) - held):
        raise ValueError(
            f"the groups {', '.join(nested[:6])} are nested, or carry nested ones (heads and their widths); "
            "transport mixes plain units: leave these fixed (--fix)"
        )
    if other := sorted(name for name in held if target.sizes[name] != spec.sizes[name]):
        raise ValueError(f"the groups {', '.join(other)} cannot stay: their widths differ")
    a, b = ({n: x.detach() for n, x in state.items()} for state in (a, b))
    sides = Sides(target, a), Sides(spec, b)
    merge: dict[str, Tensor] = {}
    unmerge: dict[str, Tensor] = {}
    costs: dict[str, float] = {}
    waiting = [group.name for group in spec.groups if group.name not in held]
    while waiting:
        name = sides[1].next(waiting)
        left = sides[0].rows(name, waiting)
        right = sides[1].rows(name, waiting, merge, unmerge)
        m, n = len(left), len(right)
        cost = torch.cdist(left, right).square().numpy()
        coupling = torch.from_numpy(optimal_coupling(cost, regularization=regularization))
        costs[name] = float((coupling * torch.from_numpy(cost)).sum())
        merge[name], unmerge[name] = m * coupling, n * coupling.mT
        waiting.remove(name)
    found = SoftMap(spec, target, merge, unmerge)
    return SoftMatching(found, costs, mixed_shares(merge), "squared distance of a unit's weights")


@dataclass(frozen=True)
class Piece:
    """A block of a network and its values."""

    block: Block
    value: Tensor


class Sides:
    """One of two networks, whose units are seen by how they are written.

    Args:
        spec: of the network.
        state: its weights.
    """

    def __init__(self, spec: WeightSpec, state: State) -> None:
        self.spec = spec
        self.readers = reading_dimensions(spec)
        entries: dict[str, list[Block]] = {}
        for block in blocks_of(spec):
            entries.setdefault(block.entry, []).append(block)
        self.pieces: list[Piece] = []
        for name, blocks in entries.items():
            if name.endswith(STATISTICS) or not state[name].is_floating_point():
                continue
            values = split(state[name].double(), spec.axes[name], spec.sizes)
            self.pieces += [Piece(block, value) for block, value in zip(blocks, values, strict=True)]

    def next(self, waiting: Sequence[str]) -> str:
        """Return the group of whose rows the largest share is known, the first of several."""

        def known(name: str) -> float:
            pieces = self.written(name)
            total = sum(block_numel(p.block, self.spec.sizes) for p in pieces)
            seen = [p for p in pieces if not self._others(p, name) & set(waiting)]
            return sum(block_numel(p.block, self.spec.sizes) for p in seen) / max(total, 1)

        return max(waiting, key=known)

    def rows(
        self,
        name: str,
        waiting: Sequence[str],
        merge: Mapping[str, Tensor] = MappingProxyType({}),
        unmerge: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Tensor:
        """Return ``[units, values]`` by which a group is written, as far as the other groups are known.

        Args:
            name: of the group.
            waiting: groups that are not known.
            merge: matrices of other groups where they are written; those left out are taken as they are.
            unmerge: the same where they are read.

        Raises:
            ValueError: nothing that is known writes the group.
        """
        found = []
        for piece in self.written(name):
            if self._others(piece, name) & set(waiting):
                continue
            block = piece.block
            own = next(i for i, atom in enumerate(block.atoms) if self._is(block, i, name))

            def matrix(at: int, atom: Perm, own: int = own, block: Block = block) -> Tensor | None:
                if at == own:
                    return None
                if (block.entry, block.dims[at]) in self.readers:
                    found = unmerge.get(atom.group)
                    return None if found is None else found.mT
                return merge.get(atom.group)

            mixed = mix_block(piece.value, block.atoms, block.parents(self.spec), matrix)
            found.append(mixed.movedim(own, 0).flatten(1) if mixed.ndim > 1 else mixed[:, None])
        if not found:
            raise ValueError(
                f"nothing that is known writes the group {name!r} (it is read and written in a circle); "
                "leave it fixed"
            )
        return torch.cat(found, 1)

    def _is(self, block: Block, at: int, name: str) -> bool:
        atom = block.atoms[at]
        return (
            isinstance(atom, Perm)
            and atom.group == name
            and (block.entry, block.dims[at]) not in self.readers
        )

    def written(self, name: str) -> list[Piece]:
        """Return the pieces that write a group, and carry it once."""
        return [
            p
            for p in self.pieces
            if p.block.groups.count(name) == 1
            and any(self._is(p.block, i, name) for i in range(len(p.block.atoms)))
        ]

    def _others(self, piece: Piece, name: str) -> set[str]:
        return {group for group in piece.block.groups if group != name}
