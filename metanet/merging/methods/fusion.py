"""Taking over what differs: near values of another model, or only its important changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metanet.merging.floats import Floats
from metanet.merging.method import Parameter, Pass, Statistics, merge_method
from metanet.merging.radix import largest
from metanet.merging.stretch import Settings, Stretch, last_axis

GODDARD = (
    "C. Goddard et al., Arcee's MergeKit: a toolkit for merging large language models, 2024. "
    "https://arxiv.org/abs/2403.13257"
)


@merge_method(
    "nearswap",
    reference=GODDARD,
    parameters={"t": Parameter(None, "differences below it are taken over in full")},
    base="required",
    models=(1, 1),
)
def nearswap(stretch: Stretch) -> Floats:
    """Go to the other model where it is near: ``θ₀ + clip(t/|δ|, 0, 1) · δ``."""
    [difference] = stretch.differences()
    # clip(t/|δ|, 0, 1) · δ is δ clipped to [-t, t].
    t = abs(stretch.settings.number("t"))
    np.clip(difference, -t, t, out=difference)
    difference += stretch.reference
    return difference


def importance(base: Floats, values: Floats, columns: int) -> tuple[Floats, Floats]:
    """Return differences, and their importance ``|δ| · KL(softmax(θ) ‖ softmax(θ₀))``, KL by rows.

    Args:
        base: ``[n]`` values of whole rows of the base.
        values: ``[n]`` values of the other model.
        columns: length of a row.
    """
    rows, base_rows = values.reshape(-1, columns), base.reshape(-1, columns)
    log_p, log_q = _log_softmax(rows), _log_softmax(base_rows)
    divergence = (np.exp(log_p) * (log_p - log_q)).sum(1, keepdims=True)
    difference = rows - base_rows
    score = np.abs(difference)
    # Rounding may leave the divergence of equal rows a hair below zero.
    score *= np.maximum(divergence, 0)
    return difference.reshape(-1), score.reshape(-1)


def _log_softmax(rows: Floats) -> Floats:
    shifted = rows - rows.max(1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result


def _outlier_threshold(settings: Settings, shape: tuple[int, ...], has_base: bool) -> Statistics:
    size = int(np.prod(shape, dtype=np.int64))
    columns = last_axis(shape)
    places = [share * (size - 1) for share in (0.25, 0.5, 0.75)]
    ranks = sorted({int(place) for place in places} | {min(size - 1, int(place) + 1) for place in places})

    def scores(stretch: Stretch) -> list[Floats]:
        _, score = importance(stretch.reference, stretch.values[0], columns)
        return [score] * len(ranks)

    # The r-th smallest of n is the threshold of the n - r largest.
    cuts = yield from largest(scores, [size - rank for rank in ranks], size)
    value = {rank: cut.threshold for rank, cut in zip(ranks, cuts, strict=True)}
    quartiles = []
    for place in places:
        below = int(place)
        share = place - below
        quartiles.append((1 - share) * value[below] + share * value[min(size - 1, below + 1)])
    return quartiles[1] + 1.5 * (quartiles[2] - quartiles[0])


@merge_method(
    "arcee_fusion",
    reference=GODDARD,
    base="required",
    models=(1, 1),
    statistics=_outlier_threshold,
    rows=True,
)
def arcee_fusion(stretch: Stretch, threshold: float) -> Floats:
    """Take over the changes whose importance exceeds the median by 1.5 interquartile ranges."""
    difference, score = importance(stretch.reference, stretch.values[0], last_axis(stretch.shape))
    difference *= score > threshold
    difference += stretch.reference
    return difference


def _variance_and_energy(settings: Settings, shape: tuple[int, ...], has_base: bool) -> Statistics:
    size = int(np.prod(shape, dtype=np.int64))
    share = settings.number("select_topk")
    cut = None
    if share < 1:
        count = max(1, int(share * size)) if share > 0 else 0
        [cut] = yield from largest(lambda stretch: [_variance(stretch.differences())], [count], size)

    def energies(stretch: Stretch) -> list[float]:
        return [float(np.dot(value, value)) for value in _select(stretch, cut)]

    partials = yield Pass(energies)
    totals = np.array(partials, dtype=np.float64).sum(0)
    weights = totals / totals.sum() if totals.sum() > 0 else np.full(len(totals), 1 / len(totals))
    return cut, weights


def _variance(differences: Sequence[Floats]) -> Floats:
    variance: Floats = np.var(np.stack(differences), axis=0)
    return variance


def _select(stretch: Stretch, cut: Any) -> Sequence[Floats]:
    differences = stretch.differences()
    if cut is not None:
        mask = cut.mask(_variance(differences), stretch.index)
        for value in differences:
            value *= mask
    return differences


@merge_method(
    "sce",
    reference=(
        "F. Wan et al., FuseChat: knowledge fusion of chat models (select, calculate, erase), 2024. "
        "https://arxiv.org/abs/2408.07990"
    ),
    parameters={
        "select_topk": Parameter(1.0, "fraction of elements to keep, by variance", low=0, high=1),
        "int8_mask": Parameter(False, "accepted for recipes written elsewhere; masks are booleans here"),
    },
    base="required",
    models=(1, None),
    statistics=_variance_and_energy,
)
def sce(stretch: Stretch, found: tuple[Any, NDArray[np.float64]]) -> Floats:
    """Select by variance, weigh by energy, erase minority signs."""
    cut, weights = found
    differences = _select(stretch, cut)
    positive = np.sum(differences, axis=0) >= 0
    total, divisor = np.zeros_like(differences[0]), np.zeros_like(differences[0])
    for value, weight in zip(differences, weights, strict=True):
        agrees = np.where(positive, value > 0, value < 0)
        total += agrees * value * value.dtype.type(weight)
        divisor += agrees * value.dtype.type(weight)
    np.divide(total, divisor, out=total, where=divisor > 1e-12)
    total += stretch.reference
    return total
