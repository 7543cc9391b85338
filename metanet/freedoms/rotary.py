r"""Rotations: what rotary positions leave of the freedom of queries and keys, a complex factor per frequency.

Rotary positions turn pairs of numbers, z = x_i + i x_j, by an angle that depends on the position. That is a
multiplication by a complex number, and so commutes with one:

    Re(q e^{iωs} · conj(k e^{iωt}))    is kept by    k -> c k,   q -> q / conj(c)

Which values are z times something is followed from the projection through the network. A value holds *pairs*
(real and imaginary parts, wherever they lie), or is a real *combination* a·Re z + b·Im z of one of each, or
is complex itself. Halves that are swapped, negated, multiplied by tables and put together again are pairs
again if what they are made of says so:

    A = a Re z + b Im z,   B = a Im z - b Re z     ->     A + iB = (a - ib) z

So no way of writing rotary positions is built in. Operations that are not listed here (a norm of queries and
keys among them) end the search, and a projection of which not everything ends in attention has no such
freedom.

References:
    Su et al. 2021, RoFormer, https://arxiv.org/abs/2104.09864.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metanet.action import Action, Layout, Term
from metanet.axis import Atom, Axis, Fixed, Perm, axis_size
from metanet.closure import compatible
from metanet.freedoms.complex_pairs import PairFlow
from metanet.freedoms.dataflow import ROWS, Dataflow
from metanet.leaf import Leaf, apart, leaf_positions, leaves_of
from metanet.spec import WeightSpec

LAYOUTS: tuple[Layout, ...] = ("half", "interleaved")


@dataclass(frozen=True, slots=True)
class _Part:
    """Some rows of a projection that end in attention as pairs.

    Args:
        operation: the projection.
        leaf: the number of the fixed leaf, among those of the projection's rows.
        layout: of its pairs.
        ends: attention operation and slot (0 for queries, 1 for keys) -> which pair and part every index of
            the width is.
    """

    operation: int
    leaf: int
    layout: Layout
    ends: tuple[tuple[tuple[int, int], tuple[int, ...]], ...]

    def rows(self, flow: Dataflow) -> tuple[Leaf, ...]:
        """Return the leaves of the projection's rows."""
        op = flow.operations[self.operation]
        return leaves_of((flow.spec.axes[op.parameter("weight") or ""][ROWS.get(op.kind, 0)],))

    def leaf_size(self, flow: Dataflow) -> int:
        """Return the number of indices of the leaf, twice the number of pairs."""
        return axis_size(self.rows(flow)[self.leaf].atom, flow.spec.sizes)

    def beside(self, flow: Dataflow) -> dict[str, int]:
        """Return the groups whose units have pairs of their own, with the numbers of their leaves."""
        rows = self.rows(flow)
        own = rows[self.leaf]
        return {
            leaf.atom.group: number
            for number, leaf in enumerate(rows)
            if isinstance(leaf.atom, Perm) and not apart([own], [leaf])
        }

    def groups(self, flow: Dataflow) -> list[str]:
        """Return these groups, one for every leaf."""
        rows = self.rows(flow)
        own = rows[self.leaf]
        return [leaf.atom.group for leaf in rows if isinstance(leaf.atom, Perm) and not apart([own], [leaf])]

    def terms(self, flow: Dataflow, groups: Sequence[str], power: int) -> Iterator[Term]:
        """Yield the terms of weight and bias, under all names."""
        op = flow.operations[self.operation]
        beside = self.beside(flow)
        leaves = [*(beside[group] for group in groups), self.leaf]
        for role, entry in op.parameters:
            before = flow.spec.axes[entry][: ROWS.get(op.kind, 0)] if role == "weight" else ()
            skipped = len(leaves_of(before))
            for name in flow.names(flow.first.get(entry, entry)):
                yield Term(name, tuple(leaf + skipped for leaf in leaves), power)


def with_rotations(spec: WeightSpec) -> WeightSpec:
    """Return the spec with the rotations that its operations allow; scales that they contain are dropped."""
    flow = Dataflow(spec)
    actions = list(spec.actions)
    for action in _actions(flow, list(_parts(flow))):
        others = [other for other in actions if not _contains(action, other)]
        if compatible(spec, others, action):
            actions = [*others, action]
    return spec if actions == list(spec.actions) else replace(spec, actions=tuple(actions))


def _parts(flow: Dataflow) -> Iterator[_Part]:
    """Yield the parts of all projections that end in attention, in one of the layouts."""
    pairs = PairFlow(flow)
    for position, op in enumerate(flow.operations):
        weight = op.parameter("weight")
        if not flow.plain_matrix(op) or weight is None or len(flow.spec.axes[weight]) != 2:
            continue
        used = [entry for _, entry in op.parameters]
        if any(len(flow.uses[flow.first.get(entry, entry)]) > 1 for entry in used):
            continue
        rows = flow.spec.axes[weight][ROWS.get(op.kind, 0)]
        bias = op.parameter("bias")
        if bias is not None and _form(flow.spec.axes[bias]) != _form((rows,)):
            continue
        for number, leaf in enumerate(leaves_of((rows,))):
            if not isinstance(leaf.atom, Fixed) or leaf.atom.size < 2 or leaf.atom.size % 2:
                continue
            where = leaf_positions(rows, leaf.path, flow.spec.sizes)
            for layout in LAYOUTS:
                ends = pairs.ends(position, _codes(where, leaf.atom.size, layout))
                if ends:
                    yield _Part(position, number, layout, tuple(ends.items()))
                    break


def _form(axes: tuple[Axis, ...]) -> list[tuple[object, ...]]:
    """Return what the leaves of axes are, whatever their roles."""
    atoms = [(leaf, leaf.atom) for leaf in leaves_of(axes)]
    return [(leaf.path, atom.group if isinstance(atom, Perm) else atom.size) for leaf, atom in atoms]


def _codes(where: Tensor, size: int, layout: Layout) -> Tensor:
    """Return ``2 pair + part`` for indices along a leaf of pairs; -1 stays -1."""
    n = size // 2
    codes = where % n * 2 + where // n if layout == "half" else where
    return torch.where(where < 0, -1, codes)


def _actions(flow: Dataflow, parts: Sequence[_Part]) -> Iterator[Action]:
    """Yield an action for every set of parts that meet in attention, and meet nothing else there."""
    left = list(parts)
    while left:
        members = [left.pop(0)]
        for member in members:
            met = {operation for (operation, _), _ in member.ends}
            near = [part for part in left if met & {operation for (operation, _), _ in part.ends}]
            members += near
            left = [part for part in left if part not in near]
        action = _action(flow, members)
        if action is not None:
            yield action


def _action(flow: Dataflow, members: Sequence[_Part]) -> Action | None:
    ends: dict[tuple[int, int], list[tuple[int, ...]]] = {}
    for member in members:
        for place, codes in member.ends:
            ends.setdefault(place, []).append(codes)
    slots = [{slot for (_, slot), _ in member.ends} for member in members]
    widths = {member.leaf_size(flow) for member in members}
    whole = all(ends.get((operation, 1 - slot)) == codes for (operation, slot), codes in ends.items())
    if not whole or any(len(codes) > 1 for codes in ends.values()) or any(len(slot) > 1 for slot in slots):
        return None
    if len(widths) > 1 or len({member.layout for member in members}) > 1:
        return None
    groups = [member.groups(flow) for member in members]
    shared = [group for group in groups[0] if all(group in other for other in groups)]
    if any(len(other) != len(set(other)) for other in groups) or not _aligned(flow, ends, shared):
        return None
    terms = [
        term
        for member, [slot] in sorted(zip(members, slots, strict=True), key=lambda pair: -min(pair[1]))
        for term in member.terms(flow, shared, 1 if slot == 1 else -1)
    ]
    axes: tuple[Atom, ...] = (*(Perm(group) for group in shared), Fixed(widths.pop() // 2))
    return Action("rotation", axes, tuple(terms), members[0].layout)


def _aligned(flow: Dataflow, ends: Iterable[tuple[int, int]], groups: Sequence[str]) -> bool:
    """Return whether queries and keys of one unit meet each other, and no others, in attention."""

    def places(position: int, group: str) -> set[int]:
        axes = flow.operations[position].axes[:-2]
        return {
            i - len(axes)
            for i, axis in enumerate(axes)
            for leaf in leaves_of((axis,))
            if isinstance(leaf.atom, Perm) and leaf.atom.group == group
        }

    return all(
        places(q, group) == places(k, group) != set()
        for operation, slot in ends
        if slot == 0
        for q, k in [flow.operations[operation].inputs[:2]]
        for group in groups
    )


def _contains(action: Action, other: Action) -> bool:
    """Return whether an action is a scale per unit that is part of a rotation: all moduli of a unit equal."""
    if other.kind not in ("sign", "scale", "positive_scale") or set(other.axes) != set(action.axes[:-1]):
        return False
    mine = {(term.entry, frozenset(term.leaves[:-1])): term.power for term in action.terms}
    theirs = {(term.entry, frozenset(term.leaves)): term.power for term in other.terms}
    opposite = {place: -power for place, power in mine.items()}
    return len(mine) == len(action.terms) and theirs in (mine, opposite)
