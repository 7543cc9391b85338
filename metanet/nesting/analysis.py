r"""Nesting: which groups may be permuted independently for every unit of another.

The units j of a group q may be permuted by a :math:`\pi_i` of their own for every unit i of a group p if

1. every entry and every value that has q has p, in a place that goes with it (`metanet.axis.bound_to`);
2. every operation keeps the two together: what is one index in its operands and its result goes with one
   index there, and where it combines the units of p it combines those of q with them.

An operation that is pointwise in p does for every i what it does for the others, and the shared permutations
of q were found to be symmetries of it, so each slice has them; one that contracts p and q jointly sums over
the reordered pairs (i, j). An operation that is not known (`metanet.nesting.readers`) keeps whatever it meets
from being nested.

References:
    Meldrum 1995, Wreath products of groups and semigroups. Hecht-Nielsen 1990, On the algebraic structure of
    feedforward network weight spaces (the group that this extends to heads, experts and grouped channels).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import product as cartesian
from math import lgamma

from metanet.axis import Atom, Axis, Perm, atoms, axis_blocks, bound_to
from metanet.nesting.expert_rows import with_expert_rows
from metanet.nesting.labels import Label, Line, Step
from metanet.nesting.readers import labels_of
from metanet.spec import WeightSpec

MOVES = frozenset(("reshape", "transpose", "slice", "select", "cat", "stack", "pad", "expand", "repeat"))
"""Operations that only move values: their indices stay with one another, whatever dimensions they are on."""
LEAVES = frozenset(("input", "constant", "parameter", "output"))
Tensor = tuple[Axis, ...]
Place = tuple[Label, tuple[int, ...], int]


def with_nesting(spec: WeightSpec) -> WeightSpec:
    """Return the spec with every group nested as deeply as its operations allow.

    Args:
        spec: with its operations and no nested groups yet.
    """
    spec = with_expert_rows(spec)
    tensors = [axes for _, axes in spec.entries] + [op.axes for op in spec.operations]
    operations = [_tensors(spec, number) for number in range(len(spec.operations))]
    carriers: dict[str, list[Tensor]] = {group.name: [] for group in spec.groups}
    for axes in dict.fromkeys(tensors):
        for name in _groups(axes):
            carriers[name].append(axes)
    touching: dict[str, list[int]] = {group.name: [] for group in spec.groups}
    for number, found in enumerate(operations):
        for name in {name for axes in found for name in _groups(axes)}:
            touching[name].append(number)
    parents: dict[str, list[str]] = {}
    for group in spec.groups:
        child = group.name
        shared = frozenset.intersection(*map(_groups, carriers[child])) - {child} if carriers[child] else ()
        parents[child] = [
            parent
            for parent in sorted(shared)
            if all(_bound(axes, child, parent) for axes in carriers[child])
            and all(_keeps(spec, number, operations[number], child, parent) for number in touching[child])
        ]
    chosen = _choose(spec, parents)
    return replace(spec, groups=tuple(replace(g, parent=chosen.get(g.name)) for g in spec.groups))


def _choose(spec: WeightSpec, parents: dict[str, list[str]]) -> dict[str, str]:
    """Return the parents that give the largest group; of two groups that may be either's, the inner one."""
    chosen: dict[str, str] = {}

    def gain(child: str, parent: str) -> float:
        return (spec.sizes[parent] - 1) * lgamma(spec.sizes[child] + 1)

    def better(child: str, parent: str) -> bool:
        mutual = child in parents[parent]
        return not mutual or (gain(child, parent), child) > (gain(parent, child), parent)

    allowed = {child: [p for p in found if better(child, p)] for child, found in parents.items()}

    def copies(name: str, seen: tuple[str, ...]) -> int:
        found = [copies(p, (*seen, name)) for p in allowed[name] if p not in seen]
        return spec.sizes[name] * max(found, default=1)

    for child, found in allowed.items():
        for parent in sorted(found, key=lambda p: (-copies(p, (child,)), p)):
            above = parent
            while above in chosen:
                above = chosen[above]
            if above != child:
                chosen[child] = parent
                break
    return chosen


def _tensors(spec: WeightSpec, number: int) -> list[Tensor]:
    op = spec.operations[number]
    inputs = [spec.operations[i].axes for i in op.inputs]
    return [*inputs, *(spec.axes[entry] for _, entry in op.parameters), op.axes]


@lru_cache(maxsize=8192)
def _groups(axes: Tensor) -> frozenset[str]:
    return frozenset(atom.group for axis in axes for atom in atoms(axis) if isinstance(atom, Perm))


@lru_cache(maxsize=8192)
def _blocks(axes: Tensor) -> tuple[tuple[tuple[Atom, ...], tuple[int, ...]], ...]:
    return tuple((found, dims) for _, found, dims in axis_blocks(axes))


def _where(block: Sequence[Atom], group: str) -> list[int]:
    return [at for at, atom in enumerate(block) if isinstance(atom, Perm) and atom.group == group]


def _bound(axes: Tensor, child: str, parent: str) -> bool:
    """Return whether every occurrence of a group goes with one of another, in every block of a tensor."""
    return all(
        bound_to(at, parent, block, dims) is not None
        for block, dims in _blocks(axes)
        for at in _where(block, child)
    )


def _keeps(spec: WeightSpec, number: int, tensors: Sequence[Tensor], child: str, parent: str) -> bool:
    """Return whether an operation keeps the units of a group together with those of another."""
    op = spec.operations[number]
    if op.kind in LEAVES:
        return True
    carrying = [axes for axes in tensors if child in _groups(axes)]
    if op.kind in MOVES and all(
        len(_where(block, parent)) == 1
        for axes in carrying
        for block, _ in _blocks(axes)
        if _where(block, child)
    ):
        return True
    if op.kind == "reshape":
        return _same_order(carrying, child, parent) and len(carrying) == len(tensors)
    steps = labels_of(spec, op)
    return steps is not None and all(_together(step, child, parent) for step in steps)


def _same_order(tensors: Sequence[Tensor], child: str, parent: str) -> bool:
    """Return whether a row-major reshape, which keeps the order of units, keeps what goes with what."""
    known: dict[tuple[str, ...], tuple[int | None, ...]] = {}
    orders: list[set[tuple[str, ...]]] = []
    for axes in tensors:
        orders.append(set())
        for block, dims in _blocks(axes):
            units = [at for at, atom in enumerate(block) if isinstance(atom, Perm)]
            order = tuple(atom.group for atom in block if isinstance(atom, Perm))
            pairs = [bound_to(at, parent, block, dims) if at in _where(block, child) else -1 for at in units]
            found = tuple(units.index(p) if p is not None and p >= 0 else None for p in pairs)
            orders[-1].add(order)
            if known.setdefault(order, found) != found:
                return False
    return all(order == orders[0] for order in orders)


def _together(step: Step, child: str, parent: str) -> bool:
    """Return whether a group goes with the same index of another in all tensors of a step.

    And whether no stage combines the units of the other alone.
    """
    meant = {child, parent}
    like: dict[Label, Axis] = {}
    for line in (line for tensor in step.tensors for line in tensor):
        if meant & _groups((line.axis,)) and like.setdefault(line.label, line.axis) != line.axis:
            return False
    known: dict[Place, tuple[Label, int]] = {}
    for tensor in step.tensors:
        for place, found in _pairs(tensor, child, parent):
            if found is None or known.setdefault(place, found) != found:
                return False
    return all(
        place[0] in stage for place, (label, _) in known.items() for stage in step.stages if label in stage
    )


def _pairs(
    tensor: Sequence[Line], child: str, parent: str
) -> Iterator[tuple[Place, tuple[Label, int] | None]]:
    """Yield every place of a group in a tensor, with the label and number of what it goes with."""
    if child not in _groups(tuple(line.axis for line in tensor)):
        return
    options = [_options(line.axis) for line in tensor]
    for choice in cartesian(*options):
        found: list[Atom] = []
        dims: list[int] = []
        owner: list[tuple[Label, tuple[int, ...], int]] = []
        for line, (path, inner) in zip(tensor, choice, strict=True):
            found += inner
            dims += [line.dim] * len(inner)
            owner += [(line.label, path, i) for i in range(len(inner))]
        for at in _where(found, child):
            place = bound_to(at, parent, found, dims)
            yield owner[at], None if place is None else (owner[place][0], owner[place][2])


@lru_cache(maxsize=8192)
def _options(axis: Axis) -> tuple[tuple[tuple[int, ...], tuple[Atom, ...]], ...]:
    return tuple((path, found) for path, found, _ in axis_blocks((axis,)))
