"""Linear paths between two networks, and how high the loss rises on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

State = Mapping[str, Tensor]
Evaluate = Callable[[dict[str, Tensor]], Mapping[str, float]]
"""State dict -> metrics by name, a loss among them."""


def interpolate(a: State, b: State, weight: float) -> dict[str, Tensor]:
    """Return ``(1 − weight)·a + weight·b``; what is no floating-point tensor is taken from a.

    Args:
        a: entry name -> tensor.
        b: the same names and shapes.
        weight: 0 is a, 1 is b.
    """
    return {
        name: torch.lerp(tensor, b[name].to(tensor), weight) if tensor.is_floating_point() else tensor.clone()
        for name, tensor in a.items()
    }


@dataclass(frozen=True)
class Path:
    """Metrics along a path between two networks.

    Args:
        weights: points on the path, 0 to 1.
        metrics: name -> one value per point.
        loss: name of the metric that barriers are measured by.
    """

    weights: tuple[float, ...]
    metrics: Mapping[str, tuple[float, ...]]
    loss: str = "loss"

    @property
    def barrier(self) -> float:
        """Largest height of the loss above the chord between the ends; 0 if it never lies above."""
        losses = self.metrics[self.loss]
        chord = [losses[0] + w * (losses[-1] - losses[0]) for w in self.weights]
        return max(0.0, *(value - line for value, line in zip(losses, chord, strict=True)))

    def at(self, metric: str, weight: float) -> float:
        """Return a metric at the point nearest to a weight."""
        nearest = min(range(len(self.weights)), key=lambda i: abs(self.weights[i] - weight))
        return self.metrics[metric][nearest]


def barrier_path(
    a: State,
    b: State,
    evaluate: Evaluate,
    *,
    points: int = 25,
    loss: str = "loss",
    progress: Callable[[int], None] | None = None,
) -> Path:
    r"""Evaluate networks along the straight line between two.

        barrier = max over t of  L((1−t)·a + t·b) − ((1−t)·L(a) + t·L(b)) .

    Args:
        a: state dict at weight 0.
        b: state dict at weight 1.
        evaluate: metrics of a state dict; whatever else belongs to a point (statistics of norms computed
            anew) is done there.
        points: number of points, the ends among them.
        loss: name of the metric that barriers are measured by.
        progress: told of every point that is done.

    Raises:
        ValueError: fewer than three points.

    References:
        Frankle et al. 2020, Linear Mode Connectivity and the Lottery Ticket Hypothesis,
        https://arxiv.org/abs/1912.05671; Entezari et al. 2022, https://arxiv.org/abs/2110.06296, for the
        chord.
    """
    if points < 3:
        raise ValueError(f"a path needs both ends and a point between them, found points={points}")
    weights = tuple(i / (points - 1) for i in range(points))
    rows: list[Mapping[str, float]] = []
    for i, weight in enumerate(weights):
        rows.append(evaluate(interpolate(a, b, weight)))
        if progress is not None:
            progress(i + 1)
    return Path(weights, {name: tuple(row[name] for row in rows) for name in rows[0]}, loss)


def mean_of(states: Sequence[State]) -> dict[str, Tensor]:
    """Return the average of state dicts; what is no floating-point tensor is taken from the first."""
    first = states[0]
    return {
        name: torch.stack([state[name].to(tensor) for state in states]).mean(0)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in first.items()
    }
