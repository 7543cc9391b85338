"""How actions act on tensors, and the algebra of the values that an element draws for them.

A linear action multiplies an entry T, seen along the leaves of a term, by a power of its value; a shift adds
it. What is carried decides the power: a gradient transforms with the inverse (transposed) of what its
parameter does, so that ⟨gradient, change⟩ is kept, and a second moment with the squares of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import log, sqrt
from typing import Literal

import torch
from torch import Tensor

from metanet.action import MATRIX_KINDS, MIXING_KINDS, Action, Term
from metanet.axis import Axis, Product, axis_size
from metanet.leaf import leaf_view

Representation = Literal["parameter", "gradient", "momentum", "second_moment"]
"""What is carried: a momentum of gradients transforms as they do (inverse scales), a second moment with
squares; only parameters are shifted by phases."""

MAX_SCALE = 2.0
MAX_CONDITION = 10.0
ROUNDING = 1e-6
"""How far from orthogonal a matrix may be that is meant to be."""


def act_terms(
    tensor: Tensor,
    axes: tuple[Axis, ...],
    sizes: Mapping[str, int],
    terms: Iterable[tuple[Action, Term, Tensor]],
    representation: Representation = "parameter",
) -> Tensor:
    """Act with terms on one entry: what multiplies first, shifts after it.

    Args:
        tensor: ``[*leading, *shape]``; it is not changed.
        axes: of the entry.
        sizes: of the groups.
        terms: actions, their terms on this entry and the drawn values ``[*axes]`` or ``[*leading, *axes]``.
        representation: what the tensor is.

    Raises:
        ValueError: a second moment meets what mixes units.
    """
    todo = sorted(terms, key=lambda item: item[0].kind == "shift")
    if not todo or not tensor.numel():
        return tensor
    result = tensor.clone(memory_format=torch.contiguous_format)
    for action, term, value in todo:
        view, places = leaf_view(result, axes, term.leaves, sizes)
        leading = tensor.ndim - len(axes)
        if action.kind == "shift":
            if representation == "parameter":
                view.add_(_along(value * term.power, leading, places, view).to(view))
        else:
            view.copy_(_multiplied(view, leading, places, action, term, value, representation))
    return result


def _along(value: Tensor, leading: int, places: tuple[int, ...], view: Tensor) -> Tensor:
    """Bring a value ``[*leading or nothing, *axes]`` to the dimensions of a view."""
    own = value.ndim - len(places)
    order = sorted(range(len(places)), key=lambda i: places[i])
    value = value.permute((*range(own), *(own + i for i in order)))
    shape = [1] * view.ndim
    if own:
        shape[:leading] = value.shape[:own]
    for place, size in zip(sorted(places), value.shape[own:], strict=True):
        shape[place] = size
    return value.reshape(shape)


def _multiplied(
    view: Tensor,
    leading: int,
    places: tuple[int, ...],
    action: Action,
    term: Term,
    value: Tensor,
    representation: Representation,
) -> Tensor:
    power = term.power if representation == "parameter" else -term.power
    if action.kind in MIXING_KINDS:
        if representation == "second_moment":
            raise ValueError(
                f"a second moment of {term.entry!r} has no image under '{action}', which mixes units: "
                "act with an element that leaves it out (kinds=…)"
            )
        if action.kind == "rotation":
            return _rotated(view, leading, places, action, value, power)
        return _mixed(view, leading, places, value, power)
    if representation == "second_moment":
        power *= 2
    factor = _along(value.double() ** power, leading, places, view)
    if term.eps is not None and representation == "parameter":
        return (factor * (view.double() + term.eps) - term.eps).to(view.dtype)
    return view * factor.to(view)


def _mixed(view: Tensor, leading: int, places: tuple[int, ...], value: Tensor, power: int) -> Tensor:
    """``A T`` (power 1) or ``A⁻ᵀ T`` along the last of the places, a matrix for every index of the others."""
    matrix = value if power == 1 else torch.linalg.inv(value).mT
    work = torch.promote_types(view.dtype, torch.float32)
    moved = view.movedim(places, tuple(range(leading, leading + len(places))))
    moved = moved.movedim(leading + len(places) - 1, -1)
    flat = moved.reshape(*moved.shape[: leading + len(places) - 1], -1, moved.shape[-1])
    result = (flat.to(work) @ matrix.to(flat.device, work).mT).to(view.dtype).reshape(moved.shape)
    result = result.movedim(-1, leading + len(places) - 1)
    return result.movedim(tuple(range(leading, leading + len(places))), places)


def _rotated(
    view: Tensor, leading: int, places: tuple[int, ...], action: Action, value: Tensor, power: int
) -> Tensor:
    """``c T`` (power 1) or ``T / conj(c)`` on pairs along the last of the places, seen as complex numbers."""
    c = value if power == 1 else value.conj().reciprocal()
    place = places[-1]
    shape = (2, c.shape[-1]) if action.layout == "half" else (c.shape[-1], 2)
    pairs = view.unflatten(place, shape)
    parts = place if action.layout == "half" else place + 1
    real, imaginary = pairs.unbind(parts)
    c = _along(c, leading, places, real)
    work = torch.promote_types(view.dtype, torch.float32)
    u, v = c.real.to(view.device, work), c.imag.to(view.device, work)
    turned = torch.stack([u * real - v * imaginary, v * real + u * imaginary], dim=parts)
    return turned.flatten(place, place + 1).to(view.dtype)


# Values


def draw_value(action: Action, sizes: Mapping[str, int], generator: torch.Generator | None) -> Tensor:
    """Draw a well-conditioned value: fair signs, factors and moduli log-uniform in [1/2, 2], normal shifts,
    matrices of condition up to 10, uniform (Haar) orthogonal matrices and angles.
    """
    shape = action.shape(sizes)

    def uniform(*size: int) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64) * 2 - 1

    if action.kind == "shift":
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    if action.kind in MATRIX_KINDS:
        left, right = (_haar(shape, generator) for _ in range(2))
        if action.kind == "orthogonal":
            return left
        stretch = (uniform(*shape[:-1]) * log(sqrt(MAX_CONDITION))).exp()
        stretched: Tensor = left * stretch[..., None, :]
        return stretched @ right
    factors: Tensor = (uniform(*shape) * log(MAX_SCALE)).exp()
    if action.kind == "rotation":
        return torch.polar(factors, uniform(*shape) * torch.pi)
    if action.kind == "positive_scale":
        return factors
    signs = (1 - 2 * torch.randint(2, shape, generator=generator)).double()
    return signs if action.kind == "sign" else signs * factors


def _haar(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(shape, generator=generator, dtype=torch.float64))
    signs: Tensor = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    uniform: Tensor = q * signs[..., None, :].to(q)
    return uniform


def check_value(action: Action, value: Tensor, sizes: Mapping[str, int]) -> None:
    """Raise unless a value is one that the action allows."""
    shape = action.shape(sizes)
    if tuple(value.shape) != shape:
        raise ValueError(f"action '{action}': expected shape {list(shape)}, found {list(value.shape)}")
    if value.is_complex() != (action.kind == "rotation"):
        wanted = "complex" if action.kind == "rotation" else "real"
        raise ValueError(f"action '{action}': expected {wanted} values, found {value.dtype}")
    good = bool(value.isfinite().all())
    if action.kind == "sign":
        good = bool((value.abs() == 1).all())
    elif action.kind == "positive_scale":
        good = good and bool((value > 0).all())
    elif action.kind in ("scale", "rotation"):
        good = good and bool((value != 0).all())
    elif action.kind == "linear":
        good = good and bool((torch.linalg.matrix_rank(value.double()) == value.shape[-1]).all())
    elif action.kind == "orthogonal":
        unit = torch.eye(value.shape[-1], dtype=torch.float64)
        good = good and bool((value.double() @ value.double().mT - unit).abs().max() < ROUNDING)
    if not good:
        raise ValueError(f"action '{action}': values that it does not allow")


def identity_value(action: Action, sizes: Mapping[str, int]) -> Tensor:
    """Return the value that changes nothing."""
    shape = action.shape(sizes)
    if action.kind in MATRIX_KINDS:
        return torch.eye(shape[-1], dtype=torch.float64).expand(shape)
    if action.kind == "shift":
        return torch.zeros(shape, dtype=torch.float64)
    return torch.ones(shape, dtype=torch.complex128 if action.kind == "rotation" else torch.float64)


def multiply_values(
    actions: Sequence[Action], outer: Mapping[int, Tensor], inner: Mapping[int, Tensor]
) -> dict[int, Tensor]:
    """Return the values of one change after another, by the numbers of their actions; shifts add up."""
    result = {**outer, **inner}
    for number in outer.keys() & inner.keys():
        first, second, kind = outer[number], inner[number], actions[number].kind
        if kind == "shift":
            result[number] = first + second
        else:
            result[number] = first @ second if kind in MATRIX_KINDS else first * second
    return result


def invert(action: Action, value: Tensor) -> Tensor:
    """Return the value that undoes an action."""
    if action.kind == "shift":
        return -value
    if action.kind == "orthogonal":
        return value.mT
    return torch.linalg.inv(value) if action.kind == "linear" else value.reciprocal()


def permute_value(
    action: Action, value: Tensor, sizes: Mapping[str, int], index: Callable[[Axis], Tensor | None]
) -> Tensor:
    """Return a value with the units of its axes permuted; matrices on both sides.

    Args:
        action: whose value it is.
        value: ``[*axes]``, the last axis twice for a matrix.
        sizes: of the groups.
        index: gives the source index of every index of an axis, or None where nothing moves.
    """
    source = index(Product(action.axes)) if action.axes else None
    if source is None:
        return value
    shape = tuple(axis_size(axis, sizes) for axis in action.axes)
    if action.kind not in MATRIX_KINDS:
        return value.reshape(-1)[source].reshape(value.shape)
    n = shape[-1]
    rows = value.reshape(-1, n)[source].reshape(value.shape)
    columns = (source % n).reshape(*shape[:-1], 1, n).expand(value.shape)
    return rows.gather(-1, columns)
