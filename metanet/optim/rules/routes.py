"""Routes: how messages go from the positions of many sides to the units they meet, and back, all at once.

The positions of all sides lie one behind the other. What a unit is sent is a weighted sum over a bag of
positions, what a position gets back is a sum over a bag of units; both are one call, in a fixed order, whose
indices take memory like the sides and not like the parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


@dataclass(frozen=True, slots=True)
class Meetings:
    """Positions with units that they meet.

    Args:
        position: ``[m]``, int64.
        unit: ``[m]``, int64.
        weight: ``[m]``, float64: of the position in the mean that its unit is sent.
    """

    position: Tensor
    unit: Tensor
    weight: Tensor


@dataclass(frozen=True, slots=True)
class Bags:
    """Weighted sums over some rows of a matrix.

    Args:
        rows: ``[m]``, int32, those of one bag behind those of another.
        starts: ``[bags]``, int32, of the bags in ``rows``.
        weights: ``[m]``; None for ones.
    """

    rows: Tensor
    starts: Tensor
    weights: Tensor | None = None

    def __call__(self, matrix: Tensor) -> Tensor:
        """Return ``[bags, K]`` sums of rows of ``[n, K]``; that of an empty bag is zero."""
        return embedding_bag(self.rows, matrix, self.starts, mode="sum", per_sample_weights=self.weights)


@dataclass(frozen=True, slots=True)
class Route:
    """The way of messages between some sides and the units they meet.

    Args:
        lengths: of the sides.
        to_units: from positions.
        to_positions: from units.
    """

    lengths: tuple[int, ...]
    to_units: Bags
    to_positions: Bags

    def gather(self, messages: Sequence[Tensor]) -> Tensor:
        """Return the ``[units, K]`` mean messages to the units.

        Args:
            messages: ``[K, length]`` of every side.
        """
        return self.to_units(torch.cat([message.mT for message in messages]))

    def scatter(self, pool: Tensor) -> list[Tensor]:
        """Return the ``[K, length]`` sum of the units that every position of every side meets.

        Args:
            pool: ``[units, K]``, what `gather` returned or a function of it.
        """
        return [back.mT for back in self.to_positions(pool).split(self.lengths)]


def route(lengths: Sequence[int], units: int, meetings: Sequence[Meetings], like: Tensor) -> Route:
    """Return the route over meetings; the weights of the positions that a unit meets are made to sum to one.

    Args:
        lengths: of the sides.
        units: their number.
        meetings: of the positions of all sides.
        like: of the type and on the device of the messages.
    """
    none = torch.zeros(0, dtype=torch.long)
    position = torch.cat([none, *(met.position for met in meetings)])
    unit = torch.cat([none, *(met.unit for met in meetings)])
    weight = torch.cat([none.double(), *(met.weight for met in meetings)])
    mean = weight / weight.new_zeros(units).index_add_(0, unit, weight)[unit]
    to, back = unit.argsort(stable=True), position.argsort(stable=True)

    def indices(values: Tensor) -> Tensor:
        return values.to(like.device, torch.int32)

    return Route(
        tuple(lengths),
        Bags(indices(position[to]), indices(_starts(unit, units)), mean[to].to(like)),
        Bags(indices(unit[back]), indices(_starts(position, sum(lengths)))),
    )


def _starts(bag: Tensor, bags: int) -> Tensor:
    """Return where ``[bags]`` begin if their members, whose bags are given, are sorted."""
    counts = torch.bincount(bag, minlength=bags)
    return counts.cumsum(0) - counts
