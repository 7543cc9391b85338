r"""Canonical phases and plain signs of units with an odd or periodic activation.

A sine unit ``v · sin(ω (w·x + b))`` keeps its function under ``(w, b, v) -> -(w, b, v)`` and under
``(b, v) -> (b + kπ/ω, (-1)^k v)``. Its canonical member is, with phase φ = ω b,

======================  ==================================================================================
where the unit stands   form
======================  ==================================================================================
first layer             w in a half-space of the (fixed) inputs, φ in [0, π)
last hidden layer       φ in [-π/2, π/2], sum of the outgoing weights over the (fixed) outputs positive
anywhere else           φ in [0, π/2], by shift and flip
======================  ==================================================================================

The first two measured better than the third as input of a metanetwork (they leave no wrap-around in w, and
small phases small). A tanh unit takes the sign that makes the sum of its incoming row and bias positive;
what comes from units whose own sign is not settled yet (recurrent, residual) does not count.

References:
    Sitzmann et al. 2020, Implicit neural representations with periodic activation functions,
    https://arxiv.org/abs/2006.09661. Kalogeropoulos et al. 2024, Scale equivariant graph metanetworks,
    https://arxiv.org/abs/2406.10685 (sign canonicalisation; its phase form leaves ω out, this one does not).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

from metanet.action import Term
from metanet.axis import Fixed, Perm, Role
from metanet.canonical.scale import Gauges
from metanet.canonical.unit_vectors import multiply, others, per_unit, placed
from metanet.freedoms.chain import chain_of, unit_leaves
from metanet.leaf import leaf_view, leaves_of
from metanet.spec import WeightSpec
from metanet.units import Group


@dataclass(slots=True)
class PlainUnits:
    """The units of one group, where they stand and in which role.

    Args:
        gauges: what is settled of the spec.
        group: the group.
        tensors: entry -> ``[*leading, *shape]``; replaced in the dict.
    """

    gauges: Gauges
    group: Group
    tensors: dict[str, Tensor]

    @property
    def spec(self) -> WeightSpec:
        """The spec."""
        return self.gauges.spec

    def terms(self, *roles: Role) -> list[Term]:
        """Return the places where the units have one of some roles."""
        found = []
        chain = chain_of(self.spec.group, self.group.name)
        for name, axes in self.spec.entries:
            for number, leaf in enumerate(leaves_of(axes)):
                atom = leaf.atom
                if isinstance(atom, Perm) and atom.group == self.group.name and atom.role in roles:
                    leaves = unit_leaves(axes, number, chain)
                    if leaves is not None:
                        found.append(Term(name, leaves))
        return found

    def values(self, term: Term) -> Tensor:
        """Return ``[*leading, *units, rest]`` values at a place."""
        return per_unit(self.spec, term, self.tensors[term.entry])

    def fixed_neighbour(self, role: Role) -> Tensor | None:
        """Return ``[*leading, *units, fixed]`` weights to fixed axes, if a role has no others."""
        found = self.terms(role)
        if len(found) != 1:
            return None
        leaves = leaves_of(self.spec.axes[found[0].entry])
        if not all(isinstance(leaves[leaf].atom, Fixed) for leaf in others(self.spec, found[0])):
            return None
        return self.values(found[0])

    def phase(self) -> Tensor | None:
        """Return ``[*leading, *units]`` phases of the first bias, the mean where a unit has several."""
        freedom = self.group.freedom("phase")
        assert freedom is not None
        assert freedom.parameter is not None
        for term in self.terms("bias"):
            if self.gauges.free_around(term):
                continue
            return self.values(term).double().mean(-1) * freedom.parameter
        return None

    def row_sum(self) -> Tensor | None:
        """Return ``[*leading, *units]`` sums of what comes in settled; None if nothing does."""
        total: Tensor | None = None
        for term in [*self.terms("out"), *self.terms("bias")]:
            if not self.gauges.free_around(term):
                step = self.values(term).double().sum(-1)
                total = step if total is None else total + step
        return total

    def flip(self, sign: Tensor) -> None:
        """Multiply rows, biases and readers by signs."""
        multiply(self.spec, self.terms("out", "bias", "in"), sign, self.tensors)

    def turn(self, counts: Tensor) -> None:
        """Shift biases by kπ/ω and multiply readers by (-1)ᵏ."""
        freedom = self.group.freedom("phase")
        assert freedom is not None
        assert freedom.parameter is not None
        multiply(self.spec, self.terms("in"), 1.0 - 2.0 * (counts.double() % 2), self.tensors)
        for term in self.terms("bias"):
            tensor = self.tensors[term.entry]
            shifted = tensor.double().clone(memory_format=torch.contiguous_format)
            leading = tensor.ndim - len(self.spec.axes[term.entry])
            view, places = leaf_view(shifted, self.spec.axes[term.entry], term.leaves, self.spec.sizes)
            view.add_(placed(counts.double() * (pi / freedom.parameter), view, places, leading))
            self.tensors[term.entry] = shifted.to(tensor.dtype)


def canonical_phase(units: PlainUnits) -> Tensor | None:
    """Give units their canonical phases, and signs if they have these.

    Returns:
        ``[*leading, *units]``: which units lie on a cut, where the form is not unique; None if no phase can
        be read yet.
    """
    phase = units.phase()
    if phase is None:
        return None
    flips = units.group.freedom("sign") is not None
    inputs = units.fixed_neighbour("out")
    if flips and inputs is not None:
        first = inputs[..., 0]
        sign = positive(first)
        units.flip(sign)
        units.turn(-torch.floor(sign * phase / pi))
        return first == 0
    outputs = units.fixed_neighbour("in")
    if flips and outputs is not None:
        units.turn(-torch.floor(phase / pi + 0.5))
        outputs = units.fixed_neighbour("in")
        assert outputs is not None
        total = outputs.sum(-1)
        units.flip(positive(total))
        return total == 0
    turns = torch.floor(phase / pi)
    units.turn(-turns)
    if not flips:
        return torch.zeros_like(phase, dtype=torch.bool)
    left = phase - turns * pi
    high = left > pi / 2
    units.flip(1.0 - 2.0 * high.double())
    units.turn(high.double())
    return (left == 0) | (left == pi / 2)


def canonical_sign(units: PlainUnits) -> Tensor | None:
    """Give units their canonical signs; result as of `canonical_phase`."""
    total = units.row_sum()
    if total is None:
        return None
    units.flip(positive(total))
    return total == 0


def positive(values: Tensor) -> Tensor:
    """Return -1 where values are negative, 1 elsewhere (float64)."""
    return torch.where(values < 0, -1.0, 1.0).double()
