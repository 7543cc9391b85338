"""Weighted averages of weights, and taking tensors over as they are."""

from __future__ import annotations

from collections.abc import Sequence

from metanet.merging.floats import Floats
from metanet.merging.method import Parameter, merge_method
from metanet.merging.stretch import Stretch

WEIGHT = Parameter(None, "factor of the model", per_model=True)


def weighted_sum(values: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """Return ``Σ wᵢ θᵢ``, in place of the first array; all arrays are overwritten."""
    total = values[0]
    total *= total.dtype.type(weights[0])
    for value, weight in zip(values[1:], weights[1:], strict=True):
        value *= value.dtype.type(weight)
        total += value
    return total


def normalized(weights: Sequence[float]) -> list[float]:
    """Return the weights divided by their sum.

    Raises:
        ValueError: they sum to zero.
    """
    total = float(sum(weights))
    if abs(total) < 1e-8:
        raise ValueError(
            f"the weights {list(weights)} sum to {total:g}, which cannot be normalized; change them or set "
            "normalize: false"
        )
    return [weight / total for weight in weights]


@merge_method(
    "linear",
    reference=(
        "M. Wortsman et al., Model soups: averaging weights of multiple fine-tuned models improves accuracy "
        "without increasing inference time, 2022. https://arxiv.org/abs/2203.05482"
    ),
    parameters={
        "weight": WEIGHT,
        "normalize": Parameter(True, "divide by the sum of the weights"),
    },
    base="unused",
    arithmetic=True,
)
def linear(stretch: Stretch) -> Floats:
    """Weighted average: ``Σ wᵢ θᵢ / Σ wᵢ``."""
    weights = stretch.settings.each("weight")
    return weighted_sum(
        stretch.values, normalized(weights) if stretch.settings.flag("normalize") else weights
    )


@merge_method(
    "passthrough",
    reference="layer stacking as in C. O. Goddard et al., Arcee's MergeKit, 2024. https://arxiv.org/abs/2403.13257",
    parameters={"scale": Parameter(1.0, "factor of the model", per_model=True)},
    models=(1, 1),
    arithmetic=True,
)
def passthrough(stretch: Stretch) -> Floats:
    """Take one model's tensor over, scaled: ``s θ``."""
    [scale] = stretch.settings.each("scale")
    [values] = stretch.values
    if scale != 1:
        values *= values.dtype.type(scale)
    return values
