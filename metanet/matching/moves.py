"""Moves of coordinate descent: groups that one exact step permutes together, and how they nest.

A group without nested ones is a move of its own. A group with nested ones (heads over their widths, experts
over their neurons) moves together with those below it, because the best arrangement inside decides which unit
of the parent goes where. Units that a block combines (input and output channels inside the groups of a
convolution) cannot move in one linear step; those left out have a move of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from metanet.axis import Atom, Perm
from metanet.blocks import Block
from metanet.elements.wreath import chain_of
from metanet.spec import WeightSpec


@dataclass(frozen=True, slots=True)
class Node:
    """A group of a move and the groups below it that move along."""

    group: str
    children: tuple[Node, ...] = ()

    @property
    def groups(self) -> tuple[str, ...]:
        """All groups of this node and below."""
        return (self.group, *(name for child in self.children for name in child.groups))


@dataclass(frozen=True, slots=True)
class Place:
    """One place where a move meets a block.

    Args:
        block: its number.
        chain: groups of the move on the block, each nested under the one before.
        outer: dimensions of the ancestors that stay, outermost first.
        inner: dimensions of the chain, in its order.
        rest: the other dimensions.
        sign: number of the action that flips the units here, or None (`metanet.matching.action_signs`).
    """

    block: int
    chain: tuple[str, ...]
    outer: tuple[int, ...]
    inner: tuple[int, ...]
    rest: tuple[int, ...]
    sign: int | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """Groups that one step permutes: a tree, where it meets the blocks, and the ancestors that stay."""

    root: Node
    ancestors: tuple[str, ...]
    places: tuple[Place, ...]

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of the tree."""
        return self.root.groups

    @property
    def blocks(self) -> frozenset[int]:
        """Numbers of the blocks it touches."""
        return frozenset(place.block for place in self.places)


def moves_of(
    spec: WeightSpec,
    blocks: Sequence[Block],
    fixed: Collection[str] = (),
    signs: Sequence[Mapping[int, int]] = (),
) -> tuple[Move, ...]:
    """Return the moves that reach every group, in the order of the spec.

    Args:
        spec: the spec.
        blocks: the blocks that are compared.
        fixed: groups that must stay as they are.
        signs: for every block, position of an atom -> number of the action that flips it.
    """
    moves: list[Move] = []
    covered: set[str] = set()
    for group in spec.groups:
        if group.name in fixed:
            continue
        root = _tree(spec, blocks, group.name, fixed)
        if group.name in covered and not root.children:
            continue
        covered |= set(root.groups[1:])
        places = tuple(_places(spec, blocks, root, signs))
        if places:
            moves.append(Move(root, spec.ancestors(group.name), places))
    # A group that moved along with an ancestor needs no move of its own, unless it carries others.
    return tuple(move for move in moves if move.root.children or move.root.group not in covered)


def _tree(spec: WeightSpec, blocks: Sequence[Block], top: str, fixed: Collection[str]) -> Node:
    included = [top]
    for group in spec.groups:
        above = spec.ancestors(group.name)
        if group.name in fixed or group.parent not in included:
            continue
        clash = any(
            group.name in block.groups and any(o in block.groups for o in included if o not in above)
            for block in blocks
        )
        if not clash:
            included.append(group.name)

    def node(name: str) -> Node:
        return Node(name, tuple(node(c) for c in included if spec.group[c].parent == name))

    return node(top)


def _places(
    spec: WeightSpec, blocks: Sequence[Block], root: Node, signs: Sequence[Mapping[int, int]]
) -> list[Place]:
    found: list[Place] = []
    members = set(root.groups)
    for number, block in enumerate(blocks):
        parents = block.parents(spec)
        own = [at for at, atom in enumerate(block.atoms) if isinstance(atom, Perm) and atom.group in members]
        carried = {place for at in own for place in chain_of(at, parents)[:-1]}
        for at in own:
            if at in carried:
                continue
            line = chain_of(at, parents)
            inner = tuple(place for place in line if place in own)
            found.append(
                Place(
                    number,
                    tuple(_group(block.atoms[place]) for place in inner),
                    tuple(place for place in line if place not in own),
                    inner,
                    tuple(place for place in range(len(block.atoms)) if place not in line),
                    signs[number].get(at) if signs and len(line) == 1 else None,
                )
            )
    return found


def _group(atom: Atom) -> str:
    assert isinstance(atom, Perm)
    return atom.group
