"""What a metanetwork is measured against: an MLP on flattened weights, blind to their symmetry."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from metanet.features import WeightFeatures, feature_spec
from metanet.spec import WeightSpec


class FlatMLP(nn.Module):
    """MLP on the concatenated weights of a network, each coordinate standardised.

        z = (w - mean) / std,   y = MLP(z)

    The statistics are buffers, saved with the model; until `fit_encoding` they are 0 and 1.

    Args:
        spec: of the weights.
        out_features: size of the answer (classes).
        hidden_features: width of every hidden layer.
        num_layers: number of hidden layers.
        dropout: behind every hidden layer.
    """

    def __init__(
        self,
        spec: WeightSpec,
        out_features: int,
        *,
        hidden_features: int = 512,
        num_layers: int = 2,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        if hidden_features < 1 or num_layers < 1:
            raise ValueError(
                "an MLP needs at least one hidden layer of at least one unit, "
                f"found {num_layers} of {hidden_features}"
            )
        self.spec = spec
        size = feature_spec(spec).num_parameters
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        widths = [size, *[hidden_features] * num_layers]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout)]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden_features, out_features))

    def fit_encoding(self, features: WeightFeatures) -> FlatMLP:
        """Take every coordinate's mean and standard deviation from training networks; returns this module.

        A constant coordinate keeps a standard deviation of one.
        """
        values = flatten(features).double()
        std = values.std(0, correction=0)
        self.get_buffer("mean").copy_(values.mean(0))
        self.get_buffer("std").copy_(torch.where(std > 1e-12, std, torch.ones_like(std)))
        return self

    def forward(self, features: WeightFeatures) -> Tensor:
        """Map features of one channel to ``[b, out_features]``."""
        z = (flatten(features) - self.get_buffer("mean")) / self.get_buffer("std")
        return self.mlp(z)  # type: ignore[no-any-return]


def flatten(features: WeightFeatures) -> Tensor:
    """Lay all blocks of every network side by side, ``[b, parameters]``."""
    blocks: Sequence[Tensor] = [features.tensors[block.key] for block in features.layout]
    return torch.cat([block.flatten(1) for block in blocks], 1)
