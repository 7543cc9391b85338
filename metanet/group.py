"""GroupElement: one change of weights that a spec allows. It acts, composes and inverts.

An element permutes the units of every group and, on request, uses their other freedoms. On unit ``i`` with
permutation ``p``, factor ``s`` (signs and scales) and phase count ``k`` it does, in this order,

    row     W[i] -> s_i · W[p_i]                      (role ``out``)
    bias    b[i] -> s_i · b[p_i] + k_i · π/ω          (role ``bias``; affine only for phases)
    reader  V[:, i] -> (-1)^{k_i} / s_i · V[:, p_i]   (role ``in``; an even activation leaves readers alone)

and then what it drew for the spec's actions: first all that multiplies, then the shifts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal, Protocol, TypeVar, overload, runtime_checkable

import torch
from torch import Tensor

from metanet.action import Term
from metanet.axis import Atom, Axis, Perm, Product
from metanet.closure import induced
from metanet.elements.acting import (
    Representation,
    act_terms,
    draw_value,
    identity_value,
    invert,
    multiply_values,
    permute_value,
)
from metanet.elements.freedom import draw_freedom, factor_of, shift_of
from metanet.elements.membership import check_membership, unit_shape
from metanet.elements.wreath import (
    act_on,
    chain_source,
    combine_units,
    permute_block,
    source_index,
    spread_values,
)
from metanet.leaf import leaves_of
from metanet.spec import KINDS, FreedomKind, Kind, WeightSpec

__all__ = ["Carrier", "GroupElement", "Representation"]


@runtime_checkable
class Carrier(Protocol):
    """Anything with a spec of its own that a group element can act on (`WeightFeatures`)."""

    def act(self, element: GroupElement) -> Any:
        """Return the element's action on this object."""
        ...


CarrierT = TypeVar("CarrierT", bound=Carrier)


@dataclass(frozen=True, eq=False)
class GroupElement:
    """An element of a spec's symmetry group.

    Args:
        spec: the spec.
        permutations: group -> ``[n]`` indices ``p``: unit ``i`` of the result is unit ``p[i]`` of what it
            acts on; ``[copies, n]`` for a nested group, a row for every combination of units of its
            ancestors (`metanet.elements.wreath`). Groups that are left out stay as they are.
        freedoms: ``(group, kind) -> [n]`` or ``[copies, n]``: ±1 for sign and even, factors for scales,
            integers for phases.
        actions: number of an action among ``spec.actions`` -> its value, ``[*axes]`` (`metanet.action`).

    Raises:
        ValueError: not a permutation, or a value that the freedom does not allow.
    """

    spec: WeightSpec
    permutations: Mapping[str, Tensor]
    freedoms: Mapping[tuple[str, FreedomKind], Tensor]
    actions: Mapping[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_membership(self.spec, self.permutations, self.freedoms, self.actions)

    @classmethod
    def identity(cls, spec: WeightSpec) -> GroupElement:
        """Return the element that changes nothing."""
        return cls(spec, {}, {})

    @classmethod
    def random(
        cls,
        spec: WeightSpec,
        generator: torch.Generator | None = None,
        *,
        kinds: Iterable[Kind] | Literal["all"] = (),
        permute: bool = True,
    ) -> GroupElement:
        """Draw an element: uniform permutations, and the freedoms and actions named in ``kinds``.

        Args:
            spec: the spec.
            generator: a CPU generator; None uses torch's default one.
            kinds: freedoms to draw beside permutations; ``"all"`` for every one the spec has. Signs are fair,
                phases uniform in -3…3, scales log-uniform in [1/2, 2], matrices of condition up to 10.
            permute: False draws the other freedoms alone.

        Raises:
            ValueError: an unknown kind.
        """
        wanted = set(KINDS if kinds == "all" else kinds)
        if unknown := wanted - set(KINDS):
            raise ValueError(f"unknown freedoms {sorted(unknown)}; the known ones are {', '.join(KINDS)}")
        permutations: dict[str, Tensor] = {}
        freedoms: dict[tuple[str, FreedomKind], Tensor] = {}
        for group in spec.groups:
            shape = unit_shape(spec, group)
            if permute:
                rows = [torch.randperm(group.size, generator=generator) for _ in range(prod(shape[:-1]))]
                permutations[group.name] = torch.stack(rows).reshape(shape)
            for freedom in group.freedoms:
                if freedom.kind in wanted:
                    freedoms[group.name, freedom.kind] = draw_freedom(
                        freedom.kind, prod(shape), generator
                    ).reshape(shape)
        actions = {
            number: draw_value(action, spec.sizes, generator)
            for number, action in enumerate(spec.actions)
            if action.kind in wanted
        }
        return cls(spec, permutations, freedoms, actions)

    @overload
    def __matmul__(self, other: GroupElement) -> GroupElement: ...
    @overload
    def __matmul__(self, other: CarrierT) -> CarrierT: ...
    @overload
    def __matmul__(self, other: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    def __matmul__(self, other: Any) -> Any:
        """Compose with an element, or act on a state dict (``[*leading, *shape]`` tensors) or any carrier."""
        if isinstance(other, GroupElement):
            return self.compose(other)
        if isinstance(other, Mapping):
            return self.act(other)
        if isinstance(other, Carrier):
            return other.act(self)
        return NotImplemented

    def act(
        self, tensors: Mapping[str, Tensor], *, representation: Representation = "parameter"
    ) -> dict[str, Tensor]:
        """Act on named tensors; each may have leading dimensions before its axes (stacked models).

        Args:
            tensors: entry name -> ``[*leading, *shape]``; gradients may leave entries out.
            representation: what the tensors are: parameters, gradients, momenta or second moments.

        Raises:
            ValueError: names or shapes do not fit the spec.
        """
        spec = self.spec
        if representation != "parameter":
            spec = spec.select(name for name in spec if name in tensors)
        spec.check({name: tuple(tensor.shape) for name, tensor in tensors.items()}, leading=None)
        return {
            name: self.act_one(name, tensor, representation=representation)
            for name, tensor in tensors.items()
        }

    def act_one(self, name: str, tensor: Tensor, *, representation: Representation = "parameter") -> Tensor:
        """Act on the tensor of one entry, ``[*leading, *shape]``; its shape is not checked."""
        tensor = self.act_tensor(tensor, self.spec.axes[name], representation=representation)
        terms = [
            (self.spec.actions[number], term, self.actions[number])
            for number, term in self.spec.terms.get(name, ())
            if number in self.actions
        ]
        return act_terms(tensor, self.spec.axes[name], self.spec.sizes, terms, representation)

    def act_tensor(
        self,
        tensor: Tensor,
        axes: tuple[Axis, ...],
        *,
        dim: int | None = None,
        representation: Representation = "parameter",
    ) -> Tensor:
        """Act on one tensor whose dimensions from ``dim`` on carry the axes (default: the last ones).

        Permutations and freedoms of groups only: an action needs to know which entry it meets.
        """
        start = tensor.ndim - len(axes) if dim is None else dim
        shifts = self._shifts if representation == "parameter" else None
        return act_on(
            tensor, axes, self.spec, self.permutations, self._factors(representation), shifts, start=start
        )

    def act_block(
        self,
        tensor: Tensor,
        atoms: Sequence[Atom],
        parents: Sequence[int],
        *,
        start: int,
        representation: Representation = "parameter",
    ) -> Tensor:
        """Act on one block, as `act_tensor` does on an entry.

        Args:
            tensor: ``[*leading, *block shape, *trailing]``.
            atoms: of the block.
            parents: for every atom the position of the one that it is nested under, or -1.
            start: number of leading dimensions.
            representation: what the tensor is.
        """
        tensor = permute_block(tensor, atoms, parents, self.permutations, start=start)
        shape = tensor.shape[start : start + len(atoms)]
        trailing = (1,) * (tensor.ndim - start - len(atoms))
        factor = combine_units(atoms, parents, shape, self._factors(representation), torch.mul)
        if factor is not None:
            tensor = tensor * factor.to(tensor).reshape(*factor.shape, *trailing)
        shift = combine_units(atoms, parents, shape, self._shifts, torch.add)
        if shift is not None and representation == "parameter":
            tensor = tensor + shift.to(tensor).reshape(*shift.shape, *trailing)
        return tensor

    def index(self, *axes: Axis) -> Tensor | None:
        """Return the ``[size]`` source index of every index of an axis, or None where nothing moves.

        Several axes are taken row-major as one: a nested group may stand on another than its parent.
        """
        return source_index(axes, self.spec, self.permutations)

    def factor(self, *axes: Axis, representation: Representation = "parameter") -> Tensor | None:
        """Return the ``[size]`` multipliers (float64) along axes, or None where all are one."""
        values = spread_values(axes, self.spec, self._factors(representation), torch.mul)
        return None if values is None else values.flatten()

    def _factors(self, representation: Representation) -> Callable[[Perm], Tensor | None]:
        def unit(perm: Perm) -> Tensor | None:
            factor = self._unit_factor(perm)
            if factor is None or representation == "parameter":
                return factor
            inverse = factor.reciprocal()
            return inverse if representation in ("gradient", "momentum") else inverse.square()

        return unit

    def _unit_factor(self, perm: Perm) -> Tensor | None:
        return factor_of(self.spec.group[perm.group], self.freedoms, perm.role)

    def shift(self, *axes: Axis) -> Tensor | None:
        """Return the ``[size]`` addend (float64) along axes: kπ/ω on biases of phased units, or None."""
        values = spread_values(axes, self.spec, self._shifts, torch.add)
        return None if values is None else values.flatten()

    def _shifts(self, perm: Perm) -> Tensor | None:
        return shift_of(self.spec.group[perm.group], self.freedoms, perm.role)

    def compose(self, other: GroupElement) -> GroupElement:
        """Return ``self ∘ other``: ``(g.compose(h)) @ x == g @ (h @ x)``.

        Raises:
            ValueError: the elements belong to different specs.
        """
        if self.spec != other.spec:
            raise ValueError(f"elements of different specs do not compose: {self.spec!r} and {other.spec!r}")
        permutations: dict[str, Tensor] = {}
        freedoms: dict[tuple[str, FreedomKind], Tensor] = {}
        for group in self.spec.groups:
            name = group.name
            outer, inner = self.permutations.get(name), other.permutations.get(name)
            source = chain_source(self.spec, name, self.permutations)
            if inner is not None:
                permutations[name] = _taken(inner, source)
            elif outer is not None:
                permutations[name] = outer
            for freedom in group.freedoms:
                first, second = (
                    self.freedoms.get((name, freedom.kind)),
                    other.freedoms.get((name, freedom.kind)),
                )
                if first is None and second is None:
                    continue
                if second is not None:
                    second = _taken(second, source)
                if freedom.kind == "phase" and second is not None:
                    second = _signed(second, self._unit_factor(Perm(name, "bias")))
                if first is None or second is None:
                    freedoms[name, freedom.kind] = second if first is None else first  # type: ignore[assignment]
                else:
                    freedoms[name, freedom.kind] = (
                        first + second if freedom.kind == "phase" else first * second
                    )
        carried = {number: self._carried(number, value) for number, value in other.actions.items()}
        actions = multiply_values(self.spec.actions, self.actions, carried)
        return GroupElement(self.spec, permutations, freedoms, actions)

    def _carried(self, number: int, value: Tensor) -> Tensor:
        """Return what the value of an action becomes where this element acts after it.

        Its units are permuted; a shift is multiplied by whatever multiplies the tensors that it shifts.
        """
        spec = self.spec
        action = spec.actions[number]
        value = permute_value(action, value, spec.sizes, self.index)
        if action.kind != "shift":
            return value
        term = action.terms[0]
        axes = spec.axes[term.entry]
        if action.axes:
            factor = self.factor(Product(tuple(leaves_of(axes)[leaf].atom for leaf in term.leaves)))
            value = value if factor is None else value * factor.reshape(value.shape)
        steps = [
            (spec.actions[other], Term("", places, power), self.actions[other])
            for other, places, power in induced(term, axes, spec.actions, spec.terms[term.entry])
            if other in self.actions
        ]
        return act_terms(value, action.axes, spec.sizes, steps)

    def inverse(self) -> GroupElement:
        """Return the element that undoes this one."""
        permutations: dict[str, Tensor] = {}
        freedoms: dict[tuple[str, FreedomKind], Tensor] = {}
        for group in self.spec.groups:
            name = group.name
            source = chain_source(self.spec, name, self.permutations)
            back = None if source is None else torch.argsort(source)
            if back is not None and name in self.permutations:
                permutations[name] = (back % group.size).reshape(self.permutations[name].shape)
            for freedom in group.freedoms:
                values = self.freedoms.get((name, freedom.kind))
                if values is None:
                    continue
                if freedom.kind == "phase":
                    values = -_signed(values, self._unit_factor(Perm(name, "bias")))
                elif freedom.kind in ("scale", "positive_scale"):
                    values = values.reciprocal()
                freedoms[name, freedom.kind] = _taken(values, back)
        undone = GroupElement(self.spec, permutations, freedoms)
        for shifts in (False, True):  # shifts are carried through the inverse of all that multiplies
            carried = {
                number: undone._carried(number, invert(self.spec.actions[number], value))
                for number, value in self.actions.items()
                if (self.spec.actions[number].kind == "shift") == shifts
            }
            undone = GroupElement(self.spec, permutations, freedoms, {**undone.actions, **carried})
        return undone

    def allclose(self, other: GroupElement) -> bool:
        """Return whether two elements of one spec act alike (missing parts count as the identity)."""
        if self.spec != other.spec:
            return False
        for group in self.spec.groups:
            shape = unit_shape(self.spec, group)
            plain = torch.arange(group.size).expand(shape)
            if not torch.equal(
                self.permutations.get(group.name, plain), other.permutations.get(group.name, plain)
            ):
                return False
            for freedom in group.freedoms:
                neutral = torch.full(shape, float(freedom.kind != "phase"), dtype=torch.float64)
                key = (group.name, freedom.kind)
                mine, theirs = self.freedoms.get(key, neutral), other.freedoms.get(key, neutral)
                if not torch.allclose(mine.double(), theirs.double(), rtol=1e-12):
                    return False
        for number in {*self.actions, *other.actions}:
            still = identity_value(self.spec.actions[number], self.spec.sizes)
            mine, theirs = self.actions.get(number, still), other.actions.get(number, still)
            if not torch.allclose(mine.to(still), theirs.to(still), rtol=1e-12):
                return False
        return True

    def without(self, *groups: str) -> GroupElement:
        """Return the element that leaves some groups alone, and the actions on their units."""
        return GroupElement(
            self.spec,
            {name: p for name, p in self.permutations.items() if name not in groups},
            {(name, kind): v for (name, kind), v in self.freedoms.items() if name not in groups},
            {n: v for n, v in self.actions.items() if not set(groups) & set(self.spec.actions[n].groups)},
        )

    def __repr__(self) -> str:
        drawn = {self.spec.actions[number].kind for number in self.actions}
        kinds = sorted({kind for _, kind in self.freedoms} | drawn)
        return (
            f"GroupElement({', '.join([f'{len(self.permutations)} permutations', *kinds])} of {self.spec!r})"
        )


def _taken(values: Tensor, source: Tensor | None) -> Tensor:
    """Return values per unit, ``[n]`` or ``[copies, n]``, where their units come from."""
    return values if source is None else values.flatten()[source].reshape(values.shape)


def _signed(values: Tensor, factor: Tensor | None) -> Tensor:
    return values if factor is None else values * factor.to(values.dtype)
