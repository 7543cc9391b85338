"""The basis of equivariant linear maps, sorted by index signature.

Every permutation-equivariant linear map between two blocks is a combination of terms *pool over some axes,
mix channels, broadcast over some axes*, with diagonals and transpositions where a group occurs more than
once. A term factors into

    a **reading** of the input block: merge equal-group axes (diagonal), keep some of them, average the rest;
    a **writing** of the output block: the kept axes found again, diagonal or broadcast over the rest;

and the two fit whenever they keep the same multiset of groups, their **signature**. A layer therefore needs
one matrix per signature, from all readings to all writings, instead of one per pair of blocks. Where a
group is kept twice the reading carries every order of the two, the writing one: each term occurs once.

References:
    Maron, Ben-Hamu, Shamir, Lipman: Invariant and Equivariant Graph Networks (2019), arXiv:1812.09902.
    Zhou, Finn, Harrison: Universal Neural Functionals (2024), arXiv:2402.05232 (a term per pair of blocks).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations

from metanet.features import BlockLayout

Label = tuple[str, int]
"""A kept index: its group, and the position in the signature of the index it is nested under (or -1)."""


@dataclass(frozen=True, slots=True)
class View:
    """One way of reading, or of writing, a block.

    Args:
        block: number of the block.
        merged: set partition of its group axes; the axes of one class run together (a diagonal).
        kept: the classes that are kept, in the order of the signature; the rest is averaged or broadcast.
    """

    block: int
    merged: tuple[tuple[int, ...], ...]
    kept: tuple[int, ...]

    @property
    def plain(self) -> bool:
        """Whether this is the block itself: nothing merged, dropped or transposed."""
        return self.kept == tuple(range(len(self.merged))) and all(len(c) == 1 for c in self.merged)

    @property
    def dropped(self) -> tuple[int, ...]:
        """The classes that are not kept."""
        return tuple(c for c in range(len(self.merged)) if c not in self.kept)


@dataclass(frozen=True, slots=True)
class Signature:
    """All readings and writings that keep the same groups, in the same order.

    Args:
        groups: group of every kept index; empty for what is pooled altogether.
        readings: of the input blocks.
        writings: of the output blocks.
    """

    groups: tuple[str, ...]
    readings: tuple[View, ...]
    writings: tuple[View, ...]


@dataclass(frozen=True, slots=True)
class Basis:
    """The equivariant linear maps from features on some blocks to features on the same blocks.

    Args:
        layout: the blocks.
        signatures: the smallest, without indices, first.
    """

    layout: tuple[BlockLayout, ...]
    signatures: tuple[Signature, ...]

    @property
    def num_terms(self) -> int:
        """Number of terms: dim Hom_G for one channel in and out of every block."""
        return sum(len(s.readings) * len(s.writings) for s in self.signatures)

    @property
    def num_biases(self) -> int:
        """Number of constant terms: invariant vectors of the output, one channel each."""
        return len(self.signatures[0].writings)

    def num_terms_between(self, source: int, target: int) -> int:
        """Return the number of terms from one block to another."""
        return sum(
            sum(r.block == source for r in s.readings) * sum(w.block == target for w in s.writings)
            for s in self.signatures
        )


@lru_cache(maxsize=256)
def equivariant_basis(layout: tuple[BlockLayout, ...]) -> Basis:
    """Return the basis on some blocks.

    A nested index can be told apart only together with the one it is nested under: it is kept, merged and
    matched along with it, which gives the orbits of the wreath product.
    """
    found: dict[tuple[Label, ...], tuple[list[View], list[View]]] = {(): ([], [])}
    for number, block in enumerate(layout):
        for merged in partitions(block):
            for kept in kept_classes(block, merged):
                label, orders = _orders(block, merged, kept)
                readings, writings = found.setdefault(label, ([], []))
                readings.extend(View(number, merged, order) for order in orders)
                writings.append(View(number, merged, orders[0]))
    ordered = sorted(found.items(), key=lambda item: (len(item[0]), item[0]))
    return Basis(layout, tuple(_natural(layout, r, w) for _, (r, w) in ordered))


def partitions(block: BlockLayout) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Yield the set partitions of a block's axes that merge only indices of one group (and one parent)."""

    order = sorted(range(len(block.groups)), key=lambda axis: _depth(block, axis))

    def grow(done: int, classes: list[list[int]]) -> Iterator[tuple[tuple[int, ...], ...]]:
        if done == len(order):
            yield tuple(sorted(tuple(sorted(members)) for members in classes))
            return
        axis = order[done]
        for at, members in enumerate(classes):
            if block.groups[members[0]] == block.groups[axis] and _same_parent(
                block, classes, members[0], axis
            ):
                yield from grow(done + 1, [*classes[:at], [*members, axis], *classes[at + 1 :]])
        yield from grow(done + 1, [*classes, [axis]])

    yield from grow(0, [])


def _depth(block: BlockLayout, axis: int) -> int:
    """Return how many axes an axis is nested under: an index is merged after those it is nested under."""
    parent = block.parents[axis]
    return 0 if parent < 0 else 1 + _depth(block, parent)


def _same_parent(block: BlockLayout, classes: Sequence[Sequence[int]], one: int, other: int) -> bool:
    first, second = block.parents[one], block.parents[other]
    return first == second or any(first in members and second in members for members in classes)


def kept_classes(block: BlockLayout, merged: tuple[tuple[int, ...], ...]) -> Iterator[tuple[int, ...]]:
    """Yield the sets of classes that may be kept: with every nested one the class it is nested under."""
    for bits in range(2 ** len(merged)):
        kept = tuple(c for c in range(len(merged)) if bits >> c & 1)
        parents = [block.parents[merged[c][0]] for c in kept]
        if all(p < 0 or any(p in merged[c] for c in kept) for p in parents):
            yield kept


def _orders(
    block: BlockLayout, merged: tuple[tuple[int, ...], ...], kept: tuple[int, ...]
) -> tuple[tuple[Label, ...], list[tuple[int, ...]]]:
    """Return the canonical label of some kept classes, and every order of them that has it."""

    def label(order: tuple[int, ...]) -> tuple[Label, ...]:
        position = {axis: at for at, c in enumerate(order) for axis in merged[c]}
        firsts = [merged[c][0] for c in order]
        return tuple((block.groups[a], position.get(block.parents[a], -1)) for a in firsts)

    orders = list(permutations(kept))
    labels = [label(order) for order in orders]
    least = min(labels)
    return least, [order for order, found in zip(orders, labels, strict=True) if found == least]


def _natural(layout: Sequence[BlockLayout], readings: list[View], writings: list[View]) -> Signature:
    """Put the indices of a signature into the order in which its fullest block has them: no transposing."""
    first = min(writings, key=lambda view: (len(view.dropped), view.block))
    rank = sorted(range(len(first.kept)), key=lambda i: first.merged[first.kept[i]])

    def reorder(view: View) -> View:
        return View(view.block, view.merged, tuple(view.kept[i] for i in rank))

    block = layout[first.block]
    groups = tuple(block.groups[first.merged[first.kept[i]][0]] for i in rank)
    return Signature(groups, tuple(map(reorder, readings)), tuple(map(reorder, writings)))


def signature_sizes(signature: Signature, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Return the extent of every kept index."""
    return tuple(sizes[group] for group in signature.groups)
