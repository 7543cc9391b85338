"""Task arithmetic and its descendants: sparsify differences from a base, agree on signs, add them up.

``θ = θ₀ + λ · consensus(w₁ sparse(δ₁), …, w_k sparse(δ_k))`` with ``δᵢ = θᵢ - θ₀``. The methods of this
family are the pairs of a sparsification and a consensus; each is a few lines at the end of this file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from metanet.merging.floats import Floats
from metanet.merging.masks import keep_mask
from metanet.merging.method import Parameter, Statistics, merge_method
from metanet.merging.radix import Cut, largest
from metanet.merging.stretch import Settings, Stretch, last_axis

Sparse = Sequence[Floats]

SHARED = {
    "weight": Parameter(None, "factor of the model's differences", per_model=True),
    "lambda": Parameter(1.0, "factor of the merged differences"),
    "int8_mask": Parameter(False, "accepted for recipes written elsewhere; masks are booleans here"),
}
DENSITY = Parameter(1.0, "fraction of the differences to keep", per_model=True, low=0, high=1)


def sum_differences(stretch: Stretch, sparse: Sparse, *, elect: bool, normalize: bool) -> Floats:
    """Combine sparse differences and add them to the base.

    Args:
        stretch: where we are.
        sparse: ``[n]`` differences per model; overwritten.
        elect: keep of each element only the differences whose sign is that of their weighted sum.
        normalize: divide by the sum of the weights that took part (of each element, with ``elect``).

    Returns:
        ``[n]`` merged values.

    References:
        P. Yadav et al., TIES-Merging: resolving interference when merging models, 2023.
        https://arxiv.org/abs/2306.01708
    """
    weights = stretch.settings.each("weight")
    kind = stretch.reference.dtype.type
    for value, weight in zip(sparse, weights, strict=True):
        if weight != 1:
            value *= kind(weight)
    total = sparse[0].copy() if elect else sparse[0]
    for value in sparse[1:]:
        total += value
    if elect:
        total = _elected(total, sparse, weights, normalize)
    elif normalize:
        weight = sum(weights)
        total /= kind(weight if abs(weight) > 1e-8 else 1)
    factor = stretch.settings.number("lambda")
    if factor != 1:
        total *= kind(factor)
    total += stretch.reference
    return total


def _elected(total: Floats, sparse: Sparse, weights: Sequence[float], normalize: bool) -> Floats:
    """Sum what has the sign of the whole sum, per sum of the weights that took part if asked to."""
    positive = total >= 0
    result = total
    result.fill(0)
    divisor = np.zeros_like(total) if normalize else None
    for value, weight in zip(sparse, weights, strict=True):
        agrees = (value > 0) == positive
        if divisor is not None:
            # Zeros have no sign and do not take part; without a divisor they add nothing anyway.
            agrees &= value != 0
            divisor += agrees * divisor.dtype.type(weight)
        value *= agrees
        result += value
    if divisor is not None:
        smallest = divisor.dtype.type(min(weights))
        if smallest > 0:
            # Where nobody took part the sum is zero, whatever it is divided by.
            np.maximum(divisor, smallest, out=divisor)
            result /= divisor
        else:
            np.divide(result, divisor, out=result, where=np.abs(divisor) > 1e-8)
    return result


def _keep_largest(settings: Settings, shape: tuple[int, ...], has_base: bool) -> Statistics:
    size = int(np.prod(shape, dtype=np.int64))
    # A share that is not empty keeps one element at least.
    counts = [max(1, int(d * size)) if d > 0 else 0 for d in settings.each("density")]
    partly = [i for i, count in enumerate(counts) if 0 < count < size]

    def magnitudes(stretch: Stretch) -> list[Floats]:
        values = stretch.differences()
        return [np.abs(values[i], out=values[i]) for i in partly]

    found: list[Cut] = []
    if partly:
        found = yield from largest(magnitudes, [counts[i] for i in partly], size)
    cuts: list[Cut | bool] = [count > 0 for count in counts]
    for i, cut in zip(partly, found, strict=True):
        cuts[i] = cut
    return cuts


def trim(stretch: Stretch, cuts: Sequence[Cut | bool]) -> Sparse:
    """Keep of each model the differences of largest magnitude: True keeps all, False none."""
    sparse = stretch.differences()
    for value, cut in zip(sparse, cuts, strict=True):
        if isinstance(cut, Cut):
            value *= cut.mask(np.abs(value), stretch.index)
        elif not cut:
            value.fill(0)
    return sparse


def drop(stretch: Stretch) -> Sparse:
    """Keep each difference with probability ``density``, and rescale what is kept by its inverse."""
    sparse = stretch.differences()
    rescale = stretch.settings.flag("rescale")
    for model, (value, density) in enumerate(zip(sparse, stretch.settings.each("density"), strict=True)):
        if density < 1:
            value *= keep_mask(stretch.key(model), stretch.start, stretch.size, density)
            if rescale and density > 0:
                value *= value.dtype.type(1 / density)
    return sparse


def _outliers(settings: Settings, shape: tuple[int, ...], has_base: bool) -> Statistics:
    size = int(np.prod(shape, dtype=np.int64))
    pairs = []
    for density, gamma in zip(settings.each("density"), settings.each("gamma"), strict=True):
        kept, top = int(density * size), int(gamma * size)
        top = max(0, min(top, size - kept))
        pairs.append((top, min(size, top + kept)))

    def magnitudes(stretch: Stretch) -> list[Floats]:
        values = [np.abs(value) for value in stretch.differences()]
        return [value for value in values for _ in range(2)]

    cuts = yield from largest(magnitudes, [count for pair in pairs for count in pair], size)
    return list(zip(cuts[::2], cuts[1::2], strict=True))


def without_outliers(stretch: Stretch, cuts: Sequence[tuple[Cut, Cut]]) -> Sparse:
    """Keep of each model the differences between its largest outliers and its small ones."""
    sparse = stretch.differences()
    for value, (top, both) in zip(sparse, cuts, strict=True):
        magnitude = np.abs(value)
        value *= both.mask(magnitude, stretch.index) & ~top.mask(magnitude, stretch.index)
    return sparse


def drop_by_rank(stretch: Stretch) -> Sparse:
    """Keep each difference with a probability that grows with its rank in its row, and rescale it.

    What is kept is divided by its probability. The smallest of a row is kept with probability
    ``density - epsilon/2``, the largest with ``density + epsilon/2``, linearly in between.

    References:
        P. T. Deep et al., DELLA-Merging: reducing interference in model merging through magnitude-based
        sampling, 2024. https://arxiv.org/abs/2406.11617
    """
    sparse = stretch.differences()
    each = stretch.settings.each
    for model, (value, density, epsilon) in enumerate(
        zip(sparse, each("density"), each("epsilon"), strict=True)
    ):
        if density >= 1:
            continue
        if not 0 < density - epsilon / 2 <= density + epsilon / 2 < 1:
            raise ValueError(
                f"density {density:g} ± epsilon/2 = {epsilon / 2:g} leaves (0, 1); choose a smaller epsilon"
            )
        rows = np.abs(value).reshape(-1, last_axis(stretch.shape))
        probability = ranks(rows).reshape(-1)
        probability *= value.dtype.type(epsilon / max(1, rows.shape[1] - 1))
        probability += value.dtype.type(density - epsilon / 2)
        value *= keep_mask(stretch.key(model), stretch.start, stretch.size, probability)
        if stretch.settings.flag("rescale"):
            value /= probability
    return sparse


def ranks(rows: Floats) -> Floats:
    """Return the rank of each number in its row, 0 for the smallest.

    Up to 16,384 columns, one sort of 32-bit keys does it: the leading bits of a magnitude (17 at least) above
    the column, so numbers that agree in these bits are ranked by column.

    Args:
        rows: ``[r, c]`` non-negative numbers.
    """
    columns = rows.shape[1]
    result = np.empty(rows.shape, rows.dtype)
    numbers = np.arange(columns, dtype=rows.dtype)
    if columns > 1 << 14 or rows.dtype != np.float32:
        np.put_along_axis(result, np.argsort(rows, axis=1, kind="stable"), numbers[None], axis=1)
        return result
    bits = max(1, (columns - 1).bit_length())
    low = np.uint32((1 << bits) - 1)
    keys = np.left_shift(rows.view(np.uint32), 1)
    keys &= ~low
    keys |= np.arange(columns, dtype=np.uint32)
    keys.sort(axis=1)
    keys &= low
    for row, key in zip(result, keys, strict=True):
        row[key] = numbers
    return result


def _family(
    name: str,
    reference: str,
    sparsify: Callable[..., Sparse] | None,
    *,
    elect: bool,
    normalize: bool,
    extra: dict[str, Parameter] | None = None,
    statistics: Callable[..., Statistics] | None = None,
    rows: bool = False,
    summary: str,
) -> None:
    """Register one pair of a sparsification and a consensus."""

    def combine(stretch: Stretch, *found: Any) -> Floats:
        sparse = stretch.differences() if sparsify is None else sparsify(stretch, *found)
        return sum_differences(stretch, sparse, elect=elect, normalize=stretch.settings.flag("normalize"))

    combine.__doc__ = summary
    combine.__qualname__ = f"task_vectors.{name}"
    merge_method(
        name,
        reference=reference,
        parameters={
            **SHARED,
            "normalize": Parameter(normalize, "divide by the sum of the weights that took part"),
            **({} if sparsify is None else {"density": DENSITY}),
            **(extra or {}),
        },
        base="required",
        statistics=statistics,
        rows=rows,
        arithmetic=sparsify is None and not elect and not normalize,
    )(combine)


ILHARCO = "G. Ilharco et al., Editing models with task arithmetic, 2022. https://arxiv.org/abs/2212.04089"
YADAV = (
    "P. Yadav et al., TIES-Merging: resolving interference when merging models, 2023. "
    "https://arxiv.org/abs/2306.01708"
)
YU = (
    "L. Yu et al., Language models are Super Mario: absorbing abilities from homologous models as a free "
    "lunch (DARE), 2023. https://arxiv.org/abs/2311.03099"
)
DAVARI = (
    "M. Davari, E. Belilovsky, Model breadcrumbs: scaling multi-task model merging with sparse masks, 2023. "
    "https://arxiv.org/abs/2312.06795"
)
DEEP = (
    "P. T. Deep et al., DELLA-Merging: reducing interference in model merging through magnitude-based "
    "sampling, 2024. https://arxiv.org/abs/2406.11617"
)
RESCALE = {"rescale": Parameter(True, "divide what is kept by its probability")}
GAMMA = {
    "gamma": Parameter(0.01, "fraction of the largest differences to drop", per_model=True, low=0, high=1)
}
EPSILON = {
    "epsilon": Parameter(0.15, "spread of the probabilities within a row", per_model=True, low=0, high=1)
}

_family(
    "task_arithmetic", ILHARCO, None, elect=False, normalize=False,
    summary="Add weighted differences to the base: ``θ₀ + λ Σ wᵢ δᵢ``.",
)  # fmt: skip
_family(
    "ties", YADAV, trim, elect=True, normalize=True, statistics=_keep_largest,
    summary="Keep the largest differences, elect signs, average those that agree.",
)  # fmt: skip
_family(
    "dare_linear", YU, drop, elect=False, normalize=False, extra=RESCALE,
    summary="Drop differences at random and rescale, then add them.",
)  # fmt: skip
_family(
    "dare_ties", YU, drop, elect=True, normalize=False, extra=RESCALE,
    summary="Drop differences at random and rescale, elect signs, add those that agree.",
)  # fmt: skip
_family(
    "breadcrumbs", DAVARI, without_outliers, elect=False, normalize=False, extra=GAMMA,
    statistics=_outliers, summary="Drop the largest and the smallest differences, then add the rest.",
)  # fmt: skip
_family(
    "breadcrumbs_ties", DAVARI, without_outliers, elect=True, normalize=False, extra=GAMMA,
    statistics=_outliers,
    summary="Drop the largest and the smallest differences, elect signs, add those that agree.",
)  # fmt: skip
_family(
    "della", DEEP, drop_by_rank, elect=True, normalize=True, extra={**RESCALE, **EPSILON}, rows=True,
    summary="Drop differences by rank at random and rescale, elect signs, average those that agree.",
)  # fmt: skip
_family(
    "della_linear", DEEP, drop_by_rank, elect=False, normalize=False, extra={**RESCALE, **EPSILON}, rows=True,
    summary="Drop differences by rank at random and rescale, then add them.",
)  # fmt: skip
