"""Small networks of every kind, with example inputs, for the tests of all packages."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metanet_zoo.architectures import Siren

Example: TypeAlias = tuple[Tensor, ...]


def mlp() -> nn.Module:
    """2-8-7-3 with ReLU."""
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3))


def tanh_mlp() -> nn.Module:
    """2-8-7-3 with tanh."""
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3))


def siren() -> nn.Module:
    """2-32-32-1 with sin(30 ·)."""
    return Siren(2, 32, 2, 1, omega=30.0)


def cnn_bn() -> nn.Module:
    """Two convolutions with batch norm, pooling, and a flattened head."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(6 * 4, 5),
    )


class BasicBlock(nn.Module):
    """Residual block with a projection, a zero-padded (option A) or an identity shortcut."""

    def __init__(self, channels: int, out: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = shortcut
        self.extra = out - channels
        if shortcut == "projection":
            self.down = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.shortcut == "projection":
            x = self.down(x)
        elif self.shortcut == "pad":
            before = self.extra // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.extra - before))
        y += x
        return F.relu(y)


class ResNet(nn.Module):
    """Stem, three basic blocks, global pooling, head."""

    def __init__(self, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = BasicBlock(4, 4, 1, "identity")
        self.layer2 = BasicBlock(4, 8, 2, shortcut)
        self.layer3 = BasicBlock(8, 8, 1, "identity")
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def resnet_small() -> nn.Module:
    """Residual network with a projection shortcut."""
    return ResNet("projection")


def resnet_padded() -> nn.Module:
    """Residual network with a zero-padded shortcut (option A of the CIFAR ResNets)."""
    return ResNet("pad")


def grouped_cnn() -> nn.Module:
    """Grouped convolutions and a group norm, all of four groups."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, groups=4),
        nn.GroupNorm(4, 12),
        nn.ReLU(),
        nn.Conv2d(12, 5, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def depthwise_cnn() -> nn.Module:
    """A depthwise separable convolution."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 1),
        nn.Conv2d(6, 6, 3, groups=6, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU6(),
        nn.Conv2d(6, 4, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


class DenseNet(nn.Module):
    """Densely connected convolutions: every layer reads the concatenation of all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(7), nn.Conv2d(7, 3, 3, padding=1)
        self.head = nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(F.relu(self.norm1(x)))], 1)
        x = torch.cat([x, self.conv2(F.relu(self.norm2(x)))], 1)
        result: Tensor = self.head(x)
        return result


class Attention(nn.Module):
    """Embedding, self-attention, head."""

    def __init__(self, *, need_weights: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 16)
        self.attn = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 2)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        result: Tensor = self.head(self.attn(x, x, x, need_weights=self.need_weights)[0])
        return result


class ViT(nn.Module):
    """A vision transformer: patches, class token, positional embedding, pre-norm encoder."""

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, 16))
        self.pos = nn.Parameter(torch.randn(1, 5, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 24, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        logits: Tensor = self.head(self.norm(self.encoder(x))[:, 0])
        return logits


class LanguageModel(nn.Module):
    """Embedding, recurrent network, head; the head reads all steps, or the last states of both directions."""

    def __init__(
        self, kind: str, *, layers: int = 2, bidirectional: bool = False, last: bool = False
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.rnn = getattr(nn, kind)(6, 5, layers, bidirectional=bidirectional, batch_first=True)
        self.head = nn.Linear(10 if bidirectional else 5, 11)
        self.last = last

    def forward(self, tokens: Tensor) -> Tensor:
        steps, states = self.rnn(self.embed(tokens))
        final = states[0] if isinstance(states, tuple) else states
        if self.last:
            steps = final[-1] if self.head.in_features == 5 else torch.cat([final[-2], final[-1]], 1)
        logits: Tensor = self.head(steps)
        return logits


def image(*shape: int) -> Tensor:
    """A deterministic image-like input."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def tokens() -> Tensor:
    """Two sentences of seven tokens of eleven."""
    return (torch.arange(14).reshape(2, 7) * 3) % 11


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Example]] = {
    "mlp": (mlp, (image(4, 2),)),
    "tanh_mlp": (tanh_mlp, (image(4, 2),)),
    "siren": (siren, (image(5, 2),)),
    "cnn_bn": (cnn_bn, (image(2, 1, 10, 10),)),
    "resnet_small": (resnet_small, (image(2, 3, 8, 8),)),
    "resnet_padded": (resnet_padded, (image(2, 3, 8, 8),)),
    "grouped_cnn": (grouped_cnn, (image(2, 3, 8, 8),)),
    "depthwise_cnn": (depthwise_cnn, (image(2, 3, 6, 6),)),
    "densenet_small": (DenseNet, (image(2, 3, 6, 6),)),
    "mha": (Attention, (image(2, 5, 3),)),
    "vit_small": (ViT, (image(2, 3, 8, 8),)),
    "lstm_lm": (lambda: LanguageModel("LSTM"), (tokens(),)),
    "gru_net": (lambda: LanguageModel("GRU", layers=1, bidirectional=True), (tokens(),)),
    "rnn_net": (lambda: LanguageModel("RNN", layers=1), (tokens(),)),
}
"""Name -> (factory, example inputs)."""
