"""Autoencoders, generators, super-resolution and diffusion networks written as plain modules."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.convolutional import SqueezeExcite, convolution
from architectures.family import Family, example, families, normal


class VariationalAutoencoder(nn.Module):
    """Convolutional encoder to mean and log-variance, transposed decoder; decodes the mean."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(), nn.Flatten()
        )
        self.mean, self.variance = nn.Linear(8 * 16, 5), nn.Linear(8 * 16, 5)
        self.up = nn.Linear(5, 8 * 16)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(8, 6, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(6, 1, 4, 2, 1)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x)
        mean = self.mean(h)
        y = F.relu(self.up(mean)).view(-1, 8, 4, 4)
        return torch.sigmoid(self.decoder(y)), mean, self.variance(h)


def dcgan_generator() -> nn.Module:
    return nn.Sequential(
        *(nn.ConvTranspose2d(7, 10, 4, 1, 0, bias=False), nn.BatchNorm2d(10), nn.ReLU()),
        *(nn.ConvTranspose2d(10, 6, 4, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.ConvTranspose2d(6, 3, 4, 2, 1), nn.Tanh()),
    )


def dcgan_discriminator() -> nn.Module:
    norm = nn.utils.parametrizations.spectral_norm
    return nn.Sequential(
        *(
            norm(nn.Conv2d(3, 6, 4, 2, 1)),
            nn.LeakyReLU(0.2),
            norm(nn.Conv2d(6, 8, 4, 2, 1)),
            nn.LeakyReLU(0.2),
        ),
        *(nn.Flatten(), nn.Linear(8 * 16, 1)),
    )


class UNet(nn.Module):
    """Encoder and decoder with concatenated skips."""

    def __init__(self, *, transposed: bool) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = convolution(1, 6), convolution(6, 8), convolution(8, 10)
        self.up2 = (
            nn.ConvTranspose2d(10, 8, 2, 2) if transposed else nn.Upsample(scale_factor=2, mode="bilinear")
        )
        self.up1 = nn.ConvTranspose2d(8, 6, 2, 2) if transposed else nn.Upsample(scale_factor=2)
        self.join2 = convolution(16 if transposed else 18, 8)
        self.join1 = convolution(12 if transposed else 14, 6)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        y = self.bottom(F.max_pool2d(b, 2))
        y = self.join2(torch.cat([b, self.up2(y)], 1))
        return self.head(self.join1(torch.cat([a, self.up1(y)], 1)))


class AttentionGate(nn.Module):
    """U-Net skips weighted by a gate (Attention U-Net)."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.bottom = convolution(1, 6), convolution(6, 8)
        self.query, self.key, self.score = nn.Conv2d(8, 5, 1), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 1, 1)
        self.join, self.head = convolution(14, 6), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down(x)
        y = F.interpolate(self.bottom(F.max_pool2d(a, 2)), scale_factor=2)
        gate = torch.sigmoid(self.score(F.relu(self.query(y) + self.key(a))))
        return self.head(self.join(torch.cat([a * gate, y], 1)))


class SegNet(nn.Module):
    """Pooling indices of the encoder place the decoder's values."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.inner = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.decoder = nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y, places = F.max_pool2d(F.relu(self.encoder(x)), 2, return_indices=True)
        return self.decoder(F.max_unpool2d(F.relu(self.inner(y)), places, 2))


def pixel_shuffle_network() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 5, padding=2), nn.Tanh(), nn.Conv2d(8, 6, 3, padding=1), nn.Tanh()),
        *(nn.Conv2d(6, 20, 3, padding=1), nn.PixelShuffle(2), nn.PReLU(), nn.Conv2d(5, 1, 3, padding=1)),
    )


class EDSRBlock(nn.Module):
    """Residual block without norms, scaled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(channels, channels, 3, 1, 1),
            nn.Conv2d(channels, channels, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.second(F.relu(self.first(x)))


def edsr() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, 1, 1), EDSRBlock(6), EDSRBlock(6), nn.Conv2d(6, 4, 3, 1, 1), nn.PixelShuffle(2)
    )


class RCAN(nn.Module):
    """Residual blocks with channel attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.attention = (
            nn.Conv2d(1, 6, 3, 1, 1),
            nn.Conv2d(6, 6, 3, 1, 1),
            SqueezeExcite(6, 3),
        )
        self.up = nn.Conv2d(6, 4, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return F.pixel_shuffle(self.up(x + self.attention(F.relu(self.conv(x)))), 2)


class TimeBlock(nn.Module):
    """Residual block of a diffusion U-Net: group norm, SiLU, and a shift from the time embedding."""

    def __init__(self, channels: int, time: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(2, channels), nn.Conv2d(channels, channels, 3, 1, 1)
        self.time = nn.Linear(time, channels)
        self.norm2, self.conv2 = nn.GroupNorm(2, channels), nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        return x + self.conv2(F.silu(self.norm2(h)))


class ImageAttention(nn.Module):
    """Self-attention over the positions of an image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = (
            nn.GroupNorm(2, channels),
            nn.Conv2d(channels, 3 * channels, 1),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, 3, c, h * w).unbind(1)
        scores = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(c), -1)
        return x + self.out((v @ scores.transpose(1, 2)).reshape(b, c, h, w))


class DiffusionUNet(nn.Module):
    """Noise prediction with sinusoidal time embedding, attention and skips (DDPM)."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, 12), nn.SiLU(), nn.Linear(12, 12))
        self.stem, self.down, self.block1 = (
            nn.Conv2d(1, 8, 3, 1, 1),
            nn.Conv2d(8, 8, 3, 2, 1),
            TimeBlock(8, 12),
        )
        self.block2, self.attention = TimeBlock(8, 12), ImageAttention(8)
        self.out = nn.Sequential(nn.GroupNorm(2, 16), nn.SiLU(), nn.Conv2d(16, 1, 3, 1, 1))

    def forward(self, x: Tensor, step: Tensor) -> Tensor:
        angles = step[:, None] * torch.exp(-torch.arange(4) * math.log(1e4) / 4)
        time = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        a = self.block1(self.stem(x), time)
        y = self.attention(self.block2(self.down(a), time))
        return self.out(torch.cat([a, F.interpolate(y, scale_factor=2.0)], 1))


class DiTBlock(nn.Module):
    """Transformer block whose norms are shifted and scaled by a condition (adaptive layer norm)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width))
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        a, b, g, d, e, h = self.modulation(F.silu(c))[:, None].chunk(6, -1)
        y = self.norm(x) * (1 + a) + b
        x = x + g * self.attention(y, y, y, need_weights=False)[0]
        return x + h * self.mlp(self.norm(x) * (1 + d) + e)


class DiT(nn.Module):
    """Diffusion transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.condition = nn.Conv2d(3, 16, 4, 4), nn.Linear(4, 16)
        self.position = nn.Parameter(torch.randn(1, 16, 16))
        self.blocks = nn.ModuleList(DiTBlock(16, 4) for _ in range(2))
        self.head = nn.Linear(16, 48)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        y, c = self.patch(x).flatten(2).transpose(1, 2) + self.position, self.condition(condition)
        for block in self.blocks:
            y = block(y, c)
        y = self.head(y).reshape(-1, 4, 4, 4, 4, 3)
        return y.permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, 16, 16)


class StyledConvolution(nn.Module):
    """Convolution whose kernel is scaled per sample and renormalised (StyleGAN2)."""

    def __init__(self, channels: int, out: int, style: int) -> None:
        super().__init__()
        self.weight, self.style = nn.Parameter(torch.randn(out, channels, 3, 3)), nn.Linear(style, channels)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        kernel = self.weight * self.style(w)[:, None, :, None, None]
        kernel = kernel * torch.rsqrt(kernel.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        b, c, h, v = x.shape
        y = F.conv2d(x.reshape(1, b * c, h, v), kernel.flatten(0, 1), padding=1, groups=b)
        return y.reshape(b, -1, h, v)


class StyleGenerator(nn.Module):
    """Mapping network and modulated convolutions on a learned constant."""

    def __init__(self) -> None:
        super().__init__()
        self.mapping = nn.Sequential(nn.Linear(5, 8), nn.LeakyReLU(0.2), nn.Linear(8, 8), nn.LeakyReLU(0.2))
        self.constant = nn.Parameter(torch.randn(1, 6, 4, 4))
        self.first, self.second, self.rgb = (
            StyledConvolution(6, 7, 8),
            StyledConvolution(7, 6, 8),
            nn.Conv2d(6, 3, 1),
        )

    def forward(self, z: Tensor) -> Tensor:
        w = self.mapping(z)
        x = F.leaky_relu(self.first(self.constant.expand(z.shape[0], -1, -1, -1), w), 0.2)
        x = F.interpolate(x, scale_factor=2, mode="bilinear")
        return self.rgb(F.leaky_relu(self.second(x, w), 0.2))


class Coupling(nn.Module):
    """Affine coupling layers of a normalizing flow (RealNVP)."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(2, 9), nn.Tanh(), nn.Linear(9, 4)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros(x.shape[0])
        for net in self.nets:
            a, b = x.chunk(2, -1)
            scale, shift = net(a).chunk(2, -1)
            scale = torch.tanh(scale)
            x, total = torch.cat([b * torch.exp(scale) + shift, a], -1), total + scale.sum(-1)
        return x, total


class VectorQuantiser(nn.Module):
    """Encoder, nearest code, decoder (VQ-VAE)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.codes, self.decoder = (
            nn.Conv2d(1, 6, 4, 4),
            nn.Embedding(7, 6),
            nn.ConvTranspose2d(6, 1, 4, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.encoder(x).permute(0, 2, 3, 1)
        nearest = torch.cdist(y.flatten(0, 2), self.codes.weight).argmin(-1)
        return self.decoder(self.codes(nearest).reshape(y.shape).permute(0, 3, 1, 2))


_GREY = normal(2, 1, 16, 16)

FAMILIES: list[Family] = families(
    "generative and dense prediction",
    {
        "Autoencoder": example(
            lambda: nn.Sequential(
                nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 3), nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, 9)
            ),
            normal(4, 9),
        ),
        "Variational autoencoder": example(VariationalAutoencoder, _GREY),
        "VQ-VAE": example(VectorQuantiser, _GREY),
        "DCGAN generator": example(dcgan_generator, normal(2, 7, 1, 1)),
        "DCGAN discriminator (spectral norm)": example(dcgan_discriminator, normal(2, 3, 16, 16)),
        "StyleGAN2 generator": example(StyleGenerator, normal(2, 5)),
        "U-Net (transposed)": example(lambda: UNet(transposed=True), _GREY),
        "U-Net (interpolated)": example(lambda: UNet(transposed=False), _GREY),
        "Attention U-Net": example(AttentionGate, _GREY),
        "SegNet": example(SegNet, _GREY),
        "ESPCN": example(pixel_shuffle_network, _GREY),
        "EDSR": example(edsr, _GREY),
        "RCAN": example(RCAN, _GREY),
        "DDPM U-Net": example(DiffusionUNet, _GREY, torch.tensor([3.0, 5.0])),
        "DiT": example(DiT, normal(2, 3, 16, 16), normal(2, 4)),
        "RealNVP": example(Coupling, normal(5, 4)),
    },
)
