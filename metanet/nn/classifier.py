"""WeightClassifier: encoding, equivariant network and invariant head in one module."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from metanet.features import WeightFeatures
from metanet.nn.dws import DWSNet
from metanet.nn.encoding import FourierKind, InputEncoding
from metanet.nn.heads import InvariantHead
from metanet.nn.pooling import Pooling
from metanet.nn.stack import Activation, Norm
from metanet.nn.unf import UNF
from metanet.spec import WeightSpec

Network = Literal["unf", "dws"]


class WeightClassifier(nn.Module):
    """Answer one question per network from its weights; the answer does not change with permutations.

        head(network(encoding(weights)))

    Args:
        spec: of the weights.
        out_features: size of the answer (classes).
        network: ``"unf"`` (fixed axes folded) or ``"dws"`` (fixed axes kept apart in every layer).
        in_channels: channels per parameter that come in.
        hidden_channels: of the network.
        num_layers: of the network.
        head_features: width of the head's MLP; None for a linear head.
        pooling: of the head.
        activation: of the network.
        norm: of the network.
        residual: of the network.
        dropout: of the network's channels.
        head_dropout: in the head.
        num_frequencies: Fourier features of the encoding.
        fourier: their kind.
        fourier_scale: their scale.
    """

    def __init__(
        self,
        spec: WeightSpec,
        out_features: int,
        *,
        network: Network = "unf",
        in_channels: int = 1,
        hidden_channels: int = 32,
        num_layers: int = 4,
        head_features: int | None = 256,
        pooling: Pooling = "mean",
        activation: Activation = "relu",
        norm: Norm | None = None,
        residual: bool = False,
        dropout: float = 0.0,
        head_dropout: float = 0.0,
        num_frequencies: int = 0,
        fourier: FourierKind = "gaussian",
        fourier_scale: float = 0.5,
    ) -> None:
        super().__init__()
        networks: dict[str, type[UNF] | type[DWSNet]] = {"unf": UNF, "dws": DWSNet}
        if network not in networks:
            raise ValueError(f"unknown network {network!r}; the known ones are {', '.join(networks)}")
        self.spec = spec
        self.encoding = InputEncoding(
            spec, in_channels, num_frequencies=num_frequencies, fourier=fourier, scale=fourier_scale
        )
        self.network = networks[network](
            spec,
            self.encoding.out_channels,
            hidden_channels,
            None,
            num_layers,
            activation=activation,
            norm=norm,
            residual=residual,
            dropout=dropout,
        )
        self.head = InvariantHead(
            spec,
            hidden_channels,
            out_features,
            head_features,
            folded=network == "unf",
            pooling=pooling,
            dropout=head_dropout,
        )

    def fit_encoding(self, features: WeightFeatures) -> WeightClassifier:
        """Take the encoding's statistics from a batch of networks; returns this classifier."""
        self.encoding.fit(features)
        return self

    def forward(self, features: WeightFeatures) -> Tensor:
        """Map parameter-like features to ``[b, out_features]``."""
        encoded = self.encoding(features)
        if self.head.pooling == "mean":
            return self.head.answer(torch.cat(self.network.means(encoded), -1))
        return self.head(self.network(encoded))  # type: ignore[no-any-return]
