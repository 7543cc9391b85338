"""Small networks that act on every parameter alone: their meta-parameters, features of time, and chunks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import sqrt

import torch
from torch import Tensor

from metanet.optim.rule import Item, Meta, Metas
from metanet.optim.rules.mixing import whole_rows

TIMES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)
"""Time scales τ of the features tanh(t/τ - 1)."""


def layers(widths: Sequence[int], seed: int = 0) -> dict[str, Meta]:
    """Return the meta-parameters of a network: weights of variance 1/inputs, zero biases."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        drawn = torch.randn(outputs * inputs, generator=generator).clamp_(-2, 2) / sqrt(inputs)
        found[f"weight_{i}"] = Meta(tuple(drawn.tolist()), 0.5 / sqrt(inputs))
        found[f"bias_{i}"] = Meta((0.0,) * outputs, 0.1)
    return found


def hidden_units(metas: Metas, inputs: Tensor, depth: int) -> Tensor:
    """Return ``[K, width, n]`` units behind ``depth`` layers with ReLU, of ``[K, features, n]`` inputs."""
    for i in range(depth):
        inputs = linear(metas, inputs, i).relu_()
    return inputs


def linear(metas: Metas, inputs: Tensor, at: int) -> Tensor:
    """Return ``[K, outputs, n]``."""
    weight, bias = metas[f"weight_{at}"], metas[f"bias_{at}"]
    weight = weight.unflatten(1, (bias.shape[1], -1)).expand(len(inputs), -1, -1)
    return torch.baddbmm(bias[..., None], weight, inputs)


def times(step: int, like: Tensor) -> Tensor:
    """Return the ``[1, 11, 1]`` features of time."""
    return torch.tanh(step / like.new_tensor(TIMES) - 1)[None, :, None]


def sizes(item: Item, features: Callable[[slice], Tensor]) -> Tensor:
    """Return ``[K, features, 1]`` root mean squares over a tensor, from chunks of its features."""
    total: Tensor | None = None
    for part in whole_rows(item.values):
        squares = features(part).square_().sum(2)
        total = squares if total is None else total + squares
    assert total is not None
    return (total / item.values[0].numel()).sqrt_()[..., None]


def on_device(metas: Metas, like: Tensor) -> Mapping[str, Tensor]:
    """Return meta-parameters where the tensors are."""
    if next(iter(metas.values())).device == like.device:
        return metas
    return {name: meta.to(like.device) for name, meta in metas.items()}
