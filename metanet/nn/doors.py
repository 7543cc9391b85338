"""The doors of modules: features in, blocks inside, features out; what does not fit is refused here."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from metanet.features import WeightFeatures, feature_layout, feature_spec
from metanet.spec import WeightSpec


def take_blocks(spec: WeightSpec, features: WeightFeatures, channels: int, folded: bool) -> list[Tensor]:
    """Return the features' tensors in the order of the spec's blocks.

    Raises:
        ValueError: the features are on another spec, or have other channels.
    """
    layout = feature_layout(spec)
    if features.layout != layout or any(
        features.spec.sizes[g] != n for g, n in feature_spec(spec).sizes.items()
    ):
        ours, theirs = {b.key for b in layout}, {b.key for b in features.layout}
        raise ValueError(
            f"the features are on {features.spec!r}, this module is on {spec!r} "
            f"(only here: {sorted(ours - theirs)[:5]}, only there: {sorted(theirs - ours)[:5]}). "
            "Entries without floating-point values have no features: build the module on features.spec"
        )
    if features.channels != channels or features.folded != folded:
        expected = f"{channels} {'hidden channels' if folded else 'channels per parameter'}"
        raise ValueError(f"expected features with {expected}, found {features!r}")
    return [features.tensors[block.key] for block in layout]


def give_blocks(
    spec: WeightSpec, features: WeightFeatures, blocks: Sequence[Tensor], channels: int, folded: bool
) -> WeightFeatures:
    """Return features made of tensors in the order of the spec's blocks."""
    keys = [block.key for block in feature_layout(spec)]
    return features.with_tensors(dict(zip(keys, blocks, strict=True)), channels=channels, folded=folded)
