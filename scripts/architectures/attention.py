"""Attention networks written as plain modules: window attention, relative positions, fused projections."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.family import Family, example, families, normal, tokens
from architectures.sequences import Patches


class VisionTransformer(nn.Module):
    """Patches, class token, learned positions, torch's own encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 1, 16))
        self.position = nn.Parameter(torch.randn(1, 17, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 24, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).mT
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.encoder(x)[:, 0])


class WindowAttention(nn.Module):
    """Attention within (shifted) windows with a relative position bias (Swin)."""

    def __init__(self, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        apart = at[:, :, None] - at[:, None] + window - 1
        self.register_buffer("index", apart[0] * (2 * window - 1) + apart[1])
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width))
        self.heads, self.window, self.shift = heads, window, shift

    def forward(self, x: Tensor) -> Tensor:
        b, h, v, c = x.shape
        w = self.window
        y = torch.roll(self.norm(x), (-self.shift, -self.shift), (1, 2))
        y = y.view(b, h // w, w, v // w, w, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, c)
        q, k, val = self.qkv(y).reshape(-1, w * w, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(w * w, w * w, -1).permute(2, 0, 1)
        scores = torch.softmax(q @ k.mT * (c // self.heads) ** -0.5 + bias, -1)
        y = self.out((scores @ val).transpose(1, 2).reshape(-1, w * w, c))
        y = y.view(b, h // w, v // w, w, w, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, v, c)
        x = x + torch.roll(y, (self.shift, self.shift), (1, 2))
        return x + self.mlp(x)


class WindowTransformer(nn.Module):
    """Two window blocks, patch merging, head."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 2, 2)
        self.blocks = nn.Sequential(WindowAttention(12, 3, 4, 0), WindowAttention(12, 3, 4, 2))
        self.norm, self.merge, self.head = nn.LayerNorm(48), nn.Linear(48, 16, bias=False), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.patch(x).permute(0, 2, 3, 1))
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return self.head(self.merge(self.norm(x)).mean((1, 2)))


class EncoderDecoder(nn.Module):
    """The transformer of 2017: sinusoidal positions, post-norm, `torch.nn.Transformer`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(61, 16), nn.Linear(16, 61)
        self.transformer = nn.Transformer(16, 4, 1, 1, 24, batch_first=True)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        def embed(ids: Tensor) -> Tensor:
            angles = torch.arange(ids.shape[1])[:, None] / 1e4 ** (torch.arange(0, 16, 2) / 16)
            return self.embed(ids) * 4 + torch.stack([angles.sin(), angles.cos()], -1).flatten(1)

        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.head(self.transformer(embed(source), embed(target), tgt_mask=mask, tgt_is_causal=True))


class Decoder(nn.Module):
    """Causal language model with RMS norm, rotary positions, SwiGLU and grouped queries, written by hand."""

    def __init__(self, width: int = 16, heads: int = 4, groups: int = 2) -> None:
        super().__init__()
        self.embed, self.norm1, self.norm2, self.last = (
            nn.Embedding(61, width),
            nn.RMSNorm(width),
            nn.RMSNorm(width),
            nn.RMSNorm(width),
        )
        self.heads, self.groups, self.head_dim = heads, groups, width // heads
        self.qkv, self.out = (
            nn.Linear(width, width + 2 * groups * self.head_dim, bias=False),
            nn.Linear(width, width, bias=False),
        )
        self.gate_up, self.down = nn.Linear(width, 44, bias=False), nn.Linear(22, width, bias=False)

    def rotate(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[1])[:, None] / 100 ** (
            torch.arange(0, self.head_dim, 2) / self.head_dim
        )
        angles = torch.cat([angles, angles], -1)[:, None]
        a, b = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-b, a], -1) * angles.sin()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        n, size = self.groups * self.head_dim, self.heads * self.head_dim
        q, k, v = self.qkv(self.norm1(x)).split([size, n, n], -1)
        q = self.rotate(q.unflatten(-1, (self.heads, -1))).transpose(1, 2)
        k = self.rotate(k.unflatten(-1, (self.groups, -1))).transpose(1, 2)
        v = v.unflatten(-1, (self.groups, -1)).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return F.linear(self.last(x + self.down(F.silu(gate) * up)), self.embed.weight)


class RelativeAttention(nn.Module):
    """Attention with a learned bias per bucketed distance and head (T5), one key and value head (MQA)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.bias = nn.Embedding(61, 12), nn.Embedding(15, 3)
        self.q, self.kv, self.out, self.head = (
            nn.Linear(12, 12),
            nn.Linear(12, 8),
            nn.Linear(12, 12),
            nn.Linear(12, 7),
        )

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        n = ids.shape[1]
        q = self.q(x).unflatten(-1, (3, 4)).transpose(1, 2)
        k, v = self.kv(x)[:, None].chunk(2, -1)
        apart = torch.arange(n)[:, None] - torch.arange(n) + 7
        scores = q @ k.mT + self.bias(apart).permute(2, 0, 1)
        return self.head(x + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)))


class Alibi(nn.Module):
    """Attention with a linear penalty on distance, a slope per head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend, self.out = nn.Embedding(61, 12), nn.Linear(12, 36), nn.Linear(12, 61)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        n = ids.shape[1]
        q, k, v = self.attend(x).view(-1, n, 3, 3, 4).permute(2, 0, 3, 1, 4)
        slopes = 2.0 ** -torch.arange(1, 4)
        apart = torch.arange(n)[:, None] - torch.arange(n)
        scores = q @ k.mT / 2 - slopes[:, None, None] * apart
        scores = scores.masked_fill(apart < 0, float("-inf"))
        return self.out(x + (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, n, 12))


class SetTransformer(nn.Module):
    """Induced set attention and pooling by learned seeds."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.points, self.seed = (
            nn.Linear(3, 12),
            nn.Parameter(torch.randn(1, 4, 12)),
            nn.Parameter(torch.randn(1, 1, 12)),
        )
        self.inner, self.back, self.pool = (nn.MultiheadAttention(12, 3, batch_first=True) for _ in range(3))
        self.head = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        points = self.points.expand(x.shape[0], -1, -1)
        h = points + self.inner(points, x, x)[0]
        x = x + self.back(x, h, h)[0]
        return self.head(self.pool(self.seed.expand(x.shape[0], -1, -1), x, x)[0][:, 0])


class DeepSets(nn.Module):
    """Sum over a set between two networks."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 8))
        self.outer = nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x).sum(1))


class PointNet(nn.Module):
    """Pointwise convolutions and a maximum over points, with an input transform."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = nn.Sequential(nn.Conv1d(3, 6, 1), nn.BatchNorm1d(6), nn.ReLU())
        self.matrix = nn.Linear(6, 9)
        self.points = nn.Sequential(
            nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 10, 1), nn.ReLU()
        )
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.matrix(self.transform(x).amax(-1)).view(-1, 3, 3)
        return self.head(self.points(torch.bmm(matrix, x)).amax(-1))


class CosineAttention(nn.Module):
    """Normalised queries and keys with a learned temperature per head (Swin v2, ViT-22B)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads
        self.temperature = nn.Parameter(torch.zeros(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.temperature.exp()
        return x + self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d))


class Siamese(nn.Module):
    """One encoder for two images, compared by a cosine."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 49, 8))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return F.cosine_similarity(self.encoder(a), self.encoder(b), dim=-1)


_IDS, _IMAGE = tokens(2, 7), normal(2, 3, 16, 16)

FAMILIES: list[Family] = families(
    "attention",
    {
        "ViT (torch layers)": example(VisionTransformer, _IMAGE),
        "Window attention": example(WindowTransformer, _IMAGE),
        "Transformer 2017": example(EncoderDecoder, _IDS, tokens(2, 5)),
        "Decoder by hand (fused QKV, GQA)": example(Decoder, _IDS),
        "Relative bias, multi-query": example(RelativeAttention, _IDS),
        "ALiBi": example(Alibi, _IDS),
        "Cosine attention": example(lambda: Patches(CosineAttention(12, 3)), _IMAGE),
        "Set Transformer": example(SetTransformer, normal(2, 6, 3)),
        "Deep Sets": example(DeepSets, normal(2, 6, 3)),
        "PointNet": example(PointNet, normal(2, 3, 9)),
        "Siamese network": example(Siamese, _IMAGE, normal(4, 3, 16, 16)[2:]),
    },
)
