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
from collections.abc import Iterator, Sequence
from functools import cached_property
from math import sqrt

import torch
from torch import Tensor

from metanet.optim.buffers import Buffers
from metanet.optim.chunks import chunks
from metanet.optim.links import Links
from metanet.optim.pointwise import on_device
from metanet.optim.rule import Item, Metas, UpdateRule

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


def accumulate(item: Item) -> None:
    """Take the gradients into the state; the averages are not bias-corrected."""
    state, matrix = item.state, item.gradients.ndim == 3
    flat, second = item.gradients.flatten(1), state["second"][0].flatten(1)
    momenta = state["momenta"].flatten(2)
    row = item.gradients.shape[-1]
    columns = item.gradients.new_zeros((len(flat), row)) if matrix else None
    for some, part in chunks(flat, row):
        gradient = flat[some, part]
        for decay, momentum in zip(DECAYS, momenta, strict=True):
            momentum[some, part].lerp_(gradient, 1 - decay)
        square = gradient.square()
        second[some, part].lerp_(square, 1 - SECOND_DECAY)
        means, inside = square, part
        if columns is not None:
            grid = square.unflatten(1, (-1, row))
            means, inside = grid.mean(2), slice(part.start // row, part.stop // row)
            columns[some].add_(grid.sum(1))
        for decay, rows in zip(DECAYS, state["rows"], strict=True):
            rows[some, inside].lerp_(means, 1 - decay)
    if columns is not None:
        columns.div_(item.gradients.shape[1])
        for decay, kept in zip(DECAYS, state["columns"], strict=True):
            kept.lerp_(columns, 1 - decay)


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
    ) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
        """Yield the ``[k, outputs, width]`` outputs of a network with two hidden layers, chunk by chunk.

        Every feature is divided by its root mean square over the tensor, which its first weights take in.

        Args:
            metas: meta-parameters.
            item: the bucket, after `accumulate`.
            short: see `features`.
            clock: ``[inputs]`` further inputs that all parameters share.
        """
        flat, weight = item.values.flatten(1), metas["weight_0"].unflatten(1, (metas["bias_0"].shape[1], -1))
        bias, count = metas["bias_0"], 30 if short else 28
        if clock is not None:
            bias = bias + weight[..., count:] @ clock
        parts = list(chunks(flat, item.values.shape[-1]))
        alone = len(parts) > 1 and parts[0][1].stop < flat.shape[1]  # a tensor has several chunks
        totals = flat.new_zeros(len(flat), count)
        for at in parts if alone else ():
            totals[at[0]] += torch.linalg.vector_norm(self._features(item, at, short=short), dim=2).square_()
        for at in parts:
            inputs = self._features(item, at, short=short)
            norms = totals[at[0]].sqrt() if alone else torch.linalg.vector_norm(inputs, dim=2)
            scaled = weight[at[0], :, :count] if len(weight) > 1 else weight[..., :count]
            scaled = scaled / (norms / sqrt(flat.shape[1]) + FLOOR)[:, None]
            units = self._layer(0, scaled, bias, inputs, at).relu_()
            for i in (1, 2):
                later = metas[f"weight_{i}"].unflatten(1, (metas[f"bias_{i}"].shape[1], -1))
                later = later[at[0]] if len(later) > 1 else later.expand(len(units), -1, -1)
                units = self._layer(i, later, metas[f"bias_{i}"], units, at)
                if i < 2:
                    units.relu_()
            yield at, units

    def _features(self, item: Item, at: tuple[slice, slice], *, short: bool) -> Tensor:
        shape = (at[0].stop - at[0].start, 30 if short else 28, at[1].stop - at[1].start)
        return features(item, at, short=short, out=self.buffers.take("features", shape, item.values))

    def _layer(
        self, number: int, weight: Tensor, bias: Tensor, inputs: Tensor, at: tuple[slice, slice]
    ) -> Tensor:
        shape = (len(inputs), weight.shape[1], inputs.shape[2])
        into = self.buffers.take(f"layer {number}", shape, inputs)
        bias = bias[at[0]] if len(bias) > 1 else bias
        return torch.bmm(weight, inputs, out=into).add_(bias[..., None])


def features(item: Item, at: tuple[slice, slice], *, short: bool, out: Tensor) -> Tensor:
    """Write the features of a chunk, not yet divided by their size over the tensor.

    Args:
        item: the bucket, after `accumulate`.
        at: some of its tensors, and a part of their flattened values: whole rows of matrices.
        short: the 30 features of VeLO and Celo2 (clipped gradient and g/√v too) instead of the 28 of Metz.
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
    start = 10
    if short:
        torch.clamp(gradient, -0.1, 0.1, out=out[:, 10])
        torch.mul(gradient, inverse, out=out[:, 11])
        start = 12
    rows, columns, factors = (
        out[:, start + 6 : start + 9],
        out[:, start + 9 : start + 12],
        out[:, start : start + 3],
    )
    inverse_rows, inverse_columns = out[:, start + 12 : start + 15], out[:, start + 15 : start + 18]
    if item.values.ndim == 2:
        own = item.state["rows"][:, *at].transpose(0, 1)
        for slot in (rows, columns):
            slot.copy_(own)
        for slot in (inverse_rows, inverse_columns):
            torch.add(own, 1e-8, out=slot).rsqrt_()
        torch.add(own, TINY, out=factors).rsqrt_()
    else:
        length = item.values.shape[2]
        inside = slice(at[1].start // length, at[1].stop // length)
        means = item.state["rows"][:, at[0]].transpose(0, 1)
        own, other = means[..., inside], item.state["columns"][:, at[0]].transpose(0, 1)
        share = (own / (means.mean(2, keepdim=True) + TINY)).clamp_min_(TINY).rsqrt_()
        shape = (-1, length)
        torch.mul(
            share[..., None], other.clamp_min(TINY).rsqrt_()[:, :, None], out=factors.unflatten(2, shape)
        )
        for slot, small in (
            (rows, own[..., None]),
            (columns, other[:, :, None]),
            (inverse_rows, (own + 1e-8).rsqrt_()[..., None]),
            (inverse_columns, (other + 1e-8).rsqrt_()[:, :, None]),
        ):
            slot.unflatten(2, shape).copy_(small)
    torch.mul(momenta, factors, out=out[:, start + 3 : start + 6])
    factors.mul_(gradient[:, None])
    return out
