"""The registry of equations, and what an equation sees: one operation, and the exponents of what it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Literal, TypeAlias

from metanet.axis import Axis, Perm, atoms
from metanet.freedoms.linear_forms import ZERO, Form, LinearSystem
from metanet.skeleton import Operation

Mode = Literal["linear", "scale", "positive", "sign"]
"""What the unknowns mean: powers of a matrix, of any factor a ≠ 0, of a factor a > 0, or signs modulo two."""

Row: TypeAlias = tuple[Form, ...]
"""Exponents of the occurrences of the group in one dimension, from left to right."""
Alternatives: TypeAlias = Callable[[int], Sequence[Row] | None]


class Unfit(Exception):
    """An operation whose exponents cannot be told: all that it touches keeps exponent zero."""


@dataclass(frozen=True, slots=True)
class Carrier:
    """A tensor and the exponents of a group in it.

    Args:
        rows: one per dimension.
        axes: one per dimension.
        null: all its values are zero, so that any exponent is right.
        hidden: of a stacked tensor (``qkv`` as ``[3, heads, width]``), whose axes do not show the units:
            the exponents of every alternative, from left to right.
        alternatives: gives them for a number of alternatives, or None if there are not as many.
    """

    rows: tuple[Row, ...]
    axes: tuple[Axis, ...] = ()
    null: bool = False
    hidden: Row = ()
    alternatives: Alternatives | None = None

    @property
    def forms(self) -> Row:
        """All exponents from left to right, hidden ones included."""
        return (*(form for row in self.rows for form in row), *self.hidden)


Equation: TypeAlias = Callable[["Step"], "Sequence[Row] | Carrier"]
EQUATIONS: dict[str, Equation] = {}
"""Kind of operation to its equation."""


def equation(*kinds: str) -> Callable[[Equation], Equation]:
    """Register a function as the equation of kinds of operations (`metanet.rules` lists them).

    An equation demands what must hold of the exponents of what the operation reads, and returns those of its
    result, one row per dimension. A kind without one keeps every exponent it touches at zero.
    """

    def register(function: Equation) -> Equation:
        for kind in kinds:
            EQUATIONS[kind] = function
        return function

    return register


@dataclass(slots=True)
class Step:
    """One operation.

    Args:
        system: where equations go.
        mode: what is asked.
        op: the operation.
        inputs: the values it reads.
        parameters: the entries it reads, by role.
        counts: occurrences of the group in every dimension of its result.
        sizes: of the groups.
        group: the group that is asked about.
        finals: further results (final states of an lstm), by index; an equation fills it in.
    """

    system: LinearSystem
    mode: Mode
    op: Operation
    inputs: tuple[Carrier, ...]
    parameters: Mapping[str, Carrier]
    counts: tuple[int, ...]
    sizes: Mapping[str, int]
    group: str
    finals: dict[int, Carrier] = field(default_factory=dict)

    def pin(self, *rows: Iterable[Form]) -> None:
        """Demand exponents zero."""
        for row in rows:
            for form in row:
                self.system.zero(form)

    def same(self, first: Row, second: Row) -> None:
        """Demand that two rows are equal."""
        if len(first) != len(second):
            raise Unfit
        for a, b in zip(first, second, strict=True):
            self.system.equal(a, b)

    def cancel(self, first: Row, second: Row) -> None:
        """Demand that two rows add up to zero."""
        self.pin(self.total(first, second))

    def total(self, *rows: Row) -> Row:
        """Return the sum of rows; empty ones stand aside."""
        present = [row for row in rows if row]
        if len({len(row) for row in present}) > 1:
            raise Unfit
        return tuple(self.system.add(*forms) for forms in zip(*present, strict=True))

    def times(self, row: Row, factor: int | float) -> Row:
        """Return a row times a number."""
        return tuple(self.system.combine((form, Fraction(factor).limit_denominator(64))) for form in row)

    def integer(self, name: str) -> int:
        """Return an attribute that is an integer."""
        value = self.op.attribute(name)
        if not isinstance(value, int):
            raise Unfit
        return value

    def zeros(self, count: int) -> Row:
        """Return a row of zeros."""
        return (ZERO,) * count

    def function(self) -> Carrier:
        """Return the only input of an operation that has no parameters."""
        if len(self.inputs) != 1 or self.parameters:
            raise Unfit
        return self.inputs[0]

    def broadcast(self, carriers: Sequence[Carrier]) -> list[list[Row | None]]:
        """Align carriers to the dimensions of the result.

        Returns:
            For every dimension that carries the group, one row per carrier: None where it is constant along
            it (broadcast).
        """
        rank = len(self.counts)
        table: list[list[Row | None]] = []
        for dim, count in enumerate(self.counts):
            column: list[Row | None] = []
            for carrier in carriers:
                at = dim - (rank - len(carrier.rows))
                row = carrier.rows[at] if at >= 0 else ()
                if len(row) not in (0, count):
                    raise Unfit
                column.append(row or None)
            table.append(column if count else [])
        if any(len(carrier.rows) > rank for carrier in carriers):
            raise Unfit
        return table

    def sum(self, carriers: Sequence[Carrier]) -> Carrier:
        """Demand equal exponents of what is added, and return those of the sum; zero tensors stand aside."""
        if any(carrier.hidden for carrier in carriers):
            raise Unfit
        real = [carrier for carrier in carriers if not carrier.null]
        rows: list[Row] = []
        for count, column in zip(self.counts, self.broadcast(real), strict=True):
            present = [row for row in column if row is not None]
            if not count or not present:
                rows.append(self.zeros(count))
                continue
            for row in present[1:]:
                self.same(row, present[0])
            if len(present) < len(column):
                self.pin(present[0])
            rows.append(present[0])
        return Carrier(tuple(rows), null=not real)

    def product(self, carriers: Sequence[Carrier], powers: Sequence[int] | None = None) -> tuple[Row, ...]:
        """Return the exponents of a product of carriers, each to a power of 1 or -1."""
        if any(carrier.hidden for carrier in carriers):
            raise Unfit
        rows = []
        for count, column in zip(self.counts, self.broadcast(carriers), strict=True):
            present = [
                row if power == 1 else self.times(row, power)
                for row, power in zip(column, powers or [1] * len(carriers), strict=False)
                if row is not None
            ]
            if self.mode == "linear" and (len(present) > 1 or -1 in (powers or ())):
                self.pin(*present)
            rows.append(self.total(*present) if present else self.zeros(count))
        return tuple(rows)

    def contract(
        self, operands: Sequence[tuple[Sequence[str], Sequence[Row]]], result: Sequence[str]
    ) -> list[Row]:
        """Return the exponents of a product of operands that is summed over the labels it does not keep.

        What is summed over must add up to zero: rows and columns are inverse to each other.
        """
        found: dict[str, list[Row]] = {}
        for labels, rows in operands:
            if len(set(labels)) < len(labels) or len(labels) != len(rows):
                raise Unfit
            for label, row in zip(labels, rows, strict=True):
                if row:
                    found.setdefault(label, []).append(row)
        for label, rows in found.items():
            if self.mode == "linear" and len(rows) > (1 if label in result else 2):
                self.pin(*rows)
            if label not in result:
                self.pin(self.total(*rows))
        return [self.total(*found.get(label, [])) for label in result]

    def count(self, axis: Axis) -> int:
        """Return how often the group occurs in an axis."""
        return occurrences(axis, self.group)


@lru_cache(maxsize=65536)
def occurrences(axis: Axis, group: str) -> int:
    """Return how often a group occurs in an axis."""
    return sum(isinstance(atom, Perm) and atom.group == group for atom in atoms(axis))
