"""Values on their way through a skeleton: which units they are on, and which steps they have passed since."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from metanet.axis import Atom, Perm
from metanet.graphs.schema import NodeKind
from metanet.graphs.words import Word
from metanet.skeleton import Operation


@dataclass(frozen=True, slots=True)
class Pending:
    """An input or constant whose units are named by its first reader."""

    position: int
    kind: NodeKind


@dataclass(frozen=True, slots=True)
class Term:
    """A part of a value: units, and the steps it has passed since."""

    node: int | Pending
    path: tuple[tuple[Word, ...], ...] = ()

    def step(self, words: tuple[Word, ...]) -> Term:
        """Return the term after a further step."""
        return replace(self, path=(*self.path, words))

    def words(self) -> tuple[Word, ...]:
        """Return the steps as words, the latest having order 1."""
        steps = enumerate(reversed(self.path), 1)
        return tuple(replace(word, order=order) for order, step in steps for word in step)


Flow: TypeAlias = tuple[Term, ...]
"""A value: one term, or one per part of a concatenated feature axis."""


Part: TypeAlias = tuple[int, tuple[int, ...], tuple[Atom, ...]]
"""A part of one dimension of a parameter: its number, its place in the Concats, its atoms."""


def plain(atoms: Iterable[Atom]) -> tuple[Atom, ...]:
    """Return the atoms without roles and without sizes of one."""
    return tuple(Perm(a.group) if isinstance(a, Perm) else a for a in atoms)


def groups_of(atoms: Iterable[Atom]) -> frozenset[str]:
    """Return the groups among atoms."""
    return frozenset(atom.group for atom in atoms if isinstance(atom, Perm))


def is_pending(flow: Flow) -> bool:
    """Return whether no units of a value are named yet."""
    return all(isinstance(term.node, Pending) for term in flow)


def counts_groups(atoms: Sequence[Atom], i: int, op: Operation) -> bool:
    """Return whether a dimension counts the groups of a grouped convolution."""
    atom = atoms[i]
    return isinstance(atom, Perm) or atom.size == op.attribute("groups")


def is_constant(term: Term) -> bool:
    """Return whether a term is a constant whose units are not named yet."""
    return isinstance(term.node, Pending) and term.node.kind == "constant"


def common(first: Sequence[Atom], second: Sequence[Atom]) -> list[tuple[int, int]]:
    """Return pairs of positions of equal atoms, each position once."""
    left = list(range(len(second)))
    pairs = []
    for i, atom in enumerate(first):
        j = next((j for j in left if second[j] == atom), None)
        if j is not None:
            left.remove(j)
            pairs.append((i, j))
    return pairs


def find(
    units: Sequence[Atom], atoms: Sequence[Atom], places: tuple[list[int], list[int]]
) -> list[int | None]:
    """Return, for every axis of some units, the dimension of a parameter that indexes it.

    Args:
        units: axes of the units.
        atoms: of the parameter's block.
        places: its dimensions to look at first; and those to look at then.
    """
    left = (list(places[0]), list(places[1]))
    result: list[int | None] = []
    for atom in units:
        found = next((i for i in left[0] if atoms[i] == atom), None)
        if found is None:
            found = next((i for i in left[1] if atoms[i] == atom), None)
        for side in left:
            if found in side:
                side.remove(found)
        result.append(found)
    return result


def kind_word(kind: str) -> Word:
    """Return the word for the kind of a block."""
    return Word(0, "site", kind)


def path_words(path: tuple[int, ...]) -> tuple[Word, ...]:
    """Return the words for the place of a part in the Concats of an axis."""
    return tuple(Word(0, f"part.{level}" if level else "part", part) for level, part in enumerate(path))


def part_words(parts: Sequence[Part]) -> tuple[Word, ...]:
    """Return the words for the places of a parameter's block in the Concats of its axes."""
    return tuple(
        Word(0, f"part.{dim}.{level}", part)
        for dim, (_, path, _) in enumerate(parts)
        for level, part in enumerate(path)
    )
