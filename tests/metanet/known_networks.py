"""Small networks whose whole group is written out in `tests.metanet.freedoms.test_known_groups`."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models import image


class Gated(nn.Module):
    """A gated MLP: silu(gate) · up."""

    def __init__(self, gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(3, 5), nn.Linear(3, 5), nn.Linear(5, 2)
        self.function = gate

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(self.function(self.gate(x)) * self.up(x))
        return y


class LoRA(nn.Module):
    """A linear layer with a low-rank addition."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.a, self.b = nn.Linear(3, 2, bias=False), nn.Linear(2, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.relu(self.base(x) + 0.5 * self.b(self.a(x))))
        return y


class Block(nn.Module):
    """A transformer block with layer norms before attention and MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.n1, self.qkv = nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 18)
        self.out, self.n2 = nn.Linear(6, 8), nn.LayerNorm(8)
        self.up, self.down, self.head = nn.Linear(8, 5), nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        b, t, _ = h.shape
        q, k, v = self.qkv(self.n1(h)).view(b, t, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
        h = h + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y: Tensor = self.head(h + self.down(F.gelu(self.up(self.n2(h)))))
        return y


class RootMeanSquare(nn.Module):
    """A residual stream under a hand-written norm with a gain, and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.n = nn.Linear(3, 6), nn.Parameter(torch.ones(6))
        self.up, self.down, self.head = nn.Linear(6, 5), nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        z = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * self.n
        y: Tensor = self.head(F.rms_norm(h + self.down(F.gelu(self.up(z))), (6,)))
        return y


class HandAttention(nn.Module):
    """Attention of two heads from matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (f(x).view(b, t, 2, 3).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(-1, -2) / 3**0.5, -1)
        y: Tensor = self.o((weights @ v).transpose(1, 2).reshape(b, t, 6))
        return y


class Residual(nn.Module):
    """A residual block with batch norms: the shortcut ties the streams."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.conv1, self.bn1 = nn.Conv2d(4, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.stem(x))
        y: Tensor = self.head(torch.relu(h + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(h)))))))
        return y


class Recurrent(nn.Module):
    """A recurrent layer and a reader of its outputs."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn: nn.Module = getattr(nn, kind)(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.rnn(x)[0])
        return y


class CosineINR(nn.Module):
    """Two layers of cosines."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(2, 4), nn.Linear(4, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c(torch.cos(5 * self.b(torch.cos(5 * self.a(x)))))
        return y


class Halves(nn.Module):
    """One matrix, one bias that is added apart; sines of the first half, tanh of the second."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.randn(8))
        self.c = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        p, q = (x @ self.w + self.b).chunk(2, -1)
        y: Tensor = self.c(torch.cat([torch.sin(7 * p), torch.tanh(q)], -1))
        return y


def mlp(*activations: nn.Module) -> nn.Module:
    """A row, activations, and a reader."""
    return nn.Sequential(nn.Linear(3, 4), *activations, nn.Linear(4, 2))


def convolutions(*after: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), *after, nn.Conv2d(4, 2, 1))


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "ReLU MLP": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)),
        image(2, 3),
    ),
    "leaky ReLU": (lambda: mlp(nn.LeakyReLU(0.2)), image(2, 3)),
    "tanh MLP": (lambda: mlp(nn.Tanh()), image(2, 3)),
    "identity activation": (mlp, image(2, 3)),
    "gated MLP (SwiGLU)": (lambda: Gated(F.silu), image(2, 3)),
    "gated MLP (ReGLU)": (lambda: Gated(F.relu), image(2, 3)),
    "convolution, batch norm, ReLU": (
        lambda: convolutions(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        image(2, 3, 6, 6),
    ),
    "batch norm without gain": (
        lambda: convolutions(nn.BatchNorm2d(4, affine=False), nn.ReLU()), image(2, 3, 6, 6)
    ),
    "residual block with batch norm": (Residual, image(2, 3, 5, 5)),
    "LSTM": (lambda: Recurrent("LSTM"), image(2, 5, 3)),
    "GRU": (lambda: Recurrent("GRU"), image(2, 5, 3)),
    "hand-written attention": (HandAttention, image(2, 4, 3)),
    "LoRA": (LoRA, image(2, 3)),
    "cosine INR": (CosineINR, image(2, 2)),
    "sines of one half, bias added apart": (Halves, image(2, 3)),
    "pre-norm transformer block": (Block, image(2, 4, 3)),
    "root mean square norm": (RootMeanSquare, image(2, 3)),
}  # fmt: skip
