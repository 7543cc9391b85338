"""Chains of nested groups: the leaves of an entry that say which unit of which parent units one is."""

from __future__ import annotations

from collections.abc import Mapping

from metanet.axis import Axis, Perm
from metanet.leaf import Leaf, apart, leaves_of
from metanet.units import Group


def chain_of(groups: Mapping[str, Group], name: str) -> tuple[str, ...]:
    """Return a group and those that it is nested under, the outermost first."""
    chain = [name]
    while (parent := groups[chain[0]].parent) is not None:
        chain.insert(0, parent)
    return tuple(chain)


def beside(axes: tuple[Axis, ...], leaf: int, parent: str) -> int | None:
    """Return the leaf of a parent that goes with a leaf of a group nested under it.

    It is the nearest one left of it in its product, or the only one in another dimension; None if neither
    is there.
    """
    leaves = leaves_of(axes)
    own = leaves[leaf]
    fitting = [
        (number, other)
        for number, other in enumerate(leaves)
        if isinstance(other.atom, Perm) and other.atom.group == parent and not apart([own], [other])
    ]
    near = [number for number, other in fitting if _same_product(own, other) and number < leaf]
    if near:
        return near[-1]
    return fitting[0][0] if len(fitting) == 1 else None


def _same_product(own: Leaf, other: Leaf) -> bool:
    return own.dim == other.dim and own.path[:-1] == other.path[:-1]


def unit_leaves(axes: tuple[Axis, ...], leaf: int, chain: tuple[str, ...]) -> tuple[int, ...] | None:
    """Return the leaves that say which unit a leaf's indices are: those of its parents, then itself.

    None if a parent cannot be told apart beside the units.
    """
    leaves = [leaf]
    for parent in reversed(chain[:-1]):
        found = beside(axes, leaves[0], parent)
        if found is None:
            return None
        leaves.insert(0, found)
    return tuple(leaves)
