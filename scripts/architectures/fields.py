"""Implicit neural representations and physics-informed networks written as plain modules."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.family import Family, example, families, normal


class Sine(nn.Module):
    """``sin(ω (W x + b))``."""

    def __init__(self, inputs: int, outputs: int, omega: float = 30.0) -> None:
        super().__init__()
        self.linear, self.omega = nn.Linear(inputs, outputs), omega

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega * self.linear(x))


class Cosine(Sine):
    """``cos(ω (W x + b))``."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cos(self.omega * self.linear(x))


class Gaussian(nn.Module):
    """``exp(-(W x + b)² / 2 s²)``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(-(self.linear(x) ** 2) / 0.02)


class Gabor(nn.Module):
    """Complex Gabor wavelets (WIRE)."""

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return torch.exp(1j * 10 * y - (10 * y).abs() ** 2 / 100)


class Wire(nn.Module):
    """Wavelet layers, real part of a complex head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Gabor(2, 6, torch.float32), Gabor(6, 6, torch.complex64)
        self.head = nn.Linear(6, 1, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x))).real


class FourierFeatures(nn.Module):
    """Random Fourier features before a ReLU network."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(2, 6))
        self.layers = nn.Sequential(
            nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        angles = 2 * math.pi * x @ self.frequencies
        return self.layers(torch.cat([angles.sin(), angles.cos()], -1))


class NeRF(nn.Module):
    """Positional encoding, skip connection, density and view-dependent colour."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(15, 10), nn.Linear(25, 10)
        self.density, self.feature, self.view, self.colour = (
            nn.Linear(10, 1),
            nn.Linear(10, 10),
            nn.Linear(13, 6),
            nn.Linear(6, 3),
        )

    def forward(self, x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        encoded = torch.cat([x, *(f(2**i * x) for i in range(2) for f in (torch.sin, torch.cos))], -1)
        h = F.relu(self.first(encoded))
        h = F.relu(self.second(torch.cat([encoded, h], -1)))
        colour = F.relu(self.view(torch.cat([self.feature(h), direction], -1)))
        return F.softplus(self.density(h)), torch.sigmoid(self.colour(colour))


class DeepSDF(nn.Module):
    """Weight-normed decoder of a latent code and a point, the input joined again half way."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.code = nn.Parameter(torch.randn(1, 4))
        self.layers = nn.ModuleList(norm(nn.Linear(i, o)) for i, o in ((7, 10), (10, 9), (16, 8)))
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.cat([self.code.expand(x.shape[0], -1), x], -1)
        h = first
        for i, layer in enumerate(self.layers):
            h = F.relu(layer(torch.cat([h, first], -1) if i == 2 else h))
        return torch.tanh(self.head(h))


class MultiplicativeFilters(nn.Module):
    """Products of sines of the input with linear maps of the state (MFN)."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.ModuleList(Sine(2, 8, 10.0) for _ in range(3))
        self.linears, self.head = nn.ModuleList(nn.Linear(8, 8) for _ in range(2)), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.filters[0](x)
        for linear, filters in zip(self.linears, list(self.filters)[1:], strict=True):
            h = linear(h) * filters(x)
        return self.head(h)


class ModulatedSiren(nn.Module):
    """A SIREN whose layers are shifted by a latent code (functa)."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.modulation = nn.Parameter(torch.randn(1, 5)), nn.Linear(5, 17)
        self.first, self.second, self.head = nn.Linear(2, 9), nn.Linear(9, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.modulation(self.code).split([9, 8], -1)
        return self.head(torch.sin(30 * (self.second(torch.sin(30 * (self.first(x) + a))) + b)))


class Occupancy(nn.Module):
    """Residual blocks with batch norms conditioned on a code (occupancy networks)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(3, 8), nn.BatchNorm1d(8, affine=False)
        self.gamma, self.beta = nn.Linear(4, 8), nn.Linear(4, 8)
        self.inner, self.head = nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        h = self.embed(x)
        y = self.gamma(code) * self.norm(h) + self.beta(code)
        return self.head(F.relu(h + self.inner(F.relu(y))))


class GridFeatures(nn.Module):
    """A learned grid, sampled bilinearly, before a small network (dense voxel features)."""

    def __init__(self) -> None:
        super().__init__()
        self.grid = nn.Parameter(torch.randn(1, 5, 6, 6))
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        sampled = F.grid_sample(self.grid, x[None, None].clamp(-1, 1), align_corners=True)
        return self.layers(sampled[0, :, 0].mT)


class DeepONet(nn.Module):
    """Branch of a function's samples times trunk of a place."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 7))
        self.trunk, self.bias = (
            nn.Sequential(nn.Linear(2, 9), nn.Tanh(), nn.Linear(9, 7)),
            nn.Parameter(torch.zeros(())),
        )

    def forward(self, samples: Tensor, places: Tensor) -> Tensor:
        return self.branch(samples) @ self.trunk(places).mT + self.bias


class SpectralConvolution(nn.Module):
    """Linear maps of the lowest Fourier modes (FNO)."""

    def __init__(self, width: int, modes: int) -> None:
        super().__init__()
        self.weight, self.local, self.modes = (
            nn.Parameter(torch.randn(width, width, modes, dtype=torch.cfloat)),
            nn.Conv1d(width, width, 1),
            modes,
        )

    def forward(self, x: Tensor) -> Tensor:
        modes = torch.fft.rfft(x)[..., : self.modes]
        mixed = torch.einsum("bik,iok->bok", modes, self.weight)
        return F.gelu(torch.fft.irfft(mixed, n=x.shape[-1]) + self.local(x))


_POINTS = normal(6, 2)


def _sines(layer: type[Sine]) -> nn.Module:
    return nn.Sequential(layer(2, 9), layer(9, 8), nn.Linear(8, 1))


FAMILIES: list[Family] = families(
    "implicit representations and operators",
    {
        "SIREN": example(lambda: _sines(Sine), _POINTS),
        "Cosine network": example(lambda: _sines(Cosine), _POINTS),
        "Gaussian network": example(
            lambda: nn.Sequential(Gaussian(2, 9), Gaussian(9, 8), nn.Linear(8, 1)), _POINTS
        ),
        "WIRE": example(Wire, _POINTS),
        "Fourier features": example(FourierFeatures, _POINTS),
        "NeRF": example(NeRF, normal(6, 3), normal(6, 3)),
        "DeepSDF": example(DeepSDF, normal(6, 3)),
        "Multiplicative filter network": example(MultiplicativeFilters, _POINTS),
        "Modulated SIREN": example(ModulatedSiren, _POINTS),
        "Occupancy network": example(Occupancy, normal(6, 3), normal(6, 4)),
        "Grid features": example(GridFeatures, _POINTS),
        "PINN": example(
            lambda: nn.Sequential(nn.Linear(2, 9), nn.Tanh(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 1)),
            _POINTS,
        ),
        "DeepONet": example(DeepONet, normal(3, 6), normal(5, 2)),
        "Fourier neural operator": example(
            lambda: nn.Sequential(
                nn.Conv1d(1, 6, 1), SpectralConvolution(6, 3), SpectralConvolution(6, 3), nn.Conv1d(6, 1, 1)
            ),
            normal(2, 1, 12),
        ),
    },
)
