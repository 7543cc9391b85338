"""RAM: what several models changed is averaged, what one model alone changed is kept whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from metanet.merging.floats import Floats
from metanet.merging.method import Parameter, Pass, Statistics, merge_method
from metanet.merging.stretch import Settings, Stretch

REFERENCE = "Behavior knowledge merge in reinforced agentic models (Reinforced Agent Merging), 2026"
EPSILON = Parameter(1e-5, "differences up to it count as none", low=0)


def changed(differences: Sequence[Floats], epsilon: float) -> NDArray[np.bool_]:
    """Tell ``[k, n]`` which elements each model changed by more than ``epsilon``."""
    return np.stack([np.abs(difference) > epsilon for difference in differences])


def merge_changes(stretch: Stretch, factors: Sequence[float]) -> Floats:
    """Average what several models changed; add what one model alone changed, times that model's factor."""
    differences = stretch.differences()
    masks = changed(differences, stretch.settings.number("epsilon"))
    count = masks.sum(0)
    alone = count == 1
    total = np.zeros_like(differences[0])
    for difference, mask, factor in zip(differences, masks, factors, strict=True):
        difference *= mask
        if factor != 1:
            np.multiply(difference, difference.dtype.type(factor), out=difference, where=alone)
        total += difference
    total /= np.maximum(count, 1).astype(total.dtype)
    total += stretch.reference
    return total


@merge_method(
    "ram",
    reference=REFERENCE,
    parameters={"epsilon": EPSILON},
    base="required",
)
def ram(stretch: Stretch) -> Floats:
    """Average shared changes, keep unique ones."""
    return merge_changes(stretch, [1.0] * len(stretch.values))


def _overlaps(settings: Settings, shape: tuple[int, ...], has_base: bool) -> Statistics:
    epsilon = settings.number("epsilon")

    def counts(stretch: Stretch) -> NDArray[np.int64]:
        masks = changed(stretch.differences(), epsilon)
        several = masks.sum(0) > 1
        return np.stack([(masks & several).sum(1), (masks & ~several).sum(1)])

    partials = yield Pass(counts)
    shared, unique = np.sum(partials, axis=0).astype(np.float64)
    overlap = np.divide(shared, unique, out=np.zeros_like(shared), where=unique > 0)
    return 1 + settings.number("r") * np.clip(overlap, 0, settings.number("alpha"))


@merge_method(
    "ramplus_tl",
    reference=REFERENCE,
    parameters={
        "epsilon": EPSILON,
        "r": Parameter(0.1, "how much unique changes are strengthened per overlap"),
        "alpha": Parameter(0.2, "largest overlap that counts", low=0),
    },
    base="required",
    statistics=_overlaps,
)
def ramplus_tl(stretch: Stretch, factors: NDArray[np.float64]) -> Floats:
    """As ram, unique changes strengthened by how much the model's changes overlap with others'."""
    return merge_changes(stretch, [float(factor) for factor in factors])
