r"""Canonical forms: the per-unit freedoms of a spec taken out exactly, so that permutation alone is left.

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
what comes from units whose own sign is not settled yet (recurrent, residual) does not count, and a unit that
receives nothing else is left as it is.
The form keeps the function, is idempotent, constant on the orbit of these freedoms and commutes with
permutations. It is discontinuous at the cut; noise or a random element as augmentation smooths that.

References:
    Sitzmann et al. 2020, Implicit neural representations with periodic activation functions,
    https://arxiv.org/abs/2006.09661. Kalogeropoulos et al. 2024, Scale equivariant graph metanetworks,
    https://arxiv.org/abs/2406.10685 (sign canonicalisation; its phase form leaves ω out, this one does not).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import pi
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from metanet.axis import Atom, Fixed, Perm, Role
from metanet.blocks import entry_blocks, split
from metanet.freedom import phase_shift, spread, unit_factor
from metanet.spec import FreedomKind, Group, WeightSpec

if TYPE_CHECKING:
    from metanet.features import WeightFeatures


@overload
def canonicalize(spec: WeightSpec, weights: WeightFeatures) -> WeightFeatures: ...
@overload
def canonicalize(spec: WeightSpec, weights: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
def canonicalize(
    spec: WeightSpec, weights: WeightFeatures | Mapping[str, Tensor]
) -> WeightFeatures | dict[str, Tensor]:
    """Return the canonical member of the orbit of the weights under signs and phases.

    Args:
        spec: the spec; groups without these freedoms are left alone.
        weights: a state dict (each tensor ``[*leading, *shape]``) or features of one channel.

    Returns:
        The same kind of object; the function it stands for is unchanged.

    Raises:
        ValueError: names or shapes do not fit the spec.
    """
    if not isinstance(weights, Mapping):
        canonical = canonicalize(spec, weights.to_state_dict())
        return type(weights).from_state_dict(spec, canonical, batched=weights.batched)
    spec.check({name: tuple(tensor.shape) for name, tensor in weights.items()}, leading=None)
    tensors = dict(weights)
    settled = {group.name for group in spec.groups if not group.freedoms}
    for group in _sweep(spec):
        if group.freedom("phase"):
            phase = _phase(spec, group, settled, tensors)
            if phase is None:
                continue
            _canonicalize_phase(spec, group, phase, tensors)
        elif group.freedom("sign"):
            total = _row_sum(spec, group, settled, tensors)
            if total is None:
                continue
            _apply(spec, group, "sign", _sign(total), tensors)
        settled.add(group.name)
    return tensors


def _sweep(spec: WeightSpec) -> list[Group]:
    """Return the groups in the order in which the network writes them: incoming signs are settled first."""
    order: dict[str, None] = {}
    written = [entry for operation in spec.operations for _, entry in operation.parameters]
    for name in [*written, *spec]:
        for block in entry_blocks(name, spec.axes[name]):
            for atom in block.atoms:
                if isinstance(atom, Perm) and atom.role != "in":
                    order.setdefault(atom.group)
    return [spec.group[name] for name in order]


def _canonicalize_phase(spec: WeightSpec, group: Group, phase: Tensor, tensors: dict[str, Tensor]) -> None:
    flips = group.freedom("sign") is not None
    inputs = _fixed_neighbour(spec, group, "out", tensors)
    if flips and inputs is not None:
        sign = _sign(inputs[..., 0])
        _apply(spec, group, "sign", sign, tensors)
        _apply(spec, group, "phase", -torch.floor(sign * phase / pi), tensors)
        return
    outputs = _fixed_neighbour(spec, group, "in", tensors)
    if flips and outputs is not None:
        _apply(spec, group, "phase", -torch.floor(phase / pi + 0.5), tensors)
        outputs = _fixed_neighbour(spec, group, "in", tensors)
        assert outputs is not None
        _apply(spec, group, "sign", _sign(outputs.sum(-1)), tensors)
        return
    turns = torch.floor(phase / pi)
    _apply(spec, group, "phase", -turns, tensors)
    if flips:
        high = phase - turns * pi > pi / 2
        _apply(spec, group, "sign", 1.0 - 2.0 * high.double(), tensors)
        _apply(spec, group, "phase", high.double(), tensors)


def _occurrences(
    spec: WeightSpec, group: Group, role: Role, tensors: Mapping[str, Tensor]
) -> list[tuple[list[Atom], Tensor]]:
    """Return the other atoms and the weights ``[*leading, *others, n]`` where the units have a role."""
    found = []
    for name, axes in spec.entries:
        wanted = Perm(group.name, role)
        if not any(wanted in block.atoms for block in entry_blocks(name, axes)):
            continue
        blocks = list(entry_blocks(name, axes))
        for block, part in zip(blocks, split(tensors[name], axes, spec.sizes), strict=True):
            if wanted in block.atoms:
                at = block.atoms.index(wanted)
                others = [atom for i, atom in enumerate(block.atoms) if i != at]
                found.append((others, part.movedim(at - len(block.atoms), -1)))
    return found


def _fixed_neighbour(
    spec: WeightSpec, group: Group, role: Role, tensors: Mapping[str, Tensor]
) -> Tensor | None:
    """Return ``[*leading, n, fixed]`` weights to a fixed axis, if that is all the units meet in a role."""
    found = _occurrences(spec, group, role, tensors)
    if len(found) != 1:
        return None
    others, part = found[0]
    if not all(isinstance(atom, Fixed) for atom in others):
        return None
    leading = part.ndim - len(others) - 1
    return part.movedim(-1, leading).flatten(leading + 1) if others else part.unsqueeze(-1)


def _settled(
    spec: WeightSpec, group: Group, role: Role, settled: set[str], tensors: Mapping[str, Tensor]
) -> list[tuple[Tensor, tuple[int, ...]]]:
    """Return the weights that meet only settled groups beside the units, and their dimensions that do."""
    return [
        (part.double(), tuple(range(part.ndim - 1 - len(others), part.ndim - 1)))
        for others, part in _occurrences(spec, group, role, tensors)
        if all(atom.group in settled for atom in others if isinstance(atom, Perm))
    ]


def _phase(spec: WeightSpec, group: Group, settled: set[str], tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Return ``[*leading, n]`` phases of the first bias, the mean where a unit has several; None without."""
    freedom = group.freedom("phase")
    assert freedom is not None
    assert freedom.parameter is not None
    for part, rest in _settled(spec, group, "bias", settled, tensors):
        return (part.mean(rest) if rest else part) * freedom.parameter
    return None


def _row_sum(
    spec: WeightSpec, group: Group, settled: set[str], tensors: Mapping[str, Tensor]
) -> Tensor | None:
    """Return ``[*leading, n]`` sums of what comes into the units from settled signs; None if nothing does."""
    total: Tensor | None = None
    for role in ("out", "bias"):
        for part, rest in _settled(spec, group, role, settled, tensors):
            step = part.sum(rest) if rest else part
            total = step if total is None else total + step
    return total


def _sign(values: Tensor) -> Tensor:
    return torch.where(values < 0, -1.0, 1.0).double()


def _apply(
    spec: WeightSpec, group: Group, kind: FreedomKind, values: Tensor, tensors: dict[str, Tensor]
) -> None:
    """Act in place of the dict with one freedom of one group, ``values`` being ``[*leading, n]``."""
    freedom = group.freedom(kind)
    assert freedom is not None

    def factor(perm: Perm) -> Tensor | None:
        return unit_factor(kind, values, perm.role) if perm.group == group.name else None

    def shift(perm: Perm) -> Tensor | None:
        return phase_shift(freedom, values) if perm == Perm(group.name, "bias") else None

    for name, axes in spec.entries:
        tensor = tensors[name]
        leading = tensor.ndim - len(axes)
        for dim, axis in enumerate(axes):
            shape = (*tensor.shape[:leading], *(-1 if i == dim else 1 for i in range(len(axes))))
            if (scale := spread(axis, spec.sizes, factor, torch.mul)) is not None:
                tensor = tensor * scale.to(tensor).reshape(shape)
            if kind == "phase" and (step := spread(axis, spec.sizes, shift, torch.add)) is not None:
                tensor = (tensor.double() + step.reshape(shape)).to(tensor.dtype)
        tensors[name] = tensor
