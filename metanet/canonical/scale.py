r"""Canonical scales and signs: the factors of units that a network does not tell apart, taken out by gauges.

A unit with factors a_1 … a_k multiplies place p by :math:`\prod_j a_j^{v_j(p)}`. As many places are chosen
as there are factors, such that the exponents :math:`v_j(p)` form an invertible matrix; the canonical member
has unit norm at each of them, and the signs that make the sum positive there. In order of preference the
places are

1. variances of a batch norm: running_var + ε = 1;
2. rows of matrices: the incoming weights of a unit have Euclidean norm one, the bias follows (ReLU and gated
   units, convolutions before a batch norm);
3. gains: one, the readers' columns take them up;
4. readers, biases, means.

A place counts only if nothing else that is not settled yet multiplies it, so that groups are settled in an
order that the network gives (from its inputs on). A unit whose norm is zero at a chosen place, or whose sum
is, is left as it is and counted; so are groups without enough places (a square map of a stream to itself).

References:
    Neyshabur, Salakhutdinov & Srebro 2015, Path-SGD, https://arxiv.org/abs/1506.02617 (scales of ReLU).
    Kalogeropoulos et al. 2024, Scale equivariant graph metanetworks, https://arxiv.org/abs/2406.10685.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from metanet.action import Term
from metanet.axis import Perm
from metanet.canonical.unit_vectors import (
    MAGNITUDES,
    SIGNS,
    Units,
    UnitVector,
    first_of_ties,
    multiply,
    others,
    per_unit,
    unit_vectors,
)
from metanet.freedoms.linear_forms import independent
from metanet.leaf import leaves_of
from metanet.spec import WeightSpec


@dataclass(slots=True)
class Gauges:
    """What is settled of the factors of a spec, and what is not yet.

    Args:
        spec: the spec.
        by_units: the factors, by the axes of their values.
        magnitudes: place to the units whose positive factors are not settled there.
        signs: place to the units whose signs are not settled there.
        phased: places that a phase multiplies or shifts; its own form settles them.
    """

    spec: WeightSpec
    by_units: dict[Units, list[UnitVector]] = field(default_factory=dict)
    magnitudes: dict[tuple[str, int], set[Units]] = field(default_factory=dict)
    signs: dict[tuple[str, int], set[Units]] = field(default_factory=dict)
    phased: set[tuple[str, int]] = field(default_factory=set)

    @classmethod
    def of(cls, spec: WeightSpec) -> Gauges:
        """Return the state in which nothing is settled."""
        found = cls(spec)
        for vector in unit_vectors(spec):
            found.by_units.setdefault(vector.units, []).append(vector)
            for term in vector.terms:
                place = (term.entry, term.leaves[-1])
                if vector.kind in MAGNITUDES:
                    found.magnitudes.setdefault(place, set()).add(vector.units)
                if vector.kind in SIGNS:
                    found.signs.setdefault(place, set()).add(vector.units)
        for name, axes in spec.entries:
            for number, leaf in enumerate(leaves_of(axes)):
                atom = leaf.atom
                if isinstance(atom, Perm) and atom.role != "out" and spec.group[atom.group].freedom("phase"):
                    found.phased.add((name, number))
        return found

    def settle(self, units: Units, *, signs: bool) -> None:
        """Note that the positive factors or the signs of units are settled."""
        for waiting in (self.signs if signs else self.magnitudes).values():
            waiting.discard(units)

    def settled(self, term: Term, units: Units, *, signs: bool) -> bool:
        """Return whether only the units' own factors are still free at a place."""
        tables = (self.magnitudes, self.signs) if signs else (self.magnitudes,)
        own = (term.entry, term.leaves[-1])
        if any(table.get(own, set()) - {units} for table in tables) or own in self.phased:
            return False
        if signs:
            return not self.free_around(term)
        return not any(self.magnitudes.get((term.entry, leaf)) for leaf in others(self.spec, term))

    def free_around(self, term: Term) -> bool:
        """Return whether something that is not settled multiplies a place beside the units."""
        around = [(term.entry, leaf) for leaf in others(self.spec, term)]
        return any(self.magnitudes.get(p) or self.signs.get(p) or p in self.phased for p in around)


def canonical_magnitudes(gauges: Gauges, units: Units, tensors: dict[str, Tensor]) -> Tensor | None:
    """Give units their canonical positive factors.

    Args:
        gauges: what is settled.
        units: the axes of the factors.
        tensors: entry -> ``[*leading, *shape]``; replaced in the dict.

    Returns:
        ``[*leading, *units]``: which units are degenerate and stay; None if there are not enough places.
    """
    vectors = [vector for vector in gauges.by_units[units] if vector.kind in MAGNITUDES]
    chosen = _places(gauges, units, vectors, binary=False)
    if chosen is None:
        return None
    logs, norms = [], []
    for term in chosen:
        norm = _norm(gauges.spec, term, tensors[term.entry])
        norms.append((norm > 0) & norm.isfinite())
        logs.append(norm.clamp_min(torch.finfo(torch.float64).tiny).log())
    good = torch.stack(norms).all(0)
    powers = [[vector.power(term.entry, term.leaves[-1]) for vector in vectors] for term in chosen]
    matrix = torch.tensor(powers, dtype=torch.float64)
    steps = -torch.linalg.solve(matrix, torch.stack(logs, -1).unsqueeze(-1)).squeeze(-1)
    for place, vector in enumerate(vectors):
        multiply(gauges.spec, vector.terms, torch.where(good, steps[..., place], 0.0).exp(), tensors)
    return ~good


def canonical_signs(
    gauges: Gauges, units: Units, vectors: Sequence[UnitVector], tensors: dict[str, Tensor]
) -> Tensor | None:
    """Give units their canonical signs; arguments and result as of `canonical_magnitudes`."""
    chosen = _places(gauges, units, vectors, binary=True)
    if chosen is None:
        return None
    sums = [per_unit(gauges.spec, t, tensors[t.entry].double()).sum(-1) for t in chosen]
    good = torch.stack([total != 0 for total in sums]).all(0)
    bits = torch.stack([total < 0 for total in sums], -1).long()
    powers = [[vector.power(term.entry, term.leaves[-1]) % 2 for vector in vectors] for term in chosen]
    inverse = _inverse_modulo_two(powers)
    flips = (bits @ torch.tensor(inverse).mT) % 2
    for place, vector in enumerate(vectors):
        factor = torch.where(good, 1.0 - 2.0 * flips[..., place].double(), 1.0)
        multiply(gauges.spec, vector.terms, factor, tensors)
    return ~good


def _norm(spec: WeightSpec, term: Term, tensor: Tensor) -> Tensor:
    values = per_unit(spec, term, tensor.double())
    if term.eps is not None:
        return (values + term.eps).mean(-1)
    return values.square().sum(-1).sqrt()


def _places(
    gauges: Gauges, units: Units, vectors: Sequence[UnitVector], *, binary: bool
) -> list[Term] | None:
    """Return as many settled places as there are vectors, with independent powers."""
    again = first_of_ties(gauges.spec)
    terms = {(t.entry, t.leaves[-1]): t for v in vectors for t in v.terms if t.entry not in again}
    candidates = sorted(
        (term for term in terms.values() if gauges.settled(term, units, signs=binary)),
        key=lambda term: _rank(gauges.spec, term),
    )
    columns: list[Mapping[int, int]] = [
        {i: vector.power(term.entry, term.leaves[-1]) for i, vector in enumerate(vectors)}
        for term in candidates
    ]
    chosen = independent([], columns, binary=binary)
    return [candidates[i] for i in chosen] if len(chosen) == len(vectors) else None


def _rank(spec: WeightSpec, term: Term) -> int:
    """Return how late a place comes in the order of preference."""
    leaf = leaves_of(spec.axes[term.entry])[term.leaves[-1]]
    roles = {role for op in spec.operations for role, entry in op.parameters if entry == term.entry}
    if term.eps is not None:
        return 0
    if isinstance(leaf.atom, Perm) and leaf.atom.role == "in":
        return 3
    if roles & {"bias", "running_mean"} or (isinstance(leaf.atom, Perm) and leaf.atom.role == "bias"):
        return 4
    if not others(spec, term):
        return 2
    return 1 if leaf.dim == 0 or not roles else 3


def _inverse_modulo_two(matrix: Sequence[Sequence[int]]) -> list[list[int]]:
    n = len(matrix)
    rows = [[*row, *(int(i == j) for j in range(n))] for i, row in enumerate(matrix)]
    for column in range(n):
        pivot = next(i for i in range(column, n) if rows[i][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for i in range(n):
            if i != column and rows[i][column]:
                rows[i] = [(a + b) % 2 for a, b in zip(rows[i], rows[column], strict=True)]
    return [row[n:] for row in rows]
