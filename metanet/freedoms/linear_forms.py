"""Sparse homogeneous linear equations, solved as they come, over the rationals or modulo two.

An unknown is a number; a linear form is a mapping from unknowns to coefficients. Every equation eliminates
its newest unknown, so that what remains is said in terms of the unknowns that were made first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fractions import Fraction
from math import gcd, lcm
from typing import TypeAlias, TypeVar

Form: TypeAlias = Mapping[int, "int | Fraction"]
Key = TypeVar("Key")

ZERO: Form = {}


class LinearSystem:
    """Unknowns, and the equations that are known of them.

    Args:
        binary: compute modulo two instead of over the rationals.
    """

    def __init__(self, *, binary: bool = False) -> None:
        self.binary = binary
        self._count = 0
        self._solved: dict[int, Form] = {}

    def unknown(self) -> Form:
        """Return a new unknown."""
        self._count += 1
        return {self._count - 1: 1}

    def combine(self, *terms: tuple[Form, int | Fraction]) -> Form:
        """Return the sum of forms, each times a number."""
        total: dict[int, int | Fraction] = {}
        for form, factor in terms:
            for unknown, coefficient in form.items():
                total[unknown] = total.get(unknown, 0) + coefficient * factor
        return self._proper(total)

    def add(self, *forms: Form) -> Form:
        """Return the sum of forms."""
        return forms[0] if len(forms) == 1 else self.combine(*((form, 1) for form in forms))

    def reduce(self, form: Form) -> Form:
        """Return a form in unknowns that no equation has eliminated."""
        while any(unknown in self._solved for unknown in form):
            form = self.combine(
                *(
                    (self._solved[unknown], coefficient)
                    if unknown in self._solved
                    else ({unknown: 1}, coefficient)
                    for unknown, coefficient in form.items()
                )
            )
        return form

    def zero(self, form: Form) -> None:
        """Add the equation form = 0."""
        form = self.reduce(form)
        if not form:
            return
        pivot = max(form)
        factor = Fraction(-1) / form[pivot] if form[pivot] not in (1, -1) else -form[pivot]
        rest = ((unknown, coefficient) for unknown, coefficient in form.items() if unknown != pivot)
        self._solved[pivot] = self._proper({unknown: coefficient * factor for unknown, coefficient in rest})

    def equal(self, first: Form, second: Form) -> None:
        """Add the equation first = second."""
        if first is not second:
            self.zero(self.combine((first, 1), (second, -1)))

    def _proper(self, form: Mapping[int, int | Fraction]) -> Form:
        if self.binary:
            return {unknown: 1 for unknown, coefficient in form.items() if coefficient % 2}
        return {unknown: coefficient for unknown, coefficient in form.items() if coefficient}

    def solutions(self, unknowns: Mapping[Key, Form]) -> list[dict[Key, int]]:
        """Return a basis of the solutions, as integral values without common factor, zeros left out.

        Args:
            unknowns: those whose values are wanted; they must have been made before all others.
        """
        found: dict[int, dict[Key, int | Fraction]] = {}
        for key, form in unknowns.items():
            for free, coefficient in self.reduce(form).items():
                found.setdefault(free, {})[key] = coefficient
        return [primitive(found[free]) for free in sorted(found)]


def primitive(vector: Mapping[Key, int | Fraction]) -> dict[Key, int]:
    """Return the shortest integral multiple of a rational vector; its first value is positive."""
    scale = lcm(*(Fraction(value).denominator for value in vector.values()))
    values = {key: int(value * scale) for key, value in vector.items() if value}
    divisor = gcd(*values.values())
    if values and next(iter(values.values())) < 0:
        divisor = -divisor
    return {key: value // divisor for key, value in values.items()}


def independent(
    known: Iterable[Mapping[Key, int]], candidates: Sequence[Mapping[Key, int]], *, binary: bool = False
) -> list[int]:
    """Return which candidates, taken in order, do not depend on the known vectors and those before them."""
    numbers: dict[Key, int] = {}
    rows: dict[int, Form] = {}

    def remainder(vector: Mapping[Key, int]) -> dict[int, int | Fraction]:
        left: dict[int, int | Fraction] = {}
        for key, number in vector.items():
            left[numbers.setdefault(key, len(numbers))] = number % 2 if binary else number
        left = {place: value for place, value in left.items() if value}
        for pivot in sorted(rows):
            if factor := left.get(pivot):
                for place, value in rows[pivot].items():
                    after = left.get(place, 0) - factor * value
                    after = after % 2 if binary else after
                    if after:
                        left[place] = after
                    else:
                        left.pop(place, None)
        return left

    def take(vector: Mapping[Key, int]) -> bool:
        left = remainder(vector)
        if not left:
            return False
        pivot = min(left)
        scale = Fraction(1) / left[pivot]
        fresh = {place: int(value) if binary else value * scale for place, value in left.items()}
        for other, row in rows.items():
            if factor := row.get(pivot):
                merged = {p: row.get(p, 0) - factor * fresh.get(p, 0) for p in {*row, *fresh}}
                rows[other] = {
                    p: v % 2 if binary else v for p, v in merged.items() if (v % 2 if binary else v)
                }
        rows[pivot] = fresh
        return True

    for vector in known:
        take(vector)
    return [number for number, vector in enumerate(candidates) if take(vector)]


def sparse(
    vectors: Sequence[Mapping[Key, int]],
    known: Sequence[Mapping[Key, int]] = (),
    avoided: Collection[Key] = (),
    *,
    binary: bool = False,
) -> list[dict[Key, int]]:
    """Return vectors of smaller support that span, with the known ones, the same.

    Each is replaced by its sum or difference with another as long as that has fewer non-zero values at keys
    that are better avoided, fewer values at all, or smaller ones.
    """
    result = [dict(vector) for vector in vectors]
    changed = True
    while changed:
        changed = False
        for i, vector in enumerate(result):
            others = [*known, *(other for j, other in enumerate(result) if j != i)]
            for other in others:
                if vector.keys().isdisjoint(other):
                    continue
                for sign in (1,) if binary else (-1, 1):
                    total = {k: vector.get(k, 0) + sign * other.get(k, 0) for k in {**vector, **other}}
                    total = {k: v % 2 if binary else v for k, v in total.items() if (v % 2 if binary else v)}
                    if total and _cost(total, avoided) < _cost(vector, avoided):
                        result[i] = vector = total if binary else primitive(total)
                        changed = True
    return result


def _cost(vector: Mapping[Key, int], avoided: Collection[Key]) -> tuple[int, int, int]:
    return sum(key in avoided for key in vector), len(vector), sum(map(abs, vector.values()))
