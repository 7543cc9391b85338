"""Per-unit factors of a spec: every place that one factor of a unit multiplies, with its power.

Freedoms that are listed with a group act by roles, actions by their terms; here both are one table, so that
canonical forms need not tell them apart. What mixes units (linear, orthogonal, rotation) has no place here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metanet.action import Term
from metanet.axis import Atom, Perm
from metanet.freedoms.chain import chain_of, unit_leaves
from metanet.leaf import apart, leaf_view, leaves_of
from metanet.spec import WeightSpec
from metanet.units import Group

MAGNITUDES = ("scale", "positive_scale")
SIGNS = ("scale", "sign", "even")
Units = tuple[Atom, ...]
"""The axes of the values of a factor: instances first, the units last."""


@dataclass(frozen=True, slots=True)
class UnitVector:
    """One factor per unit.

    Args:
        kind: scale, positive_scale, sign or even.
        units: axes of the factor's values.
        terms: where it acts.
        plain: whether it is listed with the group.
    """

    kind: str
    units: Units
    terms: tuple[Term, ...]
    plain: bool

    def power(self, entry: str, leaf: int) -> int:
        """Return the power at a place, zero where it does not act."""
        return next((t.power for t in self.terms if t.entry == entry and t.leaves[-1] == leaf), 0)


def unit_vectors(spec: WeightSpec) -> list[UnitVector]:
    """Return all per-unit factors of a spec, phases aside."""
    found = []
    for group in spec.groups:
        for freedom in group.freedoms:
            terms = tuple(_plain_terms(spec, group, freedom.kind))
            if freedom.kind != "phase" and terms:
                units = tuple(Perm(name) for name in chain_of(spec.group, group.name))
                found.append(UnitVector(freedom.kind, units, terms, plain=True))
    found += [
        UnitVector(action.kind, action.axes, action.terms, plain=False)
        for action in spec.actions
        if action.kind in (*MAGNITUDES, *SIGNS) and action.axes and isinstance(action.axes[-1], Perm)
    ]
    return found


def _plain_terms(spec: WeightSpec, group: Group, kind: str) -> Iterator[Term]:
    reader = 0 if kind == "even" else 1 if kind == "sign" else -1
    chain = chain_of(spec.group, group.name)
    for name, axes in spec.entries:
        for number, leaf in enumerate(leaves_of(axes)):
            if isinstance(leaf.atom, Perm) and leaf.atom.group == group.name:
                leaves = unit_leaves(axes, number, chain)
                power = reader if leaf.atom.role == "in" else 1
                if leaves is not None and power:
                    yield Term(name, leaves, power)


def others(spec: WeightSpec, term: Term) -> list[int]:
    """Return the leaves along which a term's part of its entry varies beside the units."""
    leaves = leaves_of(spec.axes[term.entry])
    own = [leaves[leaf] for leaf in term.leaves]
    return [
        number for number, leaf in enumerate(leaves) if number not in term.leaves and not apart(own, [leaf])
    ]


def per_unit(spec: WeightSpec, term: Term, tensor: Tensor) -> Tensor:
    """Return ``[*leading, *units, rest]``: the values that belong to every unit at a term's place."""
    axes = spec.axes[term.entry]
    leading = tensor.ndim - len(axes)
    view, places = leaf_view(tensor, axes, term.leaves, spec.sizes)
    rest = [dim for dim in range(leading, view.ndim) if dim not in places]
    return (
        view.permute(*range(leading), *places, *rest).flatten(leading + len(places))
        if rest
        else (view.permute(*range(leading), *places).unsqueeze(-1))
    )


def multiply(spec: WeightSpec, terms: Sequence[Term], factor: Tensor, tensors: dict[str, Tensor]) -> None:
    """Multiply every place of a vector by a power of ``[*leading, *units]`` factors, in place of the dict.

    A variance v with ε is multiplied as v + ε.
    """
    fresh: dict[str, Tensor] = {}
    for term in terms:
        if term.entry not in fresh:
            fresh[term.entry] = tensors[term.entry].double().clone(memory_format=torch.contiguous_format)
        tensor = fresh[term.entry]
        axes = spec.axes[term.entry]
        leading = tensor.ndim - len(axes)
        view, places = leaf_view(tensor, axes, term.leaves, spec.sizes)
        step = placed(factor, view, places, leading) ** term.power
        if term.eps is None:
            view.mul_(step)
        else:
            view.add_(term.eps).mul_(step).sub_(term.eps)
    for name, tensor in fresh.items():
        tensors[name] = tensor.to(tensors[name].dtype)


def placed(values: Tensor, view: Tensor, places: Sequence[int], leading: int) -> Tensor:
    """Return ``[*leading, *units]`` values so that they broadcast over a view with units at some places."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    shape = [*view.shape[:leading], *([1] * (view.ndim - leading))]
    for i in order:
        shape[places[i]] = view.shape[places[i]]
    return values.permute(*range(leading), *(leading + i for i in order)).reshape(shape)


def first_of_ties(spec: WeightSpec) -> Mapping[str, str]:
    """Return, for every further name of a tied entry, its first one."""
    return {name: tie[0] for tie in spec.ties for name in tie[1:]}
