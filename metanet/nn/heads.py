"""Heads: from features to one answer per network (invariant), or to new weights (equivariant)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metanet.features import WeightFeatures, feature_layout
from metanet.nn.doors import give_blocks, take_blocks
from metanet.nn.pooling import Pooling, pool_features, pooled_factor
from metanet.spec import WeightSpec


class InvariantHead(nn.Module):
    """Pool every block over its group axes, lay the results side by side, apply an MLP.

    Args:
        spec: of the weights.
        channels: of the features that come in.
        out_features: size of the answer.
        hidden_features: width of the MLP; None for a single linear map.
        folded: hidden features (width C); False for parameter-like ones (width prod(fixed) · C).
        pooling: ``"mean"``, or ``"moments"`` for mean, maximum and mean of squares.
        dropout: in the MLP, before each linear map.

    References:
        Navon et al.: Equivariant Architectures for Learning in Deep Weight Spaces (2023), arXiv:2301.12780.
    """

    def __init__(
        self,
        spec: WeightSpec,
        channels: int,
        out_features: int,
        hidden_features: int | None = 256,
        *,
        folded: bool = True,
        pooling: Pooling = "mean",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.spec, self.channels, self.folded, self.pooling = spec, channels, folded, pooling
        layout = feature_layout(spec)
        widths = [channels * (1 if folded else block.fixed) for block in layout]
        pooled = sum(
            width * (pooled_factor(pooling) if block.groups else 1)
            for width, block in zip(widths, layout, strict=True)
        )
        layers: list[nn.Module] = [nn.Dropout(dropout)] if dropout else []
        if hidden_features is None:
            layers.append(nn.Linear(pooled, out_features))
        else:
            layers += [nn.Linear(pooled, hidden_features), nn.ReLU()]
            layers += [nn.Dropout(dropout)] if dropout else []
            layers.append(nn.Linear(hidden_features, out_features))
        self.mlp = nn.Sequential(*layers)

    def forward(self, features: WeightFeatures) -> Tensor:
        """Map features to ``[b, out_features]``."""
        return self.answer(self.pool(features))

    def pool(self, features: WeightFeatures) -> Tensor:
        """Return the pooled blocks side by side, ``[b, pooled]``."""
        blocks = take_blocks(self.spec, features, self.channels, self.folded)
        return pool_features(blocks, self.pooling)

    def answer(self, pooled: Tensor) -> Tensor:
        """Map pooled features ``[b, pooled]`` to ``[b, out_features]``."""
        return self.mlp(pooled)  # type: ignore[no-any-return]


class EquivariantHead(nn.Module):
    """Turn features into an edit of the weights they came from: ``w + s · delta``.

    The scale s is learned, one per block, and starts small: the edit starts near nothing.

    Args:
        spec: of the weights.
        scale: initial value of s.

    References:
        Zhou et al.: Permutation Equivariant Neural Functionals (2023), arXiv:2302.14040, section 3.3.
    """

    def __init__(self, spec: WeightSpec, scale: float = 0.01) -> None:
        super().__init__()
        self.spec = spec
        self.scales = nn.Parameter(torch.full((len(feature_layout(spec)),), scale))

    def forward(self, weights: WeightFeatures, delta: WeightFeatures) -> WeightFeatures:
        """Return the edited weights, given the weights and what an equivariant network says of them."""
        base = take_blocks(self.spec, weights, 1, folded=False)
        change = take_blocks(self.spec, delta, 1, folded=False)
        edited = [w + s * d for w, s, d in zip(base, self.scales, change, strict=True)]
        return give_blocks(self.spec, weights, edited, 1, folded=False)

    def extra_repr(self) -> str:
        """Say what is edited."""
        return f"{self.spec!r}"
