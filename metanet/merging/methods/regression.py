"""Merging linear layers by least squares on what flows into them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from metanet.merging.floats import Floats
from metanet.merging.method import Parameter, merge_method
from metanet.merging.methods.linear import normalized, weighted_sum
from metanet.merging.stretch import Settings, Stretch, last_axis

Matrix = NDArray[np.float64]
LEAST_PIVOT = 1e-10
"""Smallest squared pivot of the scaled sum of Gram matrices for which the solution is more than rounding."""


def regression_maps(settings: Settings, grams: Sequence[Matrix]) -> list[Matrix]:
    r"""Return what every model's rows are multiplied by.

        M_i = G_i (Σ_j G_j)⁻¹,   G_i = w_i (α X_iᵀX_i + (1 − α) diag(X_iᵀX_i)),   so that  Σ_i M_i = 1 .

    Inputs that no model ever saw active are averaged.

    Args:
        settings: ``weight`` of every model and ``alpha``.
        grams: ``[n, n]`` inner products X_iᵀX_i of the layer's inputs, one per model; overwritten.

    Returns:
        ``[n, n]`` for every model.

    Raises:
        ValueError: no Gram matrices, or too little data for this alpha.
    """
    alpha, weights = settings.number("alpha"), settings.each("weight")
    if min(weights) < 0 or not sum(weights) > 0:
        raise ValueError(f"found the weights {list(weights)}, expected none below zero and one above")
    for gram, weight in zip(grams, weights, strict=True):
        diagonal = np.diagonal(gram).copy()
        if float(diagonal.min(initial=0)) < 0 or not np.allclose(gram, gram.T, rtol=1e-3):
            raise ValueError("found a Gram matrix that is none: not symmetric, or below zero on its diagonal")
        gram *= alpha * weight
        np.fill_diagonal(gram, weight * diagonal)
    silent = np.sum([np.diagonal(gram) for gram in grams], axis=0) == 0
    for gram, weight in zip(grams, weights, strict=True):
        gram[silent, silent] = weight
    total = np.sum(grams, axis=0)
    scale = 1 / np.sqrt(np.diagonal(total))
    total *= scale[:, None]
    total *= scale
    try:
        least = float(np.square(np.diagonal(np.linalg.cholesky(total))).min(initial=1))
    except np.linalg.LinAlgError:
        least = 0.0
    if least < LEAST_PIVOT:
        raise ValueError(
            f"the inputs' Gram matrices do not determine the layer with alpha {alpha:g}: collect them from "
            "more data, or lower alpha"
        )
    maps = []
    for gram in grams:
        gram *= scale[:, None]
        gram *= scale
        inner = np.linalg.solve(total, gram).T
        inner /= scale[:, None]
        inner *= scale
        maps.append(inner)
    return maps


@merge_method(
    "regmean",
    reference=(
        "X. Jin, X. Ren, D. Preotiuc-Pietro, P. Cheng, Dataless knowledge fusion by merging weights of "
        "language models, 2023. https://arxiv.org/abs/2212.09849"
    ),
    parameters={
        "weight": Parameter(
            1.0, "factor of the model's Gram matrices, and of what is averaged", per_model=True
        ),
        "alpha": Parameter(0.9, "factor of their entries off the diagonal", low=0, high=1),
    },
    rows=True,
    prepare=regression_maps,
)
def regmean(stretch: Stretch, maps: Sequence[Matrix] = ()) -> Floats:
    """Fit linear layers to the outputs of all models: ``(Σ Gᵢ)⁻¹ Σ Gᵢ Wᵢ``; average everything else."""
    if not maps:
        return weighted_sum(stretch.values, normalized(stretch.settings.each("weight")))
    columns = last_axis(stretch.shape)
    total = np.zeros((stretch.size // columns, columns), np.float64)
    for values, each in zip(stretch.values, maps, strict=True):
        total += values.reshape(-1, columns) @ each
    return total.reshape(-1).astype(stretch.values[0].dtype)
