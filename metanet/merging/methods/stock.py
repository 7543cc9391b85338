"""Model Stock: how far to go from the base to the average follows from the angle between fine-tunes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metanet.merging.floats import Floats
from metanet.merging.gram import gram_matrix, row_gram_matrices
from metanet.merging.method import Parameter, Statistics, merge_method
from metanet.merging.stretch import Settings, Stretch, last_axis


def interpolation_ratio(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``t = k cos θ / (1 + (k - 1) cos θ)``, θ the mean angle's cosine between k differences.

    Args:
        gram: ``[*b, k, k]`` inner products of the differences.

    Returns:
        ``[*b]`` ratios; a difference of norm zero is orthogonal to all others.
    """
    count = gram.shape[-1]
    norms = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    scale = norms[..., :, None] * norms[..., None, :]
    cosines = np.divide(gram, scale, out=np.zeros_like(gram), where=scale > 0)
    upper = np.triu_indices(count, 1)
    mean = np.clip(cosines[..., upper[0], upper[1]], -1, 1).mean(-1)
    ratio: NDArray[np.float64] = count * mean / (1 + (count - 1) * mean)
    return ratio


def _ratio(settings: Settings, shape: tuple[int, ...], has_base: bool) -> Statistics:
    if settings.flag("filter_wise") and len(shape) > 1:
        gram = yield from row_gram_matrices(Stretch.differences)
    else:
        gram = yield from gram_matrix(Stretch.differences)
    return interpolation_ratio(gram)


@merge_method(
    "model_stock",
    reference=(
        "D.-H. Jang, S. Yun, D. Han, Model Stock: all we need is just a few fine-tuned models, 2024. "
        "https://arxiv.org/abs/2403.19522"
    ),
    parameters={"filter_wise": Parameter(False, "one ratio per row instead of one per tensor")},
    base="required",
    models=(2, None),
    statistics=_ratio,
    rows=True,
)
def model_stock(stretch: Stretch, ratio: NDArray[np.float64]) -> Floats:
    """From the base towards the average: ``t · mean θᵢ + (1 - t) · θ₀``."""
    differences: Sequence[Floats] = stretch.differences()
    total: Any = differences[0]
    for difference in differences[1:]:
        total += difference
    total *= total.dtype.type(1 / len(differences))
    if ratio.ndim:
        columns = last_axis(stretch.shape)
        first = stretch.start // columns
        rows = total.reshape(-1, columns)
        rows *= ratio[first : first + len(rows), None]
    else:
        total *= total.dtype.type(ratio)
    result: Floats = total
    result += stretch.reference
    return result
