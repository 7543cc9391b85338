"""Merging on the sphere: every result is a weighted sum whose weights follow from inner products.

A geodesic, a tangent-space mean and a Karcher mean all stay in the span of the inputs. So one pass for the
Gram matrix decides the weights, and the map itself is `weighted_sum`.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metanet.merging.floats import Floats
from metanet.merging.gram import gram_matrix
from metanet.merging.method import Parameter, Pass, Statistics, merge_method
from metanet.merging.methods.linear import WEIGHT, normalized, weighted_sum
from metanet.merging.stretch import Settings, Stretch

Matrix = NDArray[np.float64]

COLLINEAR = 0.9995
"""|cos| from which slerp becomes linear, the constant of the field's implementations."""

SHOEMAKE = (
    "K. Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985. "
    "https://doi.org/10.1145/325165.325242"
)


def slerp_weights(cosine: float, t: float, collinear: float = COLLINEAR) -> tuple[float, float]:
    """Return the weights of both ends at ``t`` along the great circle through them.

    Args:
        cosine: of the angle θ between the ends.
        t: 0 is the first end, 1 the second.
        collinear: |cosine| above which the path is the chord.

    Returns:
        ``sin((1-t)θ)/sin θ, sin(tθ)/sin θ``.
    """
    if abs(cosine) > collinear:
        return 1 - t, t
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def _cosine(gram: Matrix) -> float:
    norms = math.sqrt(float(gram[0, 0])) * math.sqrt(float(gram[1, 1]))
    return float(gram[0, 1]) / norms if norms > 0 else 1.0


def _slerp(settings: Settings, shape: tuple[int, ...], has_base: bool) -> Statistics:
    gram = yield from gram_matrix(lambda stretch: (stretch.reference, *stretch.values))
    return slerp_weights(_cosine(gram), settings.number("t"))


@merge_method(
    "slerp",
    reference=SHOEMAKE,
    parameters={"t": Parameter(None, "0 gives the base, 1 the other model")},
    base="required",
    models=(1, 1),
    statistics=_slerp,
)
def slerp(stretch: Stretch, weights: tuple[float, float]) -> Floats:
    """Spherical interpolation from the base to one other model."""
    return weighted_sum((stretch.reference, *stretch.values), weights)


def _nuslerp(settings: Settings, shape: tuple[int, ...], has_base: bool) -> Statistics:
    first, second = settings.each("weight")
    if abs(first + second) < 1e-8:
        raise ValueError(f"the weights {first:g} and {second:g} sum to zero; change one of them")
    t = second / (first + second)
    if settings.flag("nuslerp_flatten") or len(shape) < 2:
        gram = yield from gram_matrix(Stretch.differences)
        return slerp_weights(_cosine(gram), t, collinear=1 - 1e-8)
    # What implementations call row-wise runs down the first axis, so that one vector is one column.
    rows = not settings.flag("nuslerp_row_wise")
    cosines = yield from _sliced_cosines(rows)
    weights = np.array([slerp_weights(cosine, t, collinear=1 - 1e-8) for cosine in cosines])
    return rows, weights


def _sliced_cosines(rows: bool) -> Generator[Pass, list[Any], NDArray[np.float64]]:
    """Cosine of the angle between two tensors, for every row (last axis) or every column (first axis)."""

    def partial(stretch: Stretch) -> NDArray[np.float64]:
        first, second = (_matrix(value, stretch, rows).astype(np.float64) for value in stretch.differences())
        axis = 1 if rows else 0
        return np.stack([(a * b).sum(axis) for a, b in ((first, first), (first, second), (second, second))])

    partials = yield Pass(partial)
    sums = np.concatenate(partials, axis=1) if rows else np.sum(partials, axis=0)
    norms = np.sqrt(sums[0] * sums[2])
    return np.where(norms > 0, sums[1] / np.where(norms > 0, norms, 1), 1.0)


def _matrix(values: Floats, stretch: Stretch, rows: bool) -> Floats:
    return values.reshape(-1, stretch.shape[-1] if rows else stretch.columns)


@merge_method(
    "nuslerp",
    reference=SHOEMAKE,
    parameters={
        "weight": WEIGHT,
        "nuslerp_flatten": Parameter(True, "take a tensor as one vector"),
        "nuslerp_row_wise": Parameter(
            False, "without flattening: vectors along the first axis instead of the last"
        ),
    },
    base="optional",
    models=(2, 2),
    statistics=_nuslerp,
    rows=True,
)
def nuslerp(stretch: Stretch, weights: Any) -> Floats:
    """Spherical interpolation by weights, of task vectors if there is a base."""
    values = stretch.differences()
    if isinstance(weights[0], bool):
        rows, table = weights
        first, second = (_matrix(value, stretch, rows) for value in values)
        if rows:
            offset = stretch.start // stretch.shape[-1]
            table = table[offset : offset + len(first), None]
        first *= table[..., 0]
        second *= table[..., 1]
        first += second
        result = first.reshape(-1)
    else:
        result = weighted_sum(values, weights)
    return result if stretch.base is None else _plus(result, stretch.base)


def _multislerp(settings: Settings, shape: tuple[int, ...], has_base: bool) -> Statistics:
    gram = yield from gram_matrix(Stretch.differences)
    weights = settings.each("weight")
    return mean_direction(
        gram, normalized(weights) if settings.flag("normalize_weights") else weights, settings.number("eps")
    )


def mean_direction(gram: Matrix, weights: Sequence[float], eps: float) -> list[float]:
    """Return the weights of the mean direction at the mean norm.

    With ``uᵢ = θᵢ/|θᵢ|`` it is ``Σ wᵢ|θᵢ| · Σ wᵢuᵢ / |Σ wᵢuᵢ|``. That is also the barycentre in the tangent
    space at this mean: there the inputs' projections sum to zero, so a step from the mean stays on it.

    Args:
        gram: ``[k, k]`` inner products of the inputs.
        weights: ``[k]``.
        eps: norms below it count as it.

    Returns:
        ``[k]`` weights of the inputs.
    """
    weight = np.asarray(weights, dtype=np.float64)
    norms = np.sqrt(np.maximum(np.diag(gram), 0))
    direction = weight / np.maximum(norms, eps)
    length = math.sqrt(max(float(direction @ gram @ direction), 0.0))
    if length < eps:
        return list(weight)
    return list(float(weight @ norms) / length * direction)


def _log_mean(unit: Matrix, mean: Matrix, weight: Matrix, eps: float) -> Matrix:
    """Return coefficients of ``Σ wᵢ log_m(uᵢ)`` over the unit inputs."""
    cosines = np.clip(unit @ mean, -1, 1)
    angles = np.arccos(cosines)
    sines = np.sin(angles)
    factors = np.where(sines > eps, weight * angles / np.maximum(sines, eps), weight)
    step: Matrix = factors - float(factors @ cosines) * mean
    return step


def _exp(unit: Matrix, mean: Matrix, step: Matrix, eps: float) -> Matrix:
    length = math.sqrt(max(float(step @ unit @ step), 0.0))
    if length < eps:
        return mean
    moved: Matrix = math.cos(length) * mean + math.sin(length) / length * step
    return moved


@merge_method(
    "multislerp",
    reference=(
        "K. V. Mardia, P. E. Jupp, Directional statistics (mean direction), 2000. "
        "https://doi.org/10.1002/9780470316979"
    ),
    parameters={
        "weight": WEIGHT,
        "normalize_weights": Parameter(True, "divide the weights by their sum"),
        "eps": Parameter(1e-8, "angles and norms below it count as zero"),
    },
    base="optional",
    models=(2, None),
    statistics=_multislerp,
)
def multislerp(stretch: Stretch, weights: list[float]) -> Floats:
    """Mean direction of several models, at their mean norm; of task vectors if there is a base."""
    result = weighted_sum(stretch.differences(), weights)
    return result if stretch.base is None else _plus(result, stretch.base)


def _karcher(settings: Settings, shape: tuple[int, ...], has_base: bool) -> Statistics:
    gram = yield from gram_matrix(lambda stretch: stretch.values)
    return karcher_weights(gram, int(settings.number("max_iter")), settings.number("tol"))


def karcher_weights(gram: Matrix, max_iter: int, tol: float) -> list[float]:
    """Return the weights of the Karcher mean of directions, at the inputs' mean norm.

    ``m ← exp_m(mean of log_m(uᵢ))`` from the normalized mean on, until the step is shorter than ``tol``.

    Args:
        gram: ``[k, k]`` inner products of the inputs; those of norm zero are left out.
        max_iter: largest number of steps.
        tol: length of a step, in radians, that ends the iteration.

    Returns:
        ``[k]`` weights of the inputs.
    """
    norms = np.sqrt(np.maximum(np.diag(gram), 0))
    used = np.flatnonzero(norms > 0)
    result = np.zeros(len(norms))
    if not used.size:
        return list(result)
    unit = gram[np.ix_(used, used)] / np.outer(norms[used], norms[used])
    weight = np.full(used.size, 1 / used.size)
    length = math.sqrt(max(float(weight @ unit @ weight), 0.0))
    mean = weight / length if length > tol else np.eye(used.size)[0]
    for _ in range(max_iter):
        step = _log_mean(unit, mean, weight, 1e-12)
        if math.sqrt(max(float(step @ unit @ step), 0.0)) < tol:
            break
        mean = _exp(unit, mean, step, 1e-12)
    result[used] = float(norms[used].mean()) * mean / norms[used]
    return list(result)


@merge_method(
    "karcher",
    reference=(
        "H. Karcher, Riemannian center of mass and mollifier smoothing, 1977. "
        "https://doi.org/10.1002/cpa.3160300502"
    ),
    parameters={
        "max_iter": Parameter(10, "largest number of steps", low=1),
        "tol": Parameter(1e-5, "length of a step that ends the iteration", low=0),
    },
    models=(2, None),
    statistics=_karcher,
)
def karcher(stretch: Stretch, weights: list[float]) -> Floats:
    """Riemannian mean of several models on the sphere."""
    return weighted_sum(stretch.values, weights)


def _plus(result: Floats, base: Floats) -> Floats:
    result += base
    return result
