"""The axis algebra: what the indices of one tensor dimension stand for.

An axis is a tree of four nodes (`Fixed`, `Perm`, `Product`, `Concat`) kept in a normal form, so that two
axes mean the same exactly when they compare equal. The notation is einops-like::

    49            Fixed: indices with a meaning of their own
    h1  h1'  h1+  Perm: units of group h1, as written (h1), as read (h1'), as shifted by a phase (h1+)
    (c9 49)       Product, row-major: c9 outer, 49 inner
    [q | k | v]   Concat: laid end to end
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Literal, TypeAlias

Role = Literal["out", "in", "bias"]
"""How an entry meets the units: it writes them (row), reads them (column), or is added to them (bias)."""

ROLE_MARKS: dict[Role, str] = {"out": "", "in": "'", "bias": "+"}
GROUP_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")


@dataclass(frozen=True, slots=True)
class Fixed:
    """Indices with a meaning of their own: pixels, classes, kernel offsets."""

    size: int

    def __str__(self) -> str:
        return str(self.size)


@dataclass(frozen=True, slots=True)
class Perm:
    """Indices that are interchangeable units of a group.

    The role matters only to freedoms beside permutation (a sign or a phase travels from the row of a unit
    to its readers); a `WeightSpec` drops it for groups that have none.
    """

    group: str
    role: Role = "out"

    def __str__(self) -> str:
        return self.group + ROLE_MARKS[self.role]


@dataclass(frozen=True, slots=True)
class Product:
    """Row-major product of axes; build it with `product`, which keeps the normal form."""

    axes: tuple[Axis, ...]

    def __str__(self) -> str:
        return f"({' '.join(map(str, self.axes))})"


@dataclass(frozen=True, slots=True)
class Concat:
    """Axes laid end to end; build it with `concat`, which keeps the normal form."""

    axes: tuple[Axis, ...]

    def __str__(self) -> str:
        return f"[{' | '.join(map(str, self.axes))}]"


Axis: TypeAlias = Fixed | Perm | Product | Concat
Atom: TypeAlias = Fixed | Perm


def product(*axes: Axis) -> Axis:
    """Return the row-major product of axes in normal form.

    Products are flattened, size-one fixed factors dropped, neighbouring fixed factors multiplied.
    """
    factors: list[Axis] = []
    for axis in axes:
        for factor in axis.axes if isinstance(axis, Product) else (axis,):
            if isinstance(factor, Fixed) and factor.size == 1:
                continue
            if isinstance(factor, Fixed) and factors and isinstance(factors[-1], Fixed):
                factors[-1] = Fixed(factors[-1].size * factor.size)
            else:
                factors.append(factor)
    if not factors:
        return Fixed(1)
    return factors[0] if len(factors) == 1 else Product(tuple(factors))


def concat(*axes: Axis) -> Axis:
    """Return the concatenation of axes in normal form: flattened, neighbouring fixed parts added."""
    parts: list[Axis] = []
    for axis in axes:
        for part in axis.axes if isinstance(axis, Concat) else (axis,):
            if isinstance(part, Fixed) and part.size == 0:
                continue
            if isinstance(part, Fixed) and parts and isinstance(parts[-1], Fixed):
                parts[-1] = Fixed(parts[-1].size + part.size)
            else:
                parts.append(part)
    if not parts:
        return Fixed(0)
    return parts[0] if len(parts) == 1 else Concat(tuple(parts))


def normalise(axis: Axis) -> Axis:
    """Return the normal form of an axis that was built by hand."""
    if isinstance(axis, Product):
        return product(*map(normalise, axis.axes))
    if isinstance(axis, Concat):
        return concat(*map(normalise, axis.axes))
    return axis


def axis_size(axis: Axis, sizes: Mapping[str, int]) -> int:
    """Return the number of indices of an axis, given the size of every group."""
    if isinstance(axis, Fixed):
        return axis.size
    if isinstance(axis, Perm):
        return sizes[axis.group]
    parts = [axis_size(part, sizes) for part in axis.axes]
    return prod(parts) if isinstance(axis, Product) else sum(parts)


def atoms(axis: Axis) -> Iterator[Atom]:
    """Yield the leaves of an axis from left to right."""
    if isinstance(axis, (Fixed, Perm)):
        yield axis
    else:
        for part in axis.axes:
            yield from atoms(part)


def axis_blocks(
    axes: Sequence[Axis],
) -> Iterator[tuple[tuple[int, ...], tuple[Atom, ...], tuple[int, ...]]]:
    """Yield what is left of some dimensions after taking one part of every Concat.

    Yields:
        The part taken of every Concat met, from left to right; the atoms; for every atom, its dimension.
    """

    def walk(
        todo: tuple[tuple[Axis, int], ...], path: tuple[int, ...], done: tuple[tuple[Atom, int], ...]
    ) -> Iterator[tuple[tuple[int, ...], tuple[Atom, ...], tuple[int, ...]]]:
        if not todo:
            yield path, tuple(atom for atom, _ in done), tuple(dim for _, dim in done)
            return
        (axis, dim), rest = todo[0], todo[1:]
        if isinstance(axis, Product):
            yield from walk((*((factor, dim) for factor in axis.axes), *rest), path, done)
        elif isinstance(axis, Concat):
            for part, inner in enumerate(axis.axes):
                yield from walk(((inner, dim), *rest), (*path, part), done)
        else:
            yield from walk(rest, path, (*done, (axis, dim)))

    return walk(tuple((axis, dim) for dim, axis in enumerate(axes)), (), ())


def bound_to(at: int, parent: str, atoms: Sequence[Atom], dims: Sequence[int]) -> int | None:
    """Return which occurrence of a group goes with another atom of a block.

    It is the nearest one left of it in the same dimension, else the only one that the block has.

    Args:
        at: position of the atom.
        parent: the group.
        atoms: of the block.
        dims: dimension of every atom.

    Returns:
        A position, or None if the block does not have the group or does not say which of several it is.
    """
    places = [i for i, atom in enumerate(atoms) if isinstance(atom, Perm) and atom.group == parent]
    left = [i for i in places if i < at and dims[i] == dims[at]]
    if left:
        return left[-1]
    return places[0] if len(places) == 1 and places[0] != at else None


def map_perms(axis: Axis, replace: Mapping[Perm, Axis]) -> Axis:
    """Return the axis with some of its `Perm` leaves replaced, in normal form."""
    if isinstance(axis, Perm):
        return replace.get(axis, axis)
    if isinstance(axis, Fixed):
        return axis
    parts = [map_perms(part, replace) for part in axis.axes]
    return product(*parts) if isinstance(axis, Product) else concat(*parts)


_TOKEN = re.compile(rf"\s*({GROUP_NAME.pattern}['+]?|\d+|[()\[\]|])")


@lru_cache(maxsize=4096)
def parse_axes(text: str) -> tuple[Axis, ...]:
    """Read a row of axes in notation, e.g. ``"[(head qk) | (head v)] embed 3 3"``.

    Raises:
        ValueError: the text is not in the notation; the message quotes it and says where.
    """
    tokens: list[tuple[str, int]] = []
    end = 0
    while text[end:].strip():
        match = _TOKEN.match(text, end)
        if match is None:
            raise ValueError(
                f"unreadable axis notation at column {end + 1} of {text!r}: {text[end:].strip()!r}"
            )
        tokens.append((match[1], match.start(1)))
        end = match.end()
    position = 0

    def peek() -> str:
        return tokens[position][0] if position < len(tokens) else ""

    def fail(expected: str) -> ValueError:
        where = f"column {tokens[position][1] + 1}" if position < len(tokens) else "the end"
        return ValueError(f"expected {expected} at {where} of {text!r}, found {peek()!r}")

    def row(closing: str) -> tuple[Axis, ...]:
        axes: list[Axis] = []
        while peek() not in (closing, "|", ""):
            axes.append(one())
        return tuple(axes)

    def one() -> Axis:
        nonlocal position
        token = peek()
        if token in ")]|":
            raise fail("a size, a group, '(' or '['")
        position += 1
        if token == "(":
            factors = row(")")
            if peek() != ")":
                raise fail("')'")
            position += 1
            return product(*factors)
        if token == "[":
            parts = [product(*row("]"))]
            while peek() == "|":
                position += 1
                parts.append(product(*row("]")))
            if peek() != "]":
                raise fail("']' or '|'")
            position += 1
            return concat(*parts)
        if token.isdigit():
            return Fixed(int(token))
        for role, mark in ROLE_MARKS.items():
            if mark and token.endswith(mark):
                return Perm(token[:-1], role)
        return Perm(token)

    axes = row("")
    if position < len(tokens):
        raise fail("the end")
    return axes
