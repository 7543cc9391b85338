r"""Actions: freedoms whose reach the axes alone do not tell, each with a table of where it acts.

A sign or a phase of a group acts wherever the group stands, by the role that the axis shows (`metanet.axis`).
Other freedoms touch some occurrences of a group and leave others alone (``up`` and ``down`` of a gated MLP
but not ``gate``; a convolution and the statistics of its BatchNorm but not the gain), or mix units, or act on
fixed axes (rotary positions). An `Action` lists its `Term`\ s. A *leaf* is a `Fixed` or `Perm` atom of an
entry's axes, counted from left to right over all dimensions, parts of a Concat included::

    [(head qk) | (head qk) | (head v)] embed        leaves 0 … 6: head qk head qk head v embed

What an element draws for an action is one tensor whose dimensions are ``Action.axes`` (instances first; the
units last; matrix kinds repeat the last). Permutations of the groups among these axes permute it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal, get_args

from metanet.axis import Atom, Perm, axis_size

ActionKind = Literal["sign", "positive_scale", "scale", "shift", "linear", "orthogonal", "rotation"]
r"""What acts on the units, T being the entry seen along a term's leaves and a the value drawn for them:

================  ==========================================  ===============================================
kind              drawn value                                 on a term of power p
================  ==========================================  ===============================================
sign              ±1 per unit                                 T <- aᵖ T
positive_scale    a > 0 per unit                              T <- aᵖ T; with ``eps``: a²(T + eps) - eps
scale             a ≠ 0 per unit                              T <- aᵖ T
shift             any real number per index of ``axes``       T <- T + p a, constant along all other leaves
linear            an invertible matrix A per instance: GL(d)  T <- A T along the last leaf; p = -1: T <- A⁻ᵀ T
orthogonal        an orthogonal matrix per instance: O(d)     T <- A T along the last leaf
rotation          a complex c ≠ 0 per pair of a fixed leaf    T <- c T; p = -1: T <- T / conj(c)
================  ==========================================  ===============================================
"""

ACTION_KINDS: tuple[ActionKind, ...] = get_args(ActionKind)
MATRIX_KINDS: frozenset[ActionKind] = frozenset(("linear", "orthogonal"))
"""Kinds whose drawn value is a matrix over the last axis."""
MIXING_KINDS: frozenset[ActionKind] = MATRIX_KINDS | {"rotation"}
"""Kinds that mix the indices of the last leaf: nothing else may act along it."""
Layout = Literal["half", "interleaved"]
"""How a fixed leaf of 2n indices holds n pairs: (i, i + n) as Llama does, or (2i, 2i + 1) as GPT-J does."""


@dataclass(frozen=True, slots=True)
class Term:
    """One place where an action acts.

    Args:
        entry: the state-dict entry.
        leaves: the leaf of the entry for every one of the action's axes.
        power: exponent of the factor; -1 is the inverse (transposed for a matrix).
        eps: set for a variance v that is read as v + eps: the factor then acts on the sum.
    """

    entry: str
    leaves: tuple[int, ...]
    power: int = 1
    eps: float | None = None


@dataclass(frozen=True, slots=True)
class Action:
    """A freedom with a table of where it acts.

    Args:
        kind: what acts.
        axes: of the drawn value: instances (for instance heads), then the units. A matrix kind draws a matrix
            over the last axis for every instance; a rotation's last axis is ``Fixed(pairs)``.
        terms: where it acts; entries and leaves that are not listed stay as they are.
        layout: of the pairs of a rotation.
    """

    kind: ActionKind
    axes: tuple[Atom, ...]
    terms: tuple[Term, ...]
    layout: Layout | None = None

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups among the axes of the drawn value."""
        return tuple(axis.group for axis in self.axes if isinstance(axis, Perm))

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape of the drawn value, given the sizes of the groups."""
        shape = tuple(axis_size(axis, sizes) for axis in self.axes)
        return (*shape, shape[-1]) if self.kind in MATRIX_KINDS else shape

    def dimension(self, sizes: Mapping[str, int]) -> int:
        """Return the number of continuous parameters of the drawn value."""
        count = prod(self.shape(sizes))
        if self.kind == "sign":
            return 0
        if self.kind == "orthogonal":
            n = axis_size(self.axes[-1], sizes)
            return count // (n * n) * (n * (n - 1) // 2)
        return 2 * count if self.kind == "rotation" else count

    def __str__(self) -> str:
        return " ".join([self.kind, *map(str, self.axes), *([self.layout] if self.layout else [])])
