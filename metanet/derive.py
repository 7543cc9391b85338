"""Derivation of a `WeightSpec` from a module: export, interpret, name the groups, find their freedoms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from metanet.axis import Axis, axis_size
from metanet.derivation.dimension import Dim, axis_of, leaves
from metanet.derivation.interpreter import Interpretation, interpret
from metanet.derivation.naming import name_groups
from metanet.derivation.tracing import DerivationError, export, ties_of
from metanet.freedoms.exponents import with_freedoms
from metanet.freedoms.orthogonal import with_orthogonal
from metanet.freedoms.rotary import with_rotations
from metanet.freedoms.shifts import with_shifts
from metanet.nesting.analysis import with_nesting
from metanet.rules.registry import Draft
from metanet.skeleton import Operation
from metanet.spec import Group, LostFreedom, WeightSpec

__all__ = ["DerivationError", "spec_of"]


def spec_of(model: nn.Module, *args: Any, **kwargs: Any) -> WeightSpec:
    """Derive the symmetry of a module's weights from the operations it performs.

    The module is exported in evaluation mode (and left as it was) and its ATen operations are interpreted
    with dimension variables in place of data: each state-dict entry starts with free axes, every operation
    unifies, refines or fixes them, inputs and outputs are fixed. Whatever stays free is a group. The result
    is sound for any operation: one without a rule fixes what it touches, and ``spec.lost`` says so.

    Args:
        model: any module that torch.export can trace; it may live on the meta device.
        *args: example inputs; only shapes, types and what the module does with them matter.
        **kwargs: the same.

    Returns:
        The spec, with the skeleton of operations.

    Raises:
        DerivationError: the module cannot be traced.
        TypeError: not a module.

    Example:
        >>> print(spec_of(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)), torch.zeros(1, 2)))
        groups     layer0: 8 sign
        0.weight   layer0 2
        0.bias     layer0+
        2.weight   1 layer0'
        2.bias     1

    References:
        Ansel et al. 2024, PyTorch 2, https://doi.org/10.1145/3620665.3640366 (export).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"spec_of takes a torch.nn.Module and its inputs, found {type(model).__name__}; for a state dict "
            "without code give a spec file (WeightSpec.parse or from_json)"
        )
    ties = ties_of(model)
    found = interpret(export(model, args, kwargs), model, ties)
    drafts = _needed(found)
    used = {name for draft in drafts for _, name in draft.parameters}
    used |= {name for tie in ties if used & set(tie) for name in tie}
    unused = tuple(name for name in found.entries if name not in used)
    _fix_unused(found, unused)
    names = name_groups(found.entries, drafts)
    entries = tuple(
        (name, tuple(axis_of(dim, names.get) for dim in dims)) for name, dims in found.entries.items()
    )
    spec = WeightSpec(
        groups=tuple(Group(name, variable.size) for variable, name in names.items()),
        entries=entries,
        operations=_operations(drafts, names),
        ties=ties,
        unused=unused,
        lost=_lost(found.entries),
    )
    other = [
        name
        for name, tensor in model.state_dict(keep_vars=True).items()
        if name in spec.axes and not tensor.is_floating_point()
    ]
    spec = with_freedoms(with_nesting(spec), other)
    return with_shifts(with_rotations(with_orthogonal(spec)), other)


def _needed(found: Interpretation) -> list[Draft]:
    """Return the operations that an output depends on, and all inputs, in the order in which they run."""
    outputs = [
        Draft("output", (value.operation(),), attributes=(("slot", slot),), dims=value.dims)
        for slot, value in enumerate(found.outputs)
    ]
    needed = set(found.inputs)
    stack = list(outputs)
    while stack:
        draft = stack.pop()
        if draft not in needed:
            needed.add(draft)
            stack += draft.inputs
    return sorted(needed, key=lambda draft: draft.order)


def _fix_unused(found: Interpretation, unused: Iterable[str]) -> None:
    """Fix what only unused entries carry: any change of them keeps the function, so it means nothing."""
    idle = set(unused)
    alive = {
        leaf
        for name, dims in found.entries.items()
        if name not in idle
        for dim in dims
        for leaf in leaves(dim)
    }
    for name in idle:
        for dim in found.entries[name]:
            for leaf in list(leaves(dim)):
                if leaf not in alive:
                    found.dimensions.fix(leaf)


def _operations(drafts: Sequence[Draft], names: Mapping[Dim, str]) -> tuple[Operation, ...]:
    positions = {draft: position for position, draft in enumerate(drafts)}
    sizes = {name: variable.size for variable, name in names.items()}

    def axis(dim: Dim) -> Axis:
        result = axis_of(dim, names.get)
        assert axis_size(result, sizes) == dim.size
        return result

    return tuple(
        Operation(
            draft.kind,
            tuple(positions[source] for source in draft.inputs),
            draft.parameters,
            draft.attributes,
            tuple(map(axis, draft.dims)),
        )
        for draft in drafts
    )


def _lost(entries: Mapping[str, tuple[Dim, ...]]) -> tuple[LostFreedom, ...]:
    """Return, for every operation that fixed an axis of an entry for want of a rule, the entries it cost."""
    affected: dict[str, dict[str, None]] = {}
    for name, dims in entries.items():
        for dim in dims:
            for leaf in leaves(dim):
                if leaf.state == "fixed" and leaf.cause is not None:
                    affected.setdefault(leaf.cause, {})[name] = None
    lost = []
    for cause, names in affected.items():
        operation, _, detail = cause.partition(" (")
        reason = detail.rstrip(")") or "no rule for this operation: every axis it touches is fixed"
        lost.append(LostFreedom(operation, tuple(names), reason))
    return tuple(lost)
