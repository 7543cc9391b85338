"""The optimizers of the comparison, each made from a model and a learning rate, and their rates to sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from metanet.optim.roles import is_matrix, roles_of

Build = Callable[[nn.Module, float, int], list[Optimizer]]
"""(model, learning rate, steps) -> optimizers that step together."""


@dataclass(frozen=True)
class Baseline:
    """An optimizer with a rate to tune.

    Args:
        build: makes it.
        rates: log-spaced learning rates of the sweep; the best must not be at an edge.
        schedules: ``constant`` and ``cosine`` (5 % warmup), or the former alone where it brings its own.
        package: that it comes from, if not from torch.
    """

    build: Build
    rates: tuple[float, ...]
    schedules: tuple[str, ...] = ("constant", "cosine")
    package: str = ""


def _sgd(model: nn.Module, rate: float, steps: int) -> list[Optimizer]:
    return [torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)]


def _adamw(model: nn.Module, rate: float, steps: int) -> list[Optimizer]:
    return [torch.optim.AdamW(model.parameters(), lr=rate)]


def _muon(model: nn.Module, rate: float, steps: int) -> list[Optimizer]:
    """Muon on two-dimensional matrices between units, AdamW at half the rate on all else."""
    roles = roles_of(model)
    named = dict(model.named_parameters())
    matrices = [p for n, p in named.items() if p.ndim == 2 and is_matrix(p) and roles[n] != "embedding"]
    chosen = {id(p) for p in matrices}
    rest = [p for p in named.values() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.0),
        torch.optim.AdamW(rest, lr=rate / 2, weight_decay=0.0),
    ]


def _soap(model: nn.Module, rate: float, steps: int) -> list[Optimizer]:
    from pytorch_optimizer import SOAP

    return [SOAP(model.parameters(), lr=rate)]


def _schedule_free(model: nn.Module, rate: float, steps: int) -> list[Optimizer]:
    from pytorch_optimizer import ScheduleFreeAdamW

    return [ScheduleFreeAdamW(model.parameters(), lr=rate, warmup_steps=max(steps // 20, 1))]


def _spaced(low: float, high: float, count: int) -> tuple[float, ...]:
    return tuple(float(f"{low * (high / low) ** (i / (count - 1)):.6g}") for i in range(count))


BASELINES: Mapping[str, Baseline] = {
    "SGD-momentum": Baseline(_sgd, _spaced(0.0125, 1.6, 8)),
    "AdamW": Baseline(_adamw, _spaced(0.001, 0.128, 8)),
    "Muon + AdamW": Baseline(_muon, _spaced(0.003, 0.384, 8)),
    "SOAP": Baseline(_soap, _spaced(0.001, 0.256, 9), package="pytorch_optimizer"),
    "schedule-free AdamW": Baseline(
        _schedule_free, _spaced(0.002, 0.128, 7), ("constant",), package="pytorch_optimizer"
    ),
}
"""Baselines by name."""
