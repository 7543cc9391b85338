"""InputEncoding: weights as a network likes to see them."""

from __future__ import annotations

from math import pi
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from metanet.features import WeightFeatures, feature_layout
from metanet.nn.doors import give_blocks, take_blocks
from metanet.spec import WeightSpec

FourierKind = Literal["gaussian", "sinusoidal"]


class InputEncoding(nn.Module):
    """Standardise every block, and append Fourier features on request.

        z = (w - mean) / std        per block and fixed index: the same for all permuted indices
        features = [z, sin(2π f_1 z), …, cos(2π f_1 z), …]

    The statistics are buffers, saved with the model; until `fit` they are 0 and 1.

    Args:
        spec: of the weights.
        in_channels: channels per parameter that come in.
        num_frequencies: number of Fourier frequencies F; 0 appends nothing.
        fourier: ``"gaussian"`` draws f ~ N(0, scale²); ``"sinusoidal"`` takes f = scale · 2^k, k = 0…F-1.
        scale: of the frequencies, in cycles per standard deviation.

    References:
        Tancik et al.: Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains
        (2020), arXiv:2006.10739. Zhou et al.: Permutation Equivariant Neural Functionals (2023),
        arXiv:2302.14040, which feed the raw weights through them.
    """

    def __init__(
        self,
        spec: WeightSpec,
        in_channels: int = 1,
        *,
        num_frequencies: int = 0,
        fourier: FourierKind = "gaussian",
        scale: float = 0.5,
    ) -> None:
        super().__init__()
        if fourier not in get_args(FourierKind):
            raise ValueError(f"unknown Fourier features {fourier!r}; expected 'gaussian' or 'sinusoidal'")
        if num_frequencies < 0:
            raise ValueError(f"num_frequencies must not be negative; found {num_frequencies}")
        self.spec, self.in_channels = spec, in_channels
        self.out_channels = in_channels * (1 + 2 * num_frequencies)
        self.num_frequencies = num_frequencies
        self.layout = feature_layout(spec)
        for number, block in enumerate(self.layout):
            self.register_buffer(f"mean_{number}", torch.zeros(block.fixed * in_channels))
            self.register_buffer(f"std_{number}", torch.ones(block.fixed * in_channels))
        if fourier == "gaussian":
            frequencies = torch.randn(num_frequencies) * scale
        else:
            frequencies = scale * 2.0 ** torch.arange(num_frequencies)
        self.register_buffer("frequencies", frequencies)

    def fit(self, features: WeightFeatures) -> InputEncoding:
        """Take mean and standard deviation from a batch of networks: over the batch and the group axes.

        A constant block keeps a standard deviation of one. Returns this encoding.
        """
        blocks = take_blocks(self.spec, features, self.in_channels, folded=False)
        for number, block in enumerate(blocks):
            values = block.detach().double().flatten(0, -2)
            std = values.std(0, correction=0)
            self._statistic("mean", number).copy_(values.mean(0))
            self._statistic("std", number).copy_(torch.where(std > 1e-12, std, torch.ones_like(std)))
        return self

    def _statistic(self, name: str, number: int) -> Tensor:
        return self.get_buffer(f"{name}_{number}")

    def forward(self, features: WeightFeatures) -> WeightFeatures:
        """Map parameter-like features with C channels to (1 + 2F) · C channels."""
        encoded = []
        for number, block in enumerate(take_blocks(self.spec, features, self.in_channels, folded=False)):
            z = (block - self._statistic("mean", number)) / self._statistic("std", number)
            encoded.append(self._fourier(z, self.layout[number].fixed) if self.num_frequencies else z)
        return give_blocks(self.spec, features, encoded, self.out_channels, folded=False)

    def _fourier(self, z: Tensor, fixed: int) -> Tensor:
        values = z.unflatten(-1, (fixed, self.in_channels))
        angles = (values[..., None] * (2 * pi * self.get_buffer("frequencies"))).flatten(-2)
        return torch.cat([values, angles.sin(), angles.cos()], -1).flatten(-2)

    def extra_repr(self) -> str:
        """Say what is encoded into what."""
        return f"{self.spec!r}, {self.in_channels} -> {self.out_channels} channels"
