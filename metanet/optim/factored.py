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
from collections.abc import Sequence

import torch
from torch import Tensor

from metanet.optim.links import Links
from metanet.optim.mixing import whole_rows
from metanet.optim.pointwise import on_device
from metanet.optim.rule import Item, Metas, UpdateRule

RATE = 1e-3
DECAYS = (0.9, 0.99, 0.999)
SECOND_DECAY = 0.999
TINY = 1e-9


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
    gradients, state = item.gradients, item.state
    flat, second, momenta = gradients.flatten(1), state["second"][0].flatten(1), state["momenta"].flatten(2)
    rows, columns = [], gradients.new_zeros((len(gradients), gradients.shape[-1]))
    for part in whole_rows(gradients):
        gradient = flat[:, part]
        for decay, momentum in zip(DECAYS, momenta, strict=True):
            momentum[:, part].lerp_(gradient, 1 - decay)
        square = gradient.square()
        second[:, part].lerp_(square, 1 - SECOND_DECAY)
        if gradients.ndim == 3:
            grid = square.unflatten(1, (-1, gradients.shape[2]))
            rows.append(grid.mean(2))
            columns += grid.sum(1)
        else:
            rows.append(square)
    for i, decay in enumerate(DECAYS):
        state["rows"][i].lerp_(torch.cat(rows, 1), 1 - decay)
        if gradients.ndim == 3:
            state["columns"][i].lerp_(columns / gradients.shape[1], 1 - decay)


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

    @abstractmethod
    def direction(self, metas: Metas, item: Item) -> Tensor:
        """Return the direction of one bucket, and take its gradients into the state."""


def features(item: Item, part: slice, *, short: bool) -> Tensor:
    """Return the features of a chunk of whole rows, not yet divided by their size over the tensor.

    Args:
        item: the bucket, after `accumulate`.
        part: of its flattened values.
        short: the 30 features of VeLO and Celo2 (clipped gradient and g/√v too) instead of the 28 of Metz.

    Returns:
        ``[K, features, width of the part]``.
    """

    def flat(values: Tensor) -> Tensor:
        return values.flatten(1)[:, part]

    gradient, value = flat(item.gradients), flat(item.values)
    momenta = [flat(momentum) for momentum in item.state["momenta"]]
    second = flat(item.state["second"][0])
    inverse = (second + 1e-6).rsqrt()
    found = [gradient, value, *momenta, second, *(m * inverse for m in momenta), inverse]
    if short:
        found += [gradient.clamp(-0.1, 0.1), gradient * inverse]
    rows, columns, factors = _factors(item, part)
    found += [gradient * factor for factor in factors]
    found += [momentum * factor for momentum, factor in zip(momenta, factors, strict=True)]
    found += [*rows, *columns, *((r + 1e-8).rsqrt() for r in rows), *((c + 1e-8).rsqrt() for c in columns)]
    return torch.stack(found, 1)


def _factors(item: Item, part: slice) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return row means, column means and Adafactor's factor of a chunk, ``[K, width]`` per decay."""
    if item.values.ndim == 2:
        own = [means[:, part] for means in item.state["rows"]]
        return own, own, [(means + TINY).rsqrt() for means in own]
    columns_count = item.values.shape[2]
    inside = slice(part.start // columns_count, part.stop // columns_count)
    rows, columns, factors = [], [], []
    for row, column in zip(item.state["rows"], item.state["columns"], strict=True):
        here = row[:, inside]
        shape = (len(row), here.shape[1], columns_count)
        share = (here / (row.mean(1, keepdim=True) + TINY)).clamp_min(TINY).rsqrt()
        factors.append((share[:, :, None] * column.clamp_min(TINY).rsqrt()[:, None]).flatten(1))
        rows.append(here[:, :, None].expand(shape).flatten(1))
        columns.append(column[:, None].expand(shape).flatten(1))
    return rows, columns, factors
