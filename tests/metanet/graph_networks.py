"""Small networks of every family a parameter graph knows, with what to call them on."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from metanet.derive import spec_of
from metanet.features import WeightFeatures
from metanet.spec import WeightSpec
from metanet.testing import random_weights


class Siren(nn.Module):
    def __init__(self, width: int = 6, omega: float = 30.0) -> None:
        super().__init__()
        self.seq = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise((2, width, width, 1)))
        self.omega = omega

    def forward(self, x: Tensor) -> Tensor:
        for layer in list(self.seq)[:-1]:
            x = torch.sin(self.omega * layer(x))
        result: Tensor = self.seq[-1](x)
        return result


class ResidualCNN(nn.Module):
    """Convolutions, batch norms, residual blocks and a flattened head."""

    def __init__(
        self,
        stride: int = 2,
        activation: Callable[[Tensor], Tensor] = functional.relu,
        pool: type[nn.Module] = nn.MaxPool2d,
        padding_mode: Literal["zeros", "circular"] = "zeros",
        order: tuple[int, int] = (0, 1),
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride, 1, padding_mode=padding_mode)
        self.norm = nn.BatchNorm2d(4, eps=eps)
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 3, 1, 1) for _ in range(2))
        self.conv = nn.Conv2d(4, 5, 3, 1, 1)
        self.pool = pool(2)
        self.flat = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(5 * 4, 3)
        self.activation, self.order = activation, order

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.norm(self.stem(x)))
        for i in self.order:
            x = x + functional.relu(self.blocks[i](x))
        result: Tensor = self.head(self.flat(self.conv(self.pool(x))).flatten(1))
        return result


class MixedConvolutions(nn.Module):
    """Grouped, depthwise and transposed convolutions; concatenation, chunks, group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, 1, 1)
        self.grouped = nn.Conv2d(4, 4, 3, 1, 1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.norm = nn.GroupNorm(2, 8)
        self.transposed = nn.ConvTranspose2d(8, 4, 2, 2, groups=2)
        self.head = nn.Linear(4 * 256, 5)

    def forward(self, x: Tensor) -> Tensor:
        first = functional.relu(self.first(x))
        both = torch.cat([first, functional.relu(self.grouped(first))], 1)
        left, right = self.norm(self.depthwise(both)).chunk(2, 1)
        result: Tensor = self.head(self.transposed(torch.cat([left * right.sigmoid(), right], 1)).flatten(1))
        return result


class FusedAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        read = functional.scaled_dot_product_attention(q, k, v)
        result: Tensor = self.out(read.transpose(1, 2).reshape(b, n, d))
        return result


class ViT(nn.Module):
    """Patches, a class token, positions, attention with heads, an MLP."""

    def __init__(self, *, module: bool = False, heads: int = 2) -> None:
        super().__init__()
        width = 8
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 5, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = (
            nn.MultiheadAttention(width, heads, batch_first=True) if module else FusedAttention(width, heads)
        )
        self.mlp = nn.Sequential(nn.Linear(width, 6), nn.GELU(), nn.Linear(6, width))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        y = self.norms[0](x)
        x = x + (
            self.attention(y) if isinstance(self.attention, FusedAttention) else self.attention(y, y, y)[0]
        )
        result: Tensor = self.head((x + self.mlp(self.norms[1](x)))[:, 0])
        return result


class Recurrent(nn.Module):
    """A language model; its embedding is tied to its head where the sizes allow."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], *, bidirectional: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.core = kind(4, 4, 2, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(8 if bidirectional else 4, 7)
        if not bidirectional:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.head(self.core(self.embedding(tokens))[0])
        return result


class Odd(nn.Module):
    """Bilinear and computed weights, an einsum, a cell, an operation without a rule, an unused parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 4)
        self.bilinear = nn.Bilinear(4, 4, 5)
        self.gain = nn.Parameter(torch.ones(5))
        self.mix = nn.Parameter(torch.ones(5, 5))
        self.head = nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))
        self.idle = nn.Parameter(torch.ones(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        state: tuple[Tensor, Tensor] | None = None
        for step in range(2):
            state = self.cell(x[:, step], state)
        assert state is not None
        y = self.bilinear(state[0], torch.tanh(state[0])) * self.gain
        result: Tensor = self.head(torch.einsum("bi,oi->bo", y, self.mix).logcumsumexp(0))
        return result


IMAGE = torch.zeros(2, 3, 8, 8)
TOKENS = torch.zeros(2, 5, dtype=torch.long)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "siren": (Siren, torch.zeros(4, 2)),
    "cnn": (ResidualCNN, IMAGE),
    "mixed": (MixedConvolutions, IMAGE),
    "vit": (ViT, IMAGE),
    "vit_module": (lambda: ViT(module=True), IMAGE),
    "lstm": (lambda: Recurrent(nn.LSTM, bidirectional=False), TOKENS),
    "gru": (lambda: Recurrent(nn.GRU, bidirectional=True), TOKENS),
    "odd": (Odd, torch.zeros(2, 2, 3)),
}


@lru_cache
def spec(name: str) -> WeightSpec:
    """Return the derived spec of one of the networks."""
    make, x = NETWORKS[name]
    return spec_of(make(), x)


def features(of: str | WeightSpec, b: int = 2, seed: int = 0) -> WeightFeatures:
    """Return generic weights of b networks, in float64; variances are positive."""
    described = spec(of) if isinstance(of, str) else of
    weights = random_weights(described, torch.Generator().manual_seed(seed), leading=(b,))
    for name, tensor in weights.items():
        if name.endswith("running_var"):
            weights[name] = tensor.abs() + 0.5
        if name.endswith("num_batches_tracked"):
            weights[name] = tensor.long()
    for tie in described.ties:
        weights |= dict.fromkeys(tie[1:], weights[tie[0]])
    return WeightFeatures.from_state_dict(described, weights, batched=True)
