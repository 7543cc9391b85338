"""Convolutional classifiers written as plain modules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.family import Family, example, families, normal


def convolution(channels: int, out: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, out, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(),
    )


def classifier(*layers: nn.Module, channels: int) -> nn.Sequential:
    """Layers, global average pooling and a linear head."""
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


class Residual(nn.Module):
    """``relu(branch(x) + shortcut(x))`` with an identity, a projection or zero-padded channels."""

    def __init__(
        self, branch: nn.Module, shortcut: nn.Module | None = None, padded: int = 0, *, relu: bool = True
    ):
        super().__init__()
        self.branch, self.shortcut, self.padded, self.relu = branch, shortcut, padded, relu

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.padded:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padded // 2, self.padded - self.padded // 2))
        return F.relu(x + y) if self.relu else x + y


def _plain(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        *convolution(channels, out, 3, stride), nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
    )


def resnet_basic() -> nn.Module:
    project = nn.Sequential(nn.Conv2d(6, 10, 1, 2, bias=False), nn.BatchNorm2d(10))
    return classifier(
        convolution(3, 6), Residual(_plain(6, 6)), Residual(_plain(6, 10, 2), project), channels=10
    )


def resnet_padded() -> nn.Module:
    return classifier(
        convolution(3, 6),
        Residual(_plain(6, 6)),
        Residual(_plain(6, 10, 2), padded=4),
        Residual(_plain(10, 10)),
        channels=10,
    )


def _bottleneck(channels: int, width: int, out: int, groups: int = 1) -> Residual:
    branch = nn.Sequential(
        convolution(channels, width, 1),
        convolution(width, width, 3, groups=groups),
        nn.Conv2d(width, out, 1),
        nn.BatchNorm2d(out),
    )
    return Residual(branch, nn.Conv2d(channels, out, 1) if channels != out else None)


def resnet_bottleneck() -> nn.Module:
    return classifier(convolution(3, 6), _bottleneck(6, 4, 12), _bottleneck(12, 4, 12), channels=12)


def resnext() -> nn.Module:
    return classifier(convolution(3, 6), _bottleneck(6, 8, 12, 4), _bottleneck(12, 8, 12, 4), channels=12)


class Preactivation(nn.Module):
    """Norm, ReLU, convolution, twice, and an identity shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, 1, 1)),
            *(nn.BatchNorm2d(channels), nn.ReLU(), nn.Dropout(), nn.Conv2d(channels, channels, 3, 1, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def wide_resnet() -> nn.Module:
    return classifier(
        nn.Conv2d(3, 8, 3, 1, 1), Preactivation(8), Preactivation(8), nn.BatchNorm2d(8), nn.ReLU(), channels=8
    )


def lenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 8, 3), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(8 * 9, 12), nn.Tanh(), nn.Linear(12, 10)),
    )


def alexnet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 5, 2, 2), nn.ReLU(), nn.LocalResponseNorm(3), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(8, 12, 3, padding=1, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()),
        *(nn.Dropout(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 5)),
    )


def vgg() -> nn.Module:
    return nn.Sequential(
        *(convolution(3, 6), convolution(6, 6), nn.MaxPool2d(2), convolution(6, 8), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(8 * 16, 12), nn.ReLU(True), nn.Dropout(), nn.Linear(12, 5)),
    )


def network_in_network() -> nn.Module:
    layers = [
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 1),
        nn.ReLU(),
        nn.Conv2d(8, 5, 1),
        nn.ReLU(),
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Dense(nn.Module):
    """Layers that each read the concatenation of everything before them (DenseNet)."""

    def __init__(self, channels: int, growth: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                *(nn.BatchNorm2d(channels + i * growth), nn.ReLU(), nn.Conv2d(channels + i * growth, 8, 1)),
                *(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, growth, 3, 1, 1)),
            )
            for i in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


def densenet() -> nn.Module:
    transition = nn.Sequential(nn.BatchNorm2d(15), nn.ReLU(), nn.Conv2d(15, 7, 1), nn.AvgPool2d(2))
    return classifier(
        nn.Conv2d(3, 6, 3, 1, 1), Dense(6, 3, 3), transition, Dense(7, 3, 2), nn.BatchNorm2d(13), channels=13
    )


class Inception(nn.Module):
    """Parallel branches, concatenated."""

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        a, b, c, d = widths
        self.one = convolution(channels, a, 1)
        self.three = nn.Sequential(convolution(channels, 5, 1), convolution(5, b, 3))
        self.five = nn.Sequential(convolution(channels, 5, 1), convolution(5, c, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), convolution(channels, d, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


def inception() -> nn.Module:
    return classifier(convolution(3, 6), Inception(6, (4, 5, 3, 2)), Inception(14, (3, 4, 2, 3)), channels=12)


class SqueezeExcite(nn.Module):
    """Channels scaled by a gate that reads their means."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, width, 1), nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


def senet() -> nn.Module:
    block = Residual(nn.Sequential(_plain(6, 6), SqueezeExcite(6, 3)))
    return classifier(convolution(3, 6), block, channels=6)


def _inverted(channels: int, width: int, act: type[nn.Module], gate: bool) -> Residual:
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), act()]
    layers += [nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False), nn.BatchNorm2d(width), act()]
    layers += [SqueezeExcite(width, 4)] if gate else []
    layers += [nn.Conv2d(width, channels, 1, bias=False), nn.BatchNorm2d(channels)]
    return Residual(nn.Sequential(*layers), relu=False)


def mobilenet_v1() -> nn.Module:
    return classifier(convolution(3, 6), convolution(6, 6, groups=6), convolution(6, 9, 1), channels=9)


def mobilenet_v2() -> nn.Module:
    return classifier(
        convolution(3, 6), _inverted(6, 12, nn.ReLU6, False), _inverted(6, 12, nn.ReLU6, False), channels=6
    )


def mobilenet_v3() -> nn.Module:
    return classifier(convolution(3, 6), _inverted(6, 12, nn.Hardswish, True), nn.Hardswish(), channels=6)


def efficientnet() -> nn.Module:
    return classifier(
        convolution(3, 6), _inverted(6, 12, nn.SiLU, True), _inverted(6, 12, nn.SiLU, True), channels=6
    )


class ChannelNorm(nn.Module):
    """Layer norm over channels of an image, channels moved last and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """Depthwise 7×7, layer norm, inverted bottleneck, layer scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.up, self.down = nn.Linear(channels, 4 * channels), nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    return classifier(nn.Conv2d(3, 8, 4, 4), ChannelNorm(8), ConvNeXtBlock(8), ConvNeXtBlock(8), channels=8)


class ChannelShuffle(nn.Module):
    """Channels read as ``(group, channel)`` and written as ``(channel, group)``."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)


def shufflenet() -> nn.Module:
    branch = nn.Sequential(
        *(nn.Conv2d(8, 8, 1, groups=2), nn.BatchNorm2d(8), nn.ReLU(), ChannelShuffle(2)),
        *(
            nn.Conv2d(8, 8, 3, 1, 1, groups=8),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 1, groups=2),
            nn.BatchNorm2d(8),
        ),
    )
    return classifier(convolution(3, 8), Residual(branch), channels=8)


class SplitShuffle(nn.Module):
    """Half of the channels pass, half are convolved, and both are shuffled (ShuffleNet v2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            convolution(half, half, 1), convolution(half, half, 3, groups=half), convolution(half, half, 1)
        )
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = x.chunk(2, 1)
        return self.shuffle(torch.cat([kept, self.branch(changed)], 1))


def shufflenet_v2() -> nn.Module:
    return classifier(convolution(3, 8), SplitShuffle(8), SplitShuffle(8), channels=8)


class Fire(nn.Module):
    """Squeeze, then 1×1 and 3×3 expansions side by side (SqueezeNet)."""

    def __init__(self, channels: int, squeeze: int, out: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeeze, 1)
        self.one, self.three = nn.Conv2d(squeeze, out, 1), nn.Conv2d(squeeze, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


def squeezenet() -> nn.Module:
    return classifier(convolution(3, 6), Fire(6, 4, 5), Fire(10, 4, 5), channels=10)


class Ghost(nn.Module):
    """Some channels by convolution, the others by depthwise convolutions of these (GhostNet)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.primary = convolution(channels, out, 1)
        self.cheap = convolution(out, out, 3, groups=out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x)
        return torch.cat([x, self.cheap(x)], 1)


def ghostnet() -> nn.Module:
    return classifier(convolution(3, 6), Ghost(6, 5), Ghost(10, 6), channels=12)


_IMAGE = normal(2, 3, 16, 16)

FAMILIES: list[Family] = families(
    "convolutional",
    {
        "LeNet-5": example(lenet, normal(2, 1, 20, 20)),
        "AlexNet (grouped, LRN)": example(alexnet, _IMAGE),
        "VGG": example(vgg, _IMAGE),
        "Network in network": example(network_in_network, _IMAGE),
        "ResNet basic": example(resnet_basic, _IMAGE),
        "ResNet bottleneck": example(resnet_bottleneck, _IMAGE),
        "ResNet option A": example(resnet_padded, _IMAGE),
        "ResNeXt": example(resnext, _IMAGE),
        "Wide ResNet": example(wide_resnet, _IMAGE),
        "DenseNet": example(densenet, _IMAGE),
        "Inception": example(inception, _IMAGE),
        "SENet": example(senet, _IMAGE),
        "MobileNet v1 (plain)": example(mobilenet_v1, _IMAGE),
        "MobileNet v2 (plain)": example(mobilenet_v2, _IMAGE),
        "MobileNet v3": example(mobilenet_v3, _IMAGE),
        "EfficientNet (plain)": example(efficientnet, _IMAGE),
        "ConvNeXt (plain)": example(convnext, _IMAGE),
        "ShuffleNet": example(shufflenet, _IMAGE),
        "ShuffleNet v2": example(shufflenet_v2, _IMAGE),
        "SqueezeNet": example(squeezenet, _IMAGE),
        "GhostNet": example(ghostnet, _IMAGE),
    },
)
