"""Whether permutations and drawn values make an element of a spec's group."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from metanet.elements.acting import check_value
from metanet.elements.freedom import check_freedom
from metanet.spec import FreedomKind, Group, WeightSpec


def check_membership(
    spec: WeightSpec,
    permutations: Mapping[str, Tensor],
    freedoms: Mapping[tuple[str, FreedomKind], Tensor],
    actions: Mapping[int, Tensor],
) -> None:
    """Raise unless tensors make a group element (see `metanet.group.GroupElement`).

    Raises:
        ValueError: an unknown group or action, not a permutation, or a value that a freedom does not allow.
    """
    for name, permutation in permutations.items():
        _check_permutation(_known(spec, name), permutation, spec)
    for (name, kind), values in freedoms.items():
        group = _known(spec, name)
        copies = None if group.parent is None else spec.copies(name)
        check_freedom(group, kind, values, copies=copies)
    for number, value in actions.items():
        if not 0 <= number < len(spec.actions):
            raise ValueError(f"the spec has {len(spec.actions)} actions, found number {number}")
        check_value(spec.actions[number], value, spec.sizes)


def unit_shape(spec: WeightSpec, group: Group) -> tuple[int, ...]:
    """Return the shape of what an element holds per unit: ``[n]``, or ``[copies, n]`` for a nested group."""
    return (group.size,) if group.parent is None else (spec.copies(group.name), group.size)


def _known(spec: WeightSpec, name: str) -> Group:
    if name not in spec.group:
        raise ValueError(f"the spec has no group {name!r}; its groups are {', '.join(spec.group) or 'none'}")
    return spec.group[name]


def _check_permutation(group: Group, permutation: Tensor, spec: WeightSpec) -> None:
    shape = unit_shape(spec, group)
    if tuple(permutation.shape) != shape or permutation.dtype != torch.long:
        raise ValueError(
            f"group {group.name!r}: expected indices of shape {list(shape)}, int64; "
            f"found {list(permutation.shape)}, {permutation.dtype}"
        )
    if not torch.equal(permutation.sort(-1).values, torch.arange(group.size).expand(shape)):
        raise ValueError(f"group {group.name!r}: the indices are no permutation of 0…{group.size - 1}")
