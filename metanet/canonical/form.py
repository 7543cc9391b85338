r"""Canonical forms: the per-unit freedoms of a spec taken out exactly, so that permutation alone is left.

Factors (ReLU and gated units, gains of norms, statistics of a batch norm, signs of recurrent cells) take the
form of `metanet.canonical.scale`, phases of sines and cosines and plain signs that of
`metanet.canonical.phase`. The form keeps the function, is idempotent, constant on the orbit of what it takes
out and commutes with permutations. It is discontinuous at its cuts; noise or a random element as augmentation
smooths that. What mixes units (GL, O, rotations) and shifts of whole layers stay: they are the metanetwork's
and the matching's work.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from torch import Tensor

from metanet.axis import Perm
from metanet.blocks import entry_blocks
from metanet.canonical.phase import PlainUnits, canonical_phase, canonical_sign
from metanet.canonical.scale import Gauges, canonical_magnitudes, canonical_signs
from metanet.canonical.unit_vectors import MAGNITUDES, SIGNS, Units
from metanet.freedoms.chain import chain_of
from metanet.leaf import leaves_of
from metanet.spec import WeightSpec
from metanet.units import Group

if TYPE_CHECKING:
    from metanet.features import WeightFeatures


@dataclass(frozen=True, slots=True)
class LeftUnits:
    """Units that a canonical form leaves as they are.

    Args:
        group: their group.
        freedom: what is left of them: magnitude, sign or phase.
        count: how many units, of all models together.
        reason: why.
    """

    group: str
    freedom: str
    count: int
    reason: str

    def __str__(self) -> str:
        return f"{self.count} units of {self.group} keep their {self.freedom}: {self.reason}"


@dataclass(frozen=True, slots=True)
class CanonicalForm:
    """Canonical weights, and the units that are left.

    Args:
        weights: entry -> ``[*leading, *shape]``.
        left: the units whose freedoms could not be taken out.
    """

    weights: Mapping[str, Tensor]
    left: tuple[LeftUnits, ...]


@overload
def canonicalize(spec: WeightSpec, weights: WeightFeatures) -> WeightFeatures: ...
@overload
def canonicalize(spec: WeightSpec, weights: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
def canonicalize(
    spec: WeightSpec, weights: WeightFeatures | Mapping[str, Tensor]
) -> WeightFeatures | dict[str, Tensor]:
    """Return the canonical member of the orbit of the weights under signs, phases and scales.

    Args:
        spec: the spec; groups without these freedoms are left alone.
        weights: a state dict (each tensor ``[*leading, *shape]``) or features of one channel.

    Returns:
        The same kind of object; the function it stands for is unchanged. `canonical_form` also tells which
        units it leaves.

    Raises:
        ValueError: names or shapes do not fit the spec.
    """
    if not isinstance(weights, Mapping):
        canonical = canonicalize(spec, weights.to_state_dict())
        return type(weights).from_state_dict(spec, canonical, batched=weights.batched)
    return dict(canonical_form(spec, weights).weights)


def canonical_form(spec: WeightSpec, weights: Mapping[str, Tensor]) -> CanonicalForm:
    """Return the canonical weights, and count and name the units that are left.

    Args:
        spec: the spec.
        weights: entry -> ``[*leading, *shape]``.

    Raises:
        ValueError: names or shapes do not fit the spec.
    """
    spec.check({name: tuple(tensor.shape) for name, tensor in weights.items()}, leading=None)
    sweep = _Sweep(spec, dict(weights))
    pending = sweep.stages()
    while pending:
        waiting = [stage for stage in pending if not sweep.settle(*stage)]
        if len(waiting) == len(pending):
            break
        pending = waiting
    for units, freedom in pending:
        name = _group(units)
        reason = "other units that are not settled multiply all that they are written by"
        sweep.left.append(LeftUnits(name, freedom, sweep.number(units), reason))
    return CanonicalForm(sweep.tensors, tuple(sweep.left))


def _group(units: Units) -> str:
    last = units[-1]
    assert isinstance(last, Perm)
    return last.group


class _Sweep:
    """Settles freedoms one after the other, in the order in which the network writes its units."""

    def __init__(self, spec: WeightSpec, tensors: dict[str, Tensor]) -> None:
        self.spec = spec
        self.tensors = tensors
        self.gauges = Gauges.of(spec)
        self.left: list[LeftUnits] = []
        self.models = 1
        for name, axes in spec.entries:
            leading = tensors[name].shape[: tensors[name].ndim - len(axes)]
            self.models = leading.numel()

    def stages(self) -> list[tuple[Units, str]]:
        """Return what is to be settled, in order."""
        found: list[tuple[Units, str]] = []
        for group in _written_order(self.spec):
            chain = tuple(Perm(name) for name in chain_of(self.spec.group, group.name))
            keys = [units for units in self.gauges.by_units if _group(units) == group.name]
            if group.freedom("phase") and chain not in keys:
                keys.append(chain)
            for units in keys:
                kinds = {vector.kind for vector in self.gauges.by_units.get(units, ())}
                if kinds & set(MAGNITUDES):
                    found.append((units, "magnitude"))
                if kinds & set(SIGNS) - ({"sign"} if self.phased(units) else set()):
                    found.append((units, "sign"))
                if self.phased(units):
                    found.append((units, "phase"))
        return found

    def phased(self, units: Units) -> bool:
        """Return whether units have phases by role."""
        name = _group(units)
        chain = tuple(Perm(parent) for parent in chain_of(self.spec.group, name))
        return units == chain and self.spec.group[name].freedom("phase") is not None

    def number(self, units: Units) -> int:
        """Return the number of units of all models."""
        count = self.models
        for axis in units:
            count *= self.spec.sizes[axis.group] if isinstance(axis, Perm) else axis.size
        return count

    def settle(self, units: Units, freedom: str) -> bool:
        """Settle one freedom of units if it can be told by now; return whether it could."""
        group = self.spec.group[_group(units)]
        vectors = [v for v in self.gauges.by_units.get(units, ()) if v.kind in SIGNS]
        if freedom == "magnitude":
            left = canonical_magnitudes(self.gauges, units, self.tensors)
            reason = "a norm that is to be one is zero"
        elif freedom == "phase":
            left = canonical_phase(PlainUnits(self.gauges, group, self.tensors))
            reason = "they lie on a cut of the form"
        elif not self.phased(units) and [(v.kind, v.plain) for v in vectors] == [("sign", True)]:
            left = canonical_sign(PlainUnits(self.gauges, group, self.tensors))
            reason = "a sum that is to be positive is zero"
        else:
            rest = [v for v in vectors if not (self.phased(units) and v.plain and v.kind == "sign")]
            left = canonical_signs(self.gauges, units, rest, self.tensors)
            reason = "a sum that is to be positive is zero"
        if left is None:
            return False
        if left.any():
            self.left.append(LeftUnits(group.name, freedom, int(left.sum()), reason))
        if freedom == "phase":
            self.gauges.phased -= {
                (name, number)
                for name, axes in self.spec.entries
                for number, leaf in enumerate(leaves_of(axes))
                if isinstance(leaf.atom, Perm) and leaf.atom.group == group.name
            }
        if freedom == "magnitude" or not self.phased(units) or freedom == "phase":
            self.gauges.settle(units, signs=freedom != "magnitude")
        return True


def _written_order(spec: WeightSpec) -> list[Group]:
    """Return the groups in the order in which the network writes them: incoming signs are settled first."""
    order: dict[str, None] = {}
    written = [entry for operation in spec.operations for _, entry in operation.parameters]
    for name in [*written, *spec]:
        for block in entry_blocks(name, spec.axes[name]):
            for atom in block.atoms:
                if isinstance(atom, Perm) and atom.role != "in":
                    order.setdefault(atom.group)
    return [spec.group[name] for name in [*order, *(n for n in spec.group if n not in order)]]
