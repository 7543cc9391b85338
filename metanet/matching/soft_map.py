"""Soft maps: matrices per group that take a network into another one's order, or widths.

Unlike a group element a soft map mixes units, so that the network it gives computes *another function*. It is
what optimal transport (`metanet.matching.transport`) and partial merging (`metanet.matching.zipping`) find.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from metanet.axis import Perm, atoms
from metanet.blocks import entry_blocks, join, split
from metanet.freedoms.dataflow import Dataflow
from metanet.freedoms.roles import COLUMNS_FIRST, MATRICES
from metanet.group import GroupElement
from metanet.matching.mixing import mix_block
from metanet.spec import WeightSpec


@dataclass(frozen=True, eq=False)
class SoftMap:
    r"""Matrices per group: units that are written go one way, the columns that read them the other.

        row  W -> M W ,   bias  b -> M b ,   reader  V -> V U .

    On a permutation M = P, U = Pᵀ. Where U M = 1 and no nonlinearity stands between, the function is kept.

    Args:
        source: spec of the networks that it acts on; derived, so that it says who writes and who reads.
        target: spec of what it returns: the same but for the widths of groups.
        merge: group -> M, ``[units of the target, units of the source]``; groups left out stay.
        unmerge: group -> U, ``[units of the source, units of the target]``.

    Raises:
        ValueError: specs that differ in more than widths, or matrices that do not fit them.
    """

    source: WeightSpec
    target: WeightSpec
    merge: Mapping[str, Tensor]
    unmerge: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        check_widths(self.source, self.target)
        if set(self.merge) != set(self.unmerge):
            raise ValueError("a soft map has both matrices for every group that it mixes")
        for name in self.merge:
            if name not in self.source.group:
                raise ValueError(f"there is no group {name!r}; the groups are {', '.join(self.source.group)}")
            if name in nested_groups(self.source):
                raise ValueError(
                    f"the group {name!r} is nested, or carries nested ones (heads and their widths): "
                    "matrices cannot mix them; leave it fixed"
                )
            m, n = self.target.sizes[name], self.source.sizes[name]
            shapes = tuple(self.merge[name].shape), tuple(self.unmerge[name].shape)
            if shapes != ((m, n), (n, m)):
                raise ValueError(f"group {name!r}: expected [{m}, {n}] and [{n}, {m}], found {shapes}")
            if not bool(self.merge[name].isfinite().all() and self.unmerge[name].isfinite().all()):
                raise ValueError(f"group {name!r}: values that are not finite")
        changed = {g.name for g in self.source.groups if self.target.sizes[g.name] != g.size}
        if left := sorted(changed - set(self.merge)):
            raise ValueError(f"the groups {', '.join(left)} change their widths and have no matrices")

    @cached_property
    def readers(self) -> frozenset[tuple[str, int]]:
        """``(entry, dimension)`` wherever units are read."""
        return reading_dimensions(self.source)

    def act(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the mixed network; entries without a group that is mixed are the same tensors.

        Raises:
            ValueError: names or shapes do not fit the spec, or integers per unit.
        """
        self.source.check({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        return {name: self.act_one(name, tensor) for name, tensor in tensors.items()}

    def act_one(self, name: str, tensor: Tensor) -> Tensor:
        """Mix the units of one entry; its shape is not checked."""
        axes = self.source.axes[name]
        if not any(
            isinstance(atom, Perm) and atom.group in self.merge for axis in axes for atom in atoms(axis)
        ):
            return tensor
        if not tensor.is_floating_point():
            raise ValueError(f"{name}: integers per unit cannot be mixed")
        work, device = torch.promote_types(tensor.dtype, torch.float32), tensor.device
        parts = []
        for block, part in zip(entry_blocks(name, axes), split(tensor, axes, self.source.sizes), strict=True):

            def matrix(at: int, atom: Perm, dims: tuple[int, ...] = block.dims) -> Tensor | None:
                if atom.group not in self.merge:
                    return None
                reads = (name, dims[at]) in self.readers
                found = self.unmerge[atom.group].mT if reads else self.merge[atom.group]
                return found.to(device, work)

            parts.append(mix_block(part.to(work), block.atoms, block.parents(self.source), matrix))
        return join(parts, axes, self.target.sizes).to(tensor.dtype)

    def __matmul__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self.act(tensors)

    def element(self) -> GroupElement | None:
        """Return the group element that this is, if every matrix is a permutation, else None."""
        permutations: dict[str, Tensor] = {}
        for name, matrix in self.merge.items():
            hard = ((matrix == 0) | (matrix == 1)).all() and (matrix.sum(0) == 1).all()
            if not (hard and (matrix.sum(1) == 1).all() and torch.equal(self.unmerge[name], matrix.mT)):
                return None
            permutations[name] = matrix.argmax(1)
        return GroupElement(self.source, permutations, {})

    def __repr__(self) -> str:
        widths = [f"{n}: {m.shape[1]} -> {m.shape[0]}" for n, m in self.merge.items() if len(m) != m.shape[1]]
        return f"SoftMap({len(self.merge)} groups mixed{'; ' + ', '.join(widths) if widths else ''})"


@dataclass(frozen=True)
class SoftMatching:
    """A soft map that takes network b to network a, and how it was found.

    Args:
        map: the map.
        costs: group -> mean cost of what was paired, by the measure (or its mean similarity).
        mixed: group -> share of a unit that does not come from one single unit: 0 for a permutation.
        measure: what the costs are.
        notes: what the user should know, one sentence each.
        map_a: moves network a too, where the two meet half-way; None where it stays.
        shared: entries whose mean over both moved networks belongs to both, where they meet.
    """

    map: SoftMap
    costs: Mapping[str, float]
    mixed: Mapping[str, float]
    measure: str
    notes: tuple[str, ...] = ()
    map_a: SoftMap | None = None
    shared: frozenset[str] = frozenset()

    def networks(
        self, a: Mapping[str, Tensor], b: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return what becomes of both networks: moved, with what they share in the place of their own.

        Args:
            a: state dict of the network that stays, or is moved too.
            b: state dict of the network that is moved.
        """
        first = dict(a) if self.map_a is None else self.map_a @ a
        second = self.map @ b
        for name in self.shared:
            if first[name].is_floating_point():
                mean = torch.lerp(first[name], second[name].to(first[name]), 0.5)
                first[name], second[name] = mean, mean.to(second[name])
        return first, second

    @property
    def merges_all(self) -> bool:
        """Whether both networks become one and the same."""
        return self.map_a is not None and self.shared == set(self.map.source)


def mixed_shares(merge: Mapping[str, Tensor]) -> dict[str, float]:
    """Return for every group the mean share of a unit that does not come from its largest part."""
    return {
        name: float((1 - matrix.abs().amax(1) / matrix.abs().sum(1).clamp_min(1e-12)).mean())
        for name, matrix in merge.items()
    }


def nested_groups(spec: WeightSpec) -> set[str]:
    """Return the groups that are nested under others, and those others."""
    inside = [group for group in spec.groups if group.parent is not None]
    return {group.name for group in inside} | {above for g in inside for above in spec.ancestors(g.name)}


def reading_dimensions(spec: WeightSpec) -> frozenset[tuple[str, int]]:
    """Return ``(entry, dimension)`` wherever an entry reads units rather than writing them.

    Raises:
        ValueError: the spec has no operations, which tell.
    """
    if not spec.operations:
        raise ValueError(
            "this spec does not say which tensors write units and which read them: derive it from the model "
            "(spec_of), or read one in JSON"
        )
    found = set()
    for entry, uses in Dataflow(spec).uses.items():
        rank = len(spec.axes[entry])
        for position, role in uses:
            kind = spec.operations[position].kind
            if role.startswith(("weight_", "w_")) and rank == 2:
                found.add((entry, 1))
            elif role == "weight" and kind in MATRICES:
                column = 0 if kind in COLUMNS_FIRST else rank - 1 if kind == "linear" else 1
                found.add((entry, column))
    ties = {name: tie for tie in spec.ties for name in tie}
    return frozenset((name, dim) for entry, dim in found for name in ties.get(entry, (entry,)))


def check_widths(source: WeightSpec, target: WeightSpec) -> None:
    """Raise unless two specs are the same but for the widths of groups.

    Raises:
        ValueError: naming what differs.
    """
    ours, theirs = [group.name for group in source.groups], [group.name for group in target.groups]
    if ours != theirs:
        raise ValueError(f"the networks differ in more than widths: groups {ours[:8]} and {theirs[:8]}")
    if list(source.axes) != list(target.axes):
        differ = sorted(set(source.axes) ^ set(target.axes))
        raise ValueError(f"the networks differ in more than widths: entries {differ[:5]}")
    for name, axes in source.entries:
        if axes != target.axes[name]:
            raise ValueError(
                f"the networks differ in more than widths: {name} is {' '.join(map(str, axes))} in one and "
                f"{' '.join(map(str, target.axes[name]))} in the other"
            )
