"""Index labels: which dimensions of an operation's tensors run together, as the letters of an einsum do.

`metanet.nesting.readers.labels_of` reads an operation as one or more steps. In a step every dimension of
every tensor has a label; dimensions of one label have one index, and a result at given indices depends on its
operands

- pointwise along labels that the result has,
- symmetrically along every *stage*: a set of labels that is summed, normalised or contracted together, so
  that any reordering of their joint index changes nothing.

Kinds of operations that are not listed have no steps, and nothing is concluded about them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from metanet.axis import Axis, Concat, Fixed, Product, axis_size, concat, product
from metanet.skeleton import Operation

Label: TypeAlias = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Line:
    """One dimension of a tensor, or a factor of one.

    Args:
        axis: its axis.
        label: of its index.
        dim: the dimension it is, or is a factor of.
    """

    axis: Axis
    label: Label
    dim: int


@dataclass(frozen=True, slots=True)
class Step:
    """What one operation does along its labels.

    Args:
        tensors: operands and result, each as lines.
        stages: sets of labels along which it is symmetric, jointly within a set.
    """

    tensors: tuple[tuple[Line, ...], ...]
    stages: tuple[frozenset[Label], ...] = ()


class Unreadable(Exception):
    """The tensors of an operation do not have the form that its kind lets expect."""


@dataclass(slots=True)
class Tensors:
    """The tensors of one operation.

    Args:
        op: the operation.
        inputs: axes of the values that it reads.
        parameters: axes of its parameters, by role.
        sizes: of the groups.
    """

    op: Operation
    inputs: list[tuple[Axis, ...]]
    parameters: dict[str, tuple[Axis, ...]]
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def result(self) -> tuple[Axis, ...]:
        """Axes of the result."""
        return self.op.axes

    def size(self, axis: Axis) -> int:
        """Return the number of indices of an axis."""
        return axis_size(axis, self.sizes)

    def named(self, *names: str) -> dict[str, tuple[Axis, ...]]:
        """Return the arguments by name: parameters by role, values in order for the names that are left."""
        left = [name for name in names if name not in self.parameters]
        if len(self.inputs) > len(left):
            raise Unreadable
        return {**self.parameters, **dict(zip(left, self.inputs, strict=False))}

    def integer(self, name: str, default: int | None = None) -> int:
        """Return an attribute that is a number."""
        value = self.op.attribute(name, default)
        if not isinstance(value, int):
            raise Unreadable
        return value

    def factor(self, axis: Axis, outer: int) -> tuple[Axis, Axis]:
        """Split an axis in two row-major factors, the outer one of a given size."""
        size = self.size(axis)
        if outer == size:
            return axis, Fixed(1)
        if outer == 1:
            return Fixed(1), axis
        if isinstance(axis, Fixed) and size % outer == 0:
            return Fixed(outer), Fixed(size // outer)
        if isinstance(axis, Product):
            first, rest = axis.axes[0], product(*axis.axes[1:])
            n = self.size(first)
            if outer % n == 0:
                head, tail = self.factor(rest, outer // n)
                return product(first, head), tail
            if n % outer == 0:
                head, tail = self.factor(first, outer)
                return head, product(tail, rest)
        if isinstance(axis, Concat) and size % outer == 0:
            inner = size // outer
            if all(self.size(part) % inner == 0 for part in axis.axes):
                halves = [self.factor(part, self.size(part) // inner) for part in axis.axes]
                if len({tail for _, tail in halves}) == 1:
                    return concat(*(head for head, _ in halves)), halves[0][1]
        raise Unreadable

    def part(self, axis: Axis, start: int, stop: int) -> Axis:
        """Return the part of an axis between two positions."""
        size = self.size(axis)
        if (start, stop) == (0, size):
            return axis
        if start == stop:
            return Fixed(0)
        if isinstance(axis, Fixed):
            return Fixed(stop - start)
        if isinstance(axis, Concat):
            found, at = [], 0
            for part in axis.axes:
                n = self.size(part)
                low, high = max(start - at, 0), min(stop - at, n)
                if low < high:
                    found.append(self.part(part, low, high))
                at += n
            return concat(*found)
        if isinstance(axis, Product):
            stride = size // self.size(axis.axes[0])
            if start % stride == 0 == stop % stride:
                return product(self.part(axis.axes[0], start // stride, stop // stride), *axis.axes[1:])
        raise Unreadable


def lines(axes: Sequence[Axis], labels: Sequence[Label]) -> tuple[Line, ...]:
    """Return the lines of a tensor whose dimensions have these labels."""
    if len(axes) != len(labels):
        raise Unreadable
    return tuple(Line(axis, label, dim) for dim, (axis, label) in enumerate(zip(axes, labels, strict=True)))


def numbered(letter: str, count: int) -> list[Label]:
    """Return labels ``(letter, 0)``, ``(letter, 1)``, …"""
    return [(letter, i) for i in range(count)]


def aligned(axes: Sequence[Axis], letter: str = "r", drop: int = 0) -> list[Label]:
    """Return labels that count dimensions from the right, as broadcasting does."""
    return [(letter, len(axes) + drop - 1 - i) for i in range(len(axes))]


def split_lines(
    place: Sequence[Line], dim: int, halves: tuple[Axis, Axis], labels: tuple[Label, Label]
) -> tuple[Line, ...]:
    """Put two factors in place of a dimension."""
    new = tuple(Line(axis, label, dim) for axis, label in zip(halves, labels, strict=True))
    return tuple(line for old in place for line in (new if old.dim == dim else (old,)))


Reader: TypeAlias = Callable[[Tensors], list[Step]]
READERS: dict[str, Reader] = {}
"""Kind of operation -> what it does along its labels."""


def reader(*kinds: str) -> Callable[[Reader], Reader]:
    """Register a function for kinds of operations."""

    def register(function: Reader) -> Reader:
        READERS.update(dict.fromkeys(kinds, function))
        return function

    return register
