"""Recurrent networks, temporal convolutions, sequence-to-sequence models and mixers as plain modules."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.family import Family, example, families, normal, tokens


class Recurrent(nn.Module):
    """Embedding, recurrent layers, head on every step or on the last state."""

    def __init__(
        self, kind: str, layers: int, *, both: bool = False, projection: int = 0, last: bool = False
    ) -> None:
        super().__init__()
        extra = {"proj_size": projection} if projection else {}
        self.embed = nn.Embedding(61, 6)
        self.rnn = getattr(nn, kind)(6, 7, layers, bidirectional=both, batch_first=True, **extra)
        self.head = nn.Linear((projection or 7) * (2 if both else 1), 11)
        self.last = last

    def forward(self, ids: Tensor) -> Tensor:
        steps, states = self.rnn(self.embed(ids))
        final = states[0] if isinstance(states, tuple) else states
        return self.head(final[-1] if self.last else steps)


class AttentiveSeq2Seq(nn.Module):
    """GRU encoder and decoder with additive attention, unrolled."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(61, 6), nn.Embedding(61, 5)
        self.encoder, self.cell = nn.GRU(6, 7, batch_first=True, bidirectional=True), nn.GRUCell(5 + 14, 9)
        self.key, self.query, self.score = nn.Linear(14, 8), nn.Linear(9, 8), nn.Linear(8, 1)
        self.start, self.head = nn.Linear(14, 9), nn.Linear(9 + 14, 61)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, _ = self.encoder(self.source(source))
        state, keys, steps = torch.tanh(self.start(memory[:, 0])), self.key(memory), []
        for token in self.target(target).unbind(1):
            weights = torch.softmax(self.score(torch.tanh(keys + self.query(state)[:, None])), 1)
            context = (weights * memory).sum(1)
            state = self.cell(torch.cat([token, context], -1), state)
            steps.append(self.head(torch.cat([state, context], -1)))
        return torch.stack(steps, 1)


class CellLoop(nn.Module):
    """An LSTM cell stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], 8)
        for step in x.unbind(1):
            h, c = self.cell(step, (h, c))
        return self.head(h)


class Causal(nn.Conv1d):
    """Convolution that sees the past only."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, ((self.kernel_size[0] - 1) * self.dilation[0], 0)))


class TemporalBlock(nn.Module):
    """Two weight-normed causal convolutions and a shortcut (TCN)."""

    def __init__(self, channels: int, out: int, dilation: int) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.first, self.second = (
            norm(Causal(channels, out, 2, dilation=dilation)),
            norm(Causal(out, out, 2, dilation=dilation)),
        )
        self.shortcut = nn.Conv1d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.relu(self.second(F.relu(self.first(x)))) + self.shortcut(x))


class WaveNet(nn.Module):
    """Gated dilated convolutions with residual and skip outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Causal(1, 6, 2)
        self.filters = nn.ModuleList(Causal(6, 14, 2, dilation=2**i) for i in range(3))
        self.residual, self.skip = (nn.ModuleList(nn.Conv1d(7, n, 1) for _ in range(3)) for n in (6, 8))
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(8, 9, 1), nn.ReLU(), nn.Conv1d(9, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.stem(x), torch.zeros(())
        for filters, residual, skip in zip(self.filters, self.residual, self.skip, strict=True):
            a, b = filters(x).chunk(2, 1)
            y = torch.tanh(a) * torch.sigmoid(b)
            x, total = x + residual(y), total + skip(y)
        return self.head(total)


class MixerBlock(nn.Module):
    """Token mixing and channel mixing."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 9), nn.GELU(), nn.Linear(9, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).mT).mT
        return x + self.channels(self.norm2(x))


class Patches(nn.Module):
    """Patches of an image as tokens, blocks, mean, head."""

    def __init__(self, *blocks: nn.Module, width: int = 12) -> None:
        super().__init__()
        self.patch, self.blocks, self.norm, self.head = (
            nn.Conv2d(3, width, 4, 4),
            nn.Sequential(*blocks),
            nn.LayerNorm(width),
            nn.Linear(width, 5),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patch(x).flatten(2).mT)).mean(1))


class SpatialGating(nn.Module):
    """Block of a gMLP: half of the channels gate the other half across positions."""

    def __init__(self, tokens: int, width: int, inner: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(width),
            nn.Linear(width, inner),
            nn.Linear(inner // 2, width),
        )
        self.gate_norm, self.spatial = nn.LayerNorm(inner // 2), nn.Conv1d(tokens, tokens, 1)

    def forward(self, x: Tensor) -> Tensor:
        u, v = F.gelu(self.up(self.norm(x))).chunk(2, -1)
        return x + self.down(u * self.spatial(self.gate_norm(v)))


class FourierMixing(nn.Module):
    """Global filter in the frequency domain (GFNet)."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm, self.weight = nn.LayerNorm(width), nn.Parameter(torch.randn(tokens // 2 + 1, width, 2))
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.fft.rfft(self.norm(x), dim=1, norm="ortho") * torch.view_as_complex(self.weight)
        return x + self.mlp(torch.fft.irfft(y, n=x.shape[1], dim=1, norm="ortho"))


class LinearAttention(nn.Module):
    """Attention with the feature map elu + 1, causal by cumulative sums."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).unbind(2)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        state = torch.einsum("bnhd,bnhe->bnhde", k, v).cumsum(1)
        y = (
            torch.einsum("bnhd,bnhde->bnhe", q, state)
            / torch.einsum("bnhd,bnhd->bnh", q, k.cumsum(1))[..., None]
        )
        return x + self.out(y.reshape(b, n, d))


class StructuredStateSpace(nn.Module):
    """Diagonal state space layers as long convolutions (S4D)."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        self.rate, self.c = nn.Parameter(torch.randn(width, states)), nn.Parameter(torch.randn(width, states))
        self.d, self.mix = nn.Parameter(torch.randn(width)), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        times = torch.arange(x.shape[1])
        kernel = (self.c[..., None] * torch.exp(-F.softplus(self.rate)[..., None] * times)).sum(1)
        n = 2 * x.shape[1]
        y = torch.fft.irfft(torch.fft.rfft(x.mT, n=n) * torch.fft.rfft(kernel, n=n), n=n)[
            ..., : x.shape[1]
        ].mT
        return x + self.mix(F.gelu(y + self.d * x))


class TextCNN(nn.Module):
    """Convolutions of several widths over words, maximum over time."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.convs = nn.Embedding(61, 6), nn.ModuleList(nn.Conv1d(6, 5, k) for k in (2, 3, 4))
        self.head = nn.Linear(15, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids).mT
        return self.head(torch.cat([F.relu(conv(x)).amax(-1) for conv in self.convs], 1))


class BagOfWords(nn.Module):
    """Mean of embeddings and a linear classifier (fastText)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.EmbeddingBag(61, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids))


class DeepSpeech(nn.Module):
    """Strided convolutions, batch norm and a bidirectional GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Hardtanh(0, 20))
        self.rnn, self.head = nn.GRU(16, 6, 2, bidirectional=True, batch_first=True), nn.Linear(12, 9)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x[:, None]).permute(0, 3, 1, 2).flatten(2)
        return F.log_softmax(self.head(self.rnn(y)[0]), -1)


_IDS, _SERIES, _IMAGE = tokens(2, 7), normal(2, 6, 4), normal(2, 3, 16, 16)

FAMILIES: list[Family] = [
    *families(
        "recurrent",
        {
            "RNN tanh": example(lambda: Recurrent("RNN", 1), _IDS),
            "LSTM": example(lambda: Recurrent("LSTM", 2), _IDS),
            "LSTM bidirectional": example(lambda: Recurrent("LSTM", 2, both=True), _IDS),
            "LSTM with projection": example(lambda: Recurrent("LSTM", 2, projection=5), _IDS),
            "LSTM cell": example(CellLoop, _SERIES),
            "GRU": example(lambda: Recurrent("GRU", 2, last=True), _IDS),
            "GRU bidirectional": example(lambda: Recurrent("GRU", 2, both=True), _IDS),
            "Seq2seq with attention": example(AttentiveSeq2Seq, _IDS, tokens(2, 4)),
            "DeepSpeech 2": example(DeepSpeech, normal(2, 8, 10)),
        },
    ),
    *families(
        "temporal convolution and mixers",
        {
            "TCN (weight norm)": example(
                lambda: nn.Sequential(TemporalBlock(4, 6, 1), TemporalBlock(6, 6, 2), nn.Conv1d(6, 2, 1)),
                normal(2, 4, 9),
            ),
            "WaveNet": example(WaveNet, normal(2, 1, 12)),
            "TextCNN": example(TextCNN, _IDS),
            "fastText": example(BagOfWords, _IDS),
            "MLP-Mixer": example(lambda: Patches(MixerBlock(16, 12), MixerBlock(16, 12)), _IMAGE),
            "gMLP": example(lambda: Patches(SpatialGating(16, 12, 18)), _IMAGE),
            "GFNet": example(lambda: Patches(FourierMixing(16, 12)), _IMAGE),
            "Linear attention": example(
                lambda: nn.Sequential(nn.Linear(4, 12), LinearAttention(12, 3), nn.Linear(12, 2)), _SERIES
            ),
            "S4D": example(
                lambda: nn.Sequential(nn.Linear(4, 8), StructuredStateSpace(8, 5), nn.Linear(8, 2)), _SERIES
            ),
        },
    ),
]
