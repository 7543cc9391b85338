"""How the freedoms of a unit act: factors on rows and readers, shifts on biases, spread along an axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import log, pi

import torch
from torch import Tensor

from metanet.axis import Axis, Concat, Fixed, Perm, Role, axis_size
from metanet.spec import Freedom, FreedomKind, Group

MAX_PHASE = 3
MAX_SCALE = 2.0


def unit_factor(kind: FreedomKind, values: Tensor, role: Role) -> Tensor | None:
    """Return what a freedom multiplies on rows and biases, or on readers (float64), or None for one."""
    if kind == "phase":
        return 1.0 - 2.0 * (values % 2).double() if role == "in" else None
    if kind == "even":
        return None if role == "in" else values.double()
    return values.double().reciprocal() if role == "in" else values.double()


def phase_shift(freedom: Freedom, counts: Tensor) -> Tensor:
    """Return what a phase adds to biases: kπ/ω (float64)."""
    assert freedom.parameter is not None
    return counts.double() * (pi / freedom.parameter)


def factor_of(group: Group, freedoms: Mapping[tuple[str, FreedomKind], Tensor], role: Role) -> Tensor | None:
    """Return what all freedoms of a group together multiply where it has a role, or None for one.

    Args:
        group: the group.
        freedoms: ``(group, kind) -> [*b, n]``, or ``[*b, copies, n]`` for a nested group.
        role: of the units.
    """
    factor: Tensor | None = None
    for freedom in group.freedoms:
        values = freedoms.get((group.name, freedom.kind))
        step = None if values is None else unit_factor(freedom.kind, values, role)
        if step is not None:
            factor = step if factor is None else factor * step
    return factor


def shift_of(group: Group, freedoms: Mapping[tuple[str, FreedomKind], Tensor], role: Role) -> Tensor | None:
    """Return what a phase of a group adds where it has a role: kπ/ω to biases, else None."""
    freedom = group.freedom("phase")
    values = freedoms.get((group.name, "phase"))
    return None if role != "bias" or freedom is None or values is None else phase_shift(freedom, values)


def spread(
    axis: Axis,
    sizes: Mapping[str, int],
    unit: Callable[[Perm], Tensor | None],
    combine: Callable[[Tensor, Tensor], Tensor],
) -> Tensor | None:
    """Spread values per unit over the indices of an axis.

    Args:
        axis: the axis.
        sizes: of the groups.
        unit: gives ``[*leading, n]`` values for the units of a group, or None for neutral ones.
        combine: ``torch.mul`` (neutral: one) or ``torch.add`` (neutral: zero), applied across the factors of
            a Product.

    Returns:
        ``[*leading, size]``, or None if everything is neutral.
    """
    if isinstance(axis, Fixed):
        return None
    if isinstance(axis, Perm):
        return unit(axis)
    parts = [spread(part, sizes, unit, combine) for part in axis.axes]
    known = next((part for part in parts if part is not None), None)
    if known is None:
        return None
    neutral = float(combine is torch.mul)
    full = [
        known.new_full((*known.shape[:-1], axis_size(inner, sizes)), neutral) if part is None else part
        for part, inner in zip(parts, axis.axes, strict=True)
    ]
    if isinstance(axis, Concat):
        return torch.cat(full, dim=-1)
    result = full[0]
    for part in full[1:]:
        result = combine(result[..., :, None], part[..., None, :]).flatten(-2)
    return result


def check_freedom(group: Group, kind: FreedomKind, values: Tensor, *, copies: int | None = None) -> None:
    """Raise unless values ``[n]``, or ``[copies, n]`` of a nested group, are what a freedom allows."""
    if group.freedom(kind) is None:
        has = ", ".join(map(str, group.freedoms)) or "none beside permutation"
        raise ValueError(f"group {group.name!r} has no freedom {kind!r}; it has {has}")
    shape = [group.size] if copies is None else [copies, group.size]
    if list(values.shape) != shape:
        raise ValueError(f"group {group.name!r}, {kind}: expected shape {shape}, found {list(values.shape)}")
    if kind in ("sign", "even"):
        good = bool((values.abs() == 1).all())
    elif kind == "phase":
        good = bool((values == values.round()).all())
    else:
        good = bool(
            values.isfinite().all() and (values != 0).all() and (kind == "scale" or (values > 0).all())
        )
    if not good:
        raise ValueError(f"group {group.name!r}: values that the freedom {kind!r} does not allow")


def draw_freedom(kind: FreedomKind, n: int, generator: torch.Generator | None) -> Tensor:
    """Draw ``[n]`` well-conditioned values: fair signs, phases in -3…3, scales log-uniform in [1/2, 2]."""
    if kind == "phase":
        return torch.randint(-MAX_PHASE, MAX_PHASE + 1, (n,), generator=generator)
    signs = 1 - 2 * torch.randint(2, (n,), generator=generator)
    if kind in ("sign", "even"):
        return signs
    spread = torch.rand(n, generator=generator, dtype=torch.float64) * 2 - 1
    factors = (spread * log(MAX_SCALE)).exp()
    return factors if kind == "positive_scale" else factors * signs
