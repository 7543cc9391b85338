"""Fully connected networks written as plain modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from architectures.family import Family, example, families, normal


class Maxout(nn.Module):
    """The maximum over pieces of a linear map."""

    def __init__(self, inputs: int, outputs: int, pieces: int) -> None:
        super().__init__()
        self.linear, self.pieces = nn.Linear(inputs, outputs * pieces), pieces

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).unflatten(-1, (-1, self.pieces)).amax(-1)


class Highway(nn.Module):
    """``t · h(x) + (1 - t) · x``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.transform, self.gate = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        return gate * torch.relu(self.transform(x)) + (1 - gate) * x


FAMILIES: list[Family] = families(
    "perceptrons",
    {
        "MLP": example(
            lambda: nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)),
            normal(5, 4),
        ),
        "MLP with batch norm": example(
            lambda: nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 3)),
            normal(5, 4),
        ),
        "Maxout": example(
            lambda: nn.Sequential(Maxout(4, 7, 3), Maxout(7, 6, 2), nn.Linear(6, 3)), normal(5, 4)
        ),
        "Highway": example(
            lambda: nn.Sequential(nn.Linear(4, 8), Highway(8), Highway(8), nn.Linear(8, 3)), normal(5, 4)
        ),
        "PReLU MLP": example(
            lambda: nn.Sequential(nn.Linear(4, 9), nn.PReLU(9), nn.Linear(9, 3)), normal(5, 4)
        ),
    },
)
