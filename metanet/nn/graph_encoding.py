"""Encodings of what a parameter graph carries: words, values, places and coordinates, as channels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import log, pi
from typing import Any

import torch
from torch import Tensor, nn

from metanet.graphs.schema import COORDINATES, EDGE_KINDS, block_key
from metanet.graphs.words import MAX_ORDER, NUM_NAMES, NUM_TEXTS, NUMBERS

NAMED = 64
"""The first indices have an embedding each: neighbours like the coordinates x and y must be told apart."""
WAVES = 8
"""Number of wavelengths of an index, from 2.5 to about 40,000 in equal ratios."""


def index_features(index: Tensor) -> Tensor:
    """Return sines and cosines ``[..., 2 * WAVES]`` of an index; zero where it is -1 (absent)."""
    ratio = log(40_000 / 2.5) / (WAVES - 1)
    waves = 2 * pi / (2.5 * torch.exp(torch.arange(WAVES, device=index.device) * ratio))
    angle = index[..., None] * waves.to(index)
    present = (index >= 0)[..., None].to(index)
    return torch.cat([angle.sin(), angle.cos()], -1) * present


class WordEncoder(nn.Module):
    """Words of a block → channels: the sum of what each tells, gated by its order; then an MLP.

    Args:
        channels: number of channels c.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.name = nn.Embedding(NUM_NAMES, channels)
        self.text = nn.Embedding(NUM_TEXTS, channels)
        self.number = nn.Linear(NUMBERS, channels, bias=False)
        self.order = nn.Embedding(MAX_ORDER + 1, channels)
        self.mix = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, channels),
            nn.SiLU(),
            nn.Linear(channels, channels),
            nn.LayerNorm(channels),
        )

    def forward(self, words: Mapping[str, Tensor], num_blocks: int) -> Tensor:
        """Return ``[num_blocks, c]`` from the ``word_…`` tensors of a graph."""
        name, text = self.name(words["word_name"]), self.text(words["word_text"])
        number = self.number(words["word_number"].to(name))
        told = nn.functional.silu(name * (1 + number) + text + number) * self.order(words["word_order"])
        total = told.new_zeros(num_blocks, told.shape[-1]).index_add(0, words["word_block"], told)
        return self.mix(total)  # type: ignore[no-any-return]


class ValueStandardizer(nn.Module):
    """Values standardised by stored statistics: those of their own parameter, else of its kind of edge.

    Statistics are fitted once and belong to the state dict; they never come from the batch at hand. Until
    they are fitted values pass unchanged.

    Args:
        channels: number of values per edge.
    """

    keys: Tensor
    table: Tensor
    kinds: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        neutral = torch.tensor([0.0, 1.0])[:, None].repeat(1, channels)
        self.register_buffer("keys", torch.zeros(0, dtype=torch.long))
        self.register_buffer("table", torch.zeros(0, 2, channels))
        self.register_buffer("kinds", neutral.repeat(len(EDGE_KINDS), 1, 1))

    def fit(self, found: Iterable[tuple[str, int, Tensor]]) -> None:
        """Fit the statistics.

        Args:
            found: block name, kind of edge and values ``[n, channels]``, any number of times per block.
        """
        blocks: dict[str, Tensor] = {}
        kinds: dict[int, Tensor] = {}
        for label, kind, values in found:
            v = values.detach().double().cpu()
            step = torch.stack([torch.full_like(v[0], len(v)), v.sum(0), v.square().sum(0)])
            blocks[label] = blocks[label] + step if label in blocks else step
            kinds[kind] = kinds[kind] + step if kind in kinds else step
        if not blocks:
            raise ValueError("there is nothing to fit the statistics to: no network was given")
        keys, totals = zip(*sorted((block_key(label), total) for label, total in blocks.items()), strict=True)
        self.keys = torch.tensor(keys, device=self.kinds.device)
        self.table = torch.stack([_moments(total) for total in totals]).to(self.kinds)
        for kind, total in kinds.items():
            self.kinds[kind] = _moments(total).to(self.kinds)

    def forward(self, block_keys: Tensor, block_types: Tensor, is_edge: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and inverse standard deviation ``[blocks, channels]`` of every block.

        Args:
            block_keys: ``[blocks]``, 0 for blocks without a parameter.
            block_types: ``[blocks]`` kinds of edges (of nodes where not ``is_edge``).
            is_edge: ``[blocks]``.
        """
        stats = self.kinds[torch.where(is_edge, block_types, torch.zeros_like(block_types))]
        if len(self.keys):
            place = torch.searchsorted(self.keys, block_keys).clamp(max=len(self.keys) - 1)
            known = self.keys[place] == block_keys
            stats = torch.where(known[:, None, None], self.table[place], stats)
        plain = torch.tensor([0.0, 1.0]).to(stats)[:, None].expand_as(stats[0])
        stats = torch.where((block_keys == 0)[:, None, None], plain, stats)
        return stats[:, 0], stats[:, 1]

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *args: Any) -> None:
        for name in ("keys", "table"):
            stored = state.get(prefix + name)
            if isinstance(stored, Tensor):
                setattr(self, name, torch.zeros_like(stored, device=self.kinds.device))
        super()._load_from_state_dict(state, prefix, *args)


def _moments(total: Tensor) -> Tensor:
    """Return mean and inverse standard deviation ``[2, channels]`` of (count, sum, sum of squares)."""
    mean = total[1] / total[0]
    deviation = (total[2] / total[0] - mean.square()).clamp(min=0).sqrt()
    varied = deviation > 1e-9 * (1 + mean.abs())
    return torch.stack([mean, torch.where(varied, deviation, torch.ones_like(deviation)).reciprocal()])


class ValueEncoder(nn.Module):
    """A standardised value → channels, ``gain · linear(features) + shift`` with a gain and shift per edge.

    The features are the value, and on request sines and cosines of it at doubling frequencies.

    Args:
        in_channels: number of values per edge.
        channels: number of channels c.
        num_frequencies: F; 0 uses the value alone.
        linear: False for the features alone.
    """

    frequencies: Tensor

    def __init__(self, in_channels: int, channels: int, num_frequencies: int, *, linear: bool = True) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.linear = nn.Linear(in_channels * (1 + 2 * num_frequencies), channels) if linear else None
        powers = pi / 4 * 2.0 ** torch.arange(num_frequencies)
        self.register_buffer("frequencies", powers, persistent=False)

    def features(self, values: Tensor) -> Tensor:
        """Map ``[..., E, in_channels]`` to the features ``[..., E, k]``, k = in_channels (1 + 2 F)."""
        if not self.num_frequencies:
            return values
        angles = (values[..., None] * self.frequencies.to(values)).flatten(-2)
        return torch.cat([values, angles.sin(), angles.cos()], -1)

    def forward(self, values: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
        """Map ``[..., E, in_channels]`` to ``[..., E, c]``; gain and shift are ``[E, c]``."""
        assert self.linear is not None
        values = self.features(values)
        shift = torch.addcmul(shift, gain, self.linear.bias)
        if values.shape[-1] == 1:
            return torch.addcmul(shift, values, gain * self.linear.weight[:, 0])
        return torch.addcmul(shift, nn.functional.linear(values, self.linear.weight), gain)


def _named(index: Tensor) -> Tensor:
    """Return 0 for no index or one too large, else 1 + index."""
    return torch.where((index >= 0) & (index < NAMED), index + 1, torch.zeros_like(index)).long()


class PlaceEncoder(nn.Module):
    """Numbers of a node (order of operation, index among fixed units) and coordinates of an edge → channels.

    Args:
        channels: number of channels c.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.order = nn.Embedding(NAMED + 1, channels)
        self.index = nn.Embedding(NAMED + 1, channels)
        self.node = nn.Linear(4 * WAVES + 2, channels)
        self.edge = nn.Linear(COORDINATES * 2 * WAVES, channels, bias=False)

    def nodes(self, x: Tensor) -> Tensor:
        """Map ``x`` ``[N, 4]`` of a graph to ``[N, c]``."""
        order, relative, index, size = x.unbind(-1)
        numbers = torch.stack([relative, torch.log1p(size)], -1)
        waves = self.node(torch.cat([index_features(order), index_features(index), numbers], -1))
        return waves + self.order(_named(order)) + self.index(_named(index))  # type: ignore[no-any-return]

    def edges(self, position: Tensor) -> Tensor:
        """Map ``edge_position`` ``[E, 3]`` of a graph to ``[E, c]``."""
        return self.edge(index_features(position).flatten(-2))  # type: ignore[no-any-return]
