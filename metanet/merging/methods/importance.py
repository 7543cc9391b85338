"""Averages in which every value is weighed by how much it matters to its model."""

from __future__ import annotations

import numpy as np

from metanet.merging.floats import Floats
from metanet.merging.method import Parameter, merge_method
from metanet.merging.methods.linear import WEIGHT
from metanet.merging.stretch import Stretch


@merge_method(
    "fisher",
    reference=(
        "M. Matena, C. Raffel, Merging models with Fisher-weighted averaging, 2021. "
        "https://arxiv.org/abs/2111.09832"
    ),
    parameters={
        "weight": WEIGHT,
        "floor": Parameter(1e-12, "importance that every value has at least", low=0),
    },
    importances=True,
)
def fisher(stretch: Stretch) -> Floats:
    """Average weighted by Fisher information: ``Σ wᵢ Fᵢ θᵢ / Σ wᵢ Fᵢ``, elementwise."""
    floor = stretch.settings.number("floor")
    total, divisor = np.zeros_like(stretch.values[0]), np.zeros_like(stretch.values[0])
    weights = stretch.settings.each("weight")
    for value, importance, weight in zip(stretch.values, stretch.importances, weights, strict=True):
        if float(importance.min(initial=0)) < 0:
            raise ValueError("found negative importances, which no Fisher information has; give its diagonal")
        np.maximum(importance, floor, out=importance)
        importance *= importance.dtype.type(weight)
        divisor += importance
        importance *= value
        total += importance
    if not divisor.all():
        raise ValueError("the weighted importances sum to zero somewhere; raise floor or change the weights")
    total /= divisor
    return total
