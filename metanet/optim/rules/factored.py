"""Accumulators and features of Adafactor beside those of Adam, for per-parameter networks.

With momenta m_i, second moment v and, for every decay, the means r of g² over columns and c over rows (both
tracked by moving averages; for a vector both are its own squares):

    factor = rsqrt(r / mean(r)) · rsqrt(c),    g · factor is Adafactor's direction

References:
    Shazeer and Stern 2018, Adafactor, https://arxiv.org/abs/1804.04235. Metz et al. 2022, Practical tradeoffs
    between memory, compute, and performance in learned optimizers, https://arxiv.org/abs/2203.11860.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt

import torch
from torch import Tensor

from metanet.optim.buffers import Buffers
from metanet.optim.chunks import CHUNK, FUSED, Part, chunks
from metanet.optim.rule import Item, Metas, UpdateRule
from metanet.optim.rules.fused import compiled, factored_network, factored_squares
from metanet.optim.rules.links import Links
from metanet.optim.rules.mixing import of_some
from metanet.optim.rules.pointwise import on_device

RATE = 1e-3
DECAYS = (0.9, 0.99, 0.999)
SECOND_DECAY = 0.999
TINY = 1e-9
FLOOR = 1e-5
"""Added to the root mean squares of features."""


def factored_state(shape: Sequence[int], like: Tensor) -> dict[str, Tensor]:
    """Return zero momenta, second moment, and row and column means (of a vector: its squares once)."""
    count = len(DECAYS)
    state = {"momenta": like.new_zeros((count, *shape)), "second": like.new_zeros((1, *shape))}
    if len(shape) == 2:
        return {**state, "rows": like.new_zeros((count, *shape))}
    return {
        **state,
        "rows": like.new_zeros((count, *shape[:2])),
        "columns": like.new_zeros((count, shape[0], shape[2])),
    }


def accumulate(item: Item, *, fused: bool = False) -> None:
    """Take the gradients into the state; the averages are not bias-corrected.

    Args:
        item: the bucket.
        fused: matrices go through a compiled loop.
    """
    state, matrix = item.state, item.gradients.ndim == 3
    flat, second = item.gradients.flatten(1), state["second"][0].flatten(1)
    momenta = state["momenta"].flatten(2)
    row = item.gradients.shape[-1] if matrix else 1
    columns = item.gradients.new_zeros((len(flat), row))
    for at in chunks(flat, row, CHUNK * FUSED if fused else CHUNK):
        parts = [one[at].unflatten(1, (-1, row)) for one in (flat, *momenta, second)]
        take = compiled(take_in) if fused and matrix else take_in
        means, sums = take(parts[0], parts[1:-1], parts[-1])
        columns[at[0]].add_(sums)
        for decay, rows in zip(DECAYS, state["rows"], strict=True):
            rows[at[0], at[1].start // row : at[1].stop // row].lerp_(means, 1 - decay)
    if matrix:
        columns.div_(item.gradients.shape[1])
        for decay, kept in zip(DECAYS, state["columns"], strict=True):
            kept.lerp_(columns, 1 - decay)


def take_in(gradient: Tensor, momenta: Sequence[Tensor], second: Tensor) -> tuple[Tensor, Tensor]:
    """Take gradients ``[k, r, c]`` into momenta and second moment, in place.

    Returns:
        Means of their squares over columns ``[k, r]``, sums over rows ``[k, c]``.
    """
    for decay, momentum in zip(DECAYS, momenta, strict=True):
        momentum.lerp_(gradient, 1 - decay)
    square = gradient.square()
    second.lerp_(square, 1 - SECOND_DECAY)
    return square.mean(2), square.sum(1)


class FactoredRule(UpdateRule):
    """A network of every parameter alone on these accumulators, with a constant rate of its own."""

    def state(self, shape: Sequence[int], like: Tensor) -> dict[str, Tensor]:
        """Return the accumulators."""
        return factored_state(shape, like)

    def rate(self, metas: Metas, role: str, step: int, horizon: int) -> Tensor:
        """Return 10⁻³: the schedule is the network's or the user's."""
        return metas["bias_2"].new_full((len(metas["bias_2"]),), RATE)

    def directions(
        self, metas: Metas, items: Sequence[Item], progress: float, links: Links | None = None
    ) -> list[Tensor]:
        """Return the direction of every bucket by itself."""
        return [self.direction(on_device(metas, item.values), item) for item in items]

    @cached_property
    def buffers(self) -> Buffers:
        """Memory that is kept between steps."""
        return Buffers()

    @abstractmethod
    def direction(self, metas: Metas, item: Item) -> Tensor:
        """Return the direction of one bucket, and take its gradients into the state."""

    def outputs(
        self, metas: Metas, item: Item, *, short: bool, clock: Tensor | None = None
    ) -> Iterator[tuple[Part, Tensor]]:
        """Yield the ``[k, outputs, width]`` outputs of a network with two hidden layers, chunk by chunk.

        Every feature is divided by its root mean square over the tensor, which its first weights take in.
        What is the same along rows or columns goes through the first layer once per row or column.

        Args:
            metas: meta-parameters.
            item: the bucket, after `accumulate`.
            short: see `features`.
            clock: ``[inputs]`` further inputs that all parameters share.
        """
        flat, weight = item.values.flatten(1), self._weight(metas, 0)
        bias, count = metas["bias_0"], 18 if short else 16
        if clock is not None:
            bias = bias + weight[..., count + 12 :] @ clock
        edges = Edges.of(item.state)
        biases = edges.biases(weight[..., count : count + 12], bias)
        fused = self.compiled and item.values.ndim == 3
        parts = list(chunks(flat, item.values.shape[-1], CHUNK * FUSED if fused else CHUNK))
        weight = weight[..., :count] / (self._sizes(item, edges, parts, short=short) + FLOOR)[:, None]
        for at in parts:
            if fused:
                yield at, self._fused(metas, item, at, edges, weight, biases, short=short)
                continue
            units = self._layer(0, weight[at[0]], self._features(item, at, edges, short=short))
            edges.add(biases, units, at)
            for i in (1, 2):
                units = self._later(metas, i, units.relu_(), at)
            yield at, units

    def _fused(
        self,
        metas: Metas,
        item: Item,
        at: Part,
        edges: Edges,
        weight: Tensor,
        biases: tuple[Tensor, Tensor],
        *,
        short: bool,
    ) -> Tensor:
        """Return the outputs of a part of matrices from compiled loops."""
        given = (*edges.sources(item, at), short, weight[at[0]])
        row_biases, column_biases = edges.cut(biases[0], at), biases[1][at[0]]
        later = [(of_some(self._weight(metas, i), at[0]), of_some(metas[f"bias_{i}"], at[0])) for i in (1, 2)]
        return compiled(factored_network)(*given, row_biases, column_biases, later).flatten(2)

    def _sizes(self, item: Item, edges: Edges, parts: Sequence[Part], *, short: bool) -> Tensor:
        """Return the ``[K, features]`` root mean squares of `features`."""
        values = item.values
        totals = values.new_zeros(len(values), 18 if short else 16)
        for at in parts:
            if self.compiled and values.ndim == 3:
                totals[at[0]] += compiled(factored_squares)(*edges.sources(item, at), short)
            else:
                norms = torch.linalg.vector_norm(self._features(item, at, edges, short=short), dim=2)
                totals[at[0]] += norms.square_()
        return (totals / values[0].numel()).sqrt_()

    def _features(self, item: Item, at: Part, edges: Edges, *, short: bool) -> Tensor:
        shape = (at[0].stop - at[0].start, 18 if short else 16, at[1].stop - at[1].start)
        return features(item, at, edges, short=short, out=self.buffers.take("features", shape, item.values))

    def _weight(self, metas: Metas, number: int) -> Tensor:
        weight: Tensor = metas[f"weight_{number}"].unflatten(1, (metas[f"bias_{number}"].shape[1], -1))
        return weight

    def _later(self, metas: Metas, number: int, units: Tensor, at: Part) -> Tensor:
        weight, bias = (of_some(m, at[0]) for m in (self._weight(metas, number), metas[f"bias_{number}"]))
        return self._layer(number, weight.expand(len(units), -1, -1), units).add_(bias[..., None])

    def _layer(self, number: int, weight: Tensor, inputs: Tensor) -> Tensor:
        shape = (len(inputs), weight.shape[1], inputs.shape[2])
        return torch.bmm(weight, inputs, out=self.buffers.take(f"layer {number}", shape, inputs))


@dataclass(frozen=True, slots=True)
class Edges:
    """Features that are the same along the columns or the rows of a matrix; of a vector, both are its own.

    Args:
        rows: ``[K, 6, R]``: r and rsqrt(r) of the three decays.
        columns: ``[K, 6, C]``; of vectors the same as rows.
        row_factors: ``[K, 3, R]``: Adafactor's divisors.
        column_factors: ``[K, 3, C]``; None of vectors.
    """

    rows: Tensor
    columns: Tensor
    row_factors: Tensor
    column_factors: Tensor | None

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> Edges:
        """Return them for the state of a bucket, after `accumulate`."""
        means = state["rows"].transpose(0, 1)
        rows = torch.cat([means, (means + 1e-8).rsqrt_()], 1)
        if "columns" not in state:
            return cls(rows, rows, (means + TINY).rsqrt_(), None)
        other = state["columns"].transpose(0, 1)
        columns = torch.cat([other, (other + 1e-8).rsqrt_()], 1)
        share = (means / (means.mean(2, keepdim=True) + TINY)).clamp_min_(TINY).rsqrt_()
        return cls(rows, columns, share, other.clamp_min(TINY).rsqrt_())

    def biases(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return what they bring to the first layer: ``[K, h, R]`` and ``[K, h, C]``.

        Args:
            weight: ``[P, h, 12]``: of r, c, rsqrt(r), rsqrt(c).
            bias: ``[P, h]``.
        """
        found = []
        for means, places in ((self.rows, (0, 1, 2, 6, 7, 8)), (self.columns, (3, 4, 5, 9, 10, 11))):
            sizes = torch.linalg.vector_norm(means, dim=2) / sqrt(means.shape[2])
            found.append(torch.bmm(weight[..., places] / (sizes + FLOOR)[:, None], means))
        return found[0].add_(bias[..., None]), found[1]

    def cut(self, of_rows: Tensor, at: Part) -> Tensor:
        """Return the rows of a part of matrices."""
        assert self.column_factors is not None
        length = self.column_factors.shape[2]
        return of_rows[at[0], :, at[1].start // length : at[1].stop // length]

    def add(self, biases: tuple[Tensor, Tensor], units: Tensor, at: Part) -> None:
        """Add biases to the ``[k, h, width]`` units of a part."""
        if self.column_factors is None:
            units.add_(biases[0][at[0], :, at[1]]).add_(biases[1][at[0], :, at[1]])
            return
        grid = units.unflatten(2, (-1, biases[1].shape[2]))
        grid.add_(self.cut(biases[0], at)[..., None]).add_(biases[1][at[0], :, None])

    def sources(self, item: Item, at: Part) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return gradient, value, momenta and second moment of a part of matrices, and the factors."""
        assert self.column_factors is not None
        length = self.column_factors.shape[2]
        flat = [item.gradients.flatten(1), item.values.flatten(1), *item.state["momenta"].flatten(2)]
        flat.append(item.state["second"][0].flatten(1))
        parts = [one[at].unflatten(1, (-1, length)) for one in flat]
        return parts, self.cut(self.row_factors, at), self.column_factors[at[0]]


def features(item: Item, at: Part, edges: Edges, *, short: bool, out: Tensor) -> Tensor:
    """Write the features of a chunk that `Edges` has not, not yet divided by their size over the tensor.

    Args:
        item: the bucket, after `accumulate`.
        at: some of its tensors, and a part of their flattened values: whole rows of matrices.
        edges: of the bucket.
        short: the 18 features of VeLO and Celo2 (clipped gradient and g/√v too) instead of the 16 of Metz.
        out: ``[k, features, width of the part]``.

    Returns:
        ``out``.
    """
    gradient, value = (t.flatten(1)[at] for t in (item.gradients, item.values))
    momenta = item.state["momenta"].flatten(2)[:, *at].transpose(0, 1)
    out[:, 0], out[:, 1], out[:, 2:5], out[:, 5] = (
        gradient,
        value,
        momenta,
        item.state["second"][0].flatten(1)[at],
    )
    inverse = torch.add(out[:, 5], 1e-6, out=out[:, 9]).rsqrt_()
    torch.mul(momenta, inverse[:, None], out=out[:, 6:9])
    if short:
        torch.clamp(gradient, -0.1, 0.1, out=out[:, 10])
        torch.mul(gradient, inverse, out=out[:, 11])
    factors = out[:, -6:-3]
    if edges.column_factors is None:
        factors.copy_(edges.row_factors[at[0], :, at[1]])
    else:
        columns = edges.column_factors[at[0], :, None]
        rows = edges.cut(edges.row_factors, at)[..., None]
        torch.mul(rows, columns, out=factors.unflatten(2, (-1, columns.shape[3])))
    torch.mul(momenta, factors, out=out[:, -3:])
    factors.mul_(gradient[:, None])
    return out
