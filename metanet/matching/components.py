"""Components: groups that must be matched together, because some block carries both.

Groups in different components do not see one another, so that each component is matched alone, with only its
own tensors in memory. In a transformer every layer's neurons and heads are components of their own as soon as
the residual stream stays; the stream itself would couple them all.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from metanet.blocks import Block, block_numel, blocks_of
from metanet.spec import WeightSpec

VALUE_BYTES = 4
COPIES = 4
"""Tensors in memory per value compared: both networks, the second as it is moved, and what compares them."""


@dataclass(frozen=True, slots=True)
class Component:
    """Groups to be matched together.

    Args:
        groups: their names.
        entries: what carries them.
        values: number of values of the blocks that do.
    """

    groups: frozenset[str]
    entries: frozenset[str]
    values: int


def components_of(
    spec: WeightSpec, fixed: Collection[str] = (), entries: Collection[str] | None = None
) -> tuple[Component, ...]:
    """Return the components of the groups that are free, in the order of the spec.

    Args:
        spec: the spec.
        fixed: groups that stay as they are; what is nested under them still moves.
        entries: entries to compare; None takes all.
    """
    blocks = [block for block in blocks_of(spec) if entries is None or block.entry in entries]
    return _components(spec, blocks, set(fixed))


def _components(spec: WeightSpec, blocks: Sequence[Block], fixed: set[str]) -> tuple[Component, ...]:
    owner = {group.name: group.name for group in spec.groups if group.name not in fixed}

    def find(name: str) -> str:
        while owner[name] != name:
            owner[name] = owner[owner[name]]
            name = owner[name]
        return name

    for block in blocks:
        free = [name for name in block.groups if name in owner]
        for other in free[1:]:
            owner[find(other)] = find(free[0])
    members: dict[str, set[str]] = {}
    for name in owner:
        members.setdefault(find(name), set()).add(name)
    carriers: dict[str, list[Block]] = {root: [] for root in members}
    for block in blocks:
        free = [name for name in block.groups if name in owner]
        if free:
            carriers[find(free[0])].append(block)
    return tuple(
        Component(
            frozenset(members[root]),
            frozenset(block.entry for block in found),
            sum(block_numel(block, spec.sizes) for block in found),
        )
        for root, found in carriers.items()
        if found
    )


def held_groups(
    spec: WeightSpec,
    max_memory: int,
    *,
    fixed: Collection[str] = (),
    free: Collection[str] = (),
    entries: Collection[str] | None = None,
) -> tuple[str, ...]:
    """Return the groups to be held, beside ``fixed``, so that every component fits into memory.

    While one does not fit, the group that most of its blocks carry is held: a residual stream.

    Args:
        spec: the spec.
        max_memory: bytes that matching a component may take.
        fixed: groups that stay anyway.
        free: groups that must not be held; what they are coupled with is matched whatever it takes.
        entries: entries to compare; None takes all.
    """
    blocks = [block for block in blocks_of(spec) if entries is None or block.entry in entries]
    held: list[str] = []
    while True:
        large = [
            component
            for component in _components(spec, blocks, {*fixed, *held})
            if component.values * VALUE_BYTES * COPIES > max_memory
            and len(component.groups) > 1
            and not component.groups.intersection(free)
        ]
        counts = {
            name: sum(name in block.groups for block in blocks)
            for component in large
            for name in component.groups
        }
        if not counts:
            return tuple(held)
        held.append(max(counts, key=counts.__getitem__))
