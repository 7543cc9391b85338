"""Straight-through matching learns from the loss at the midpoint."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metanet import GroupElement, spec_of
from metanet.matching import straight_through_matching, weight_matching


def trained(seed: int, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))


def test_the_midpoint_is_no_worse_than_after_weight_matching() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 4, generator=generator)
    y = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 0.5).long()
    a, b = trained(0, x, y), trained(1, x, y)
    model = network()
    spec = spec_of(model, x[:1])

    def loss(state: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(model, state, (x,)), y)

    def at_midpoint(element: GroupElement) -> float:
        moved = element @ b
        return float(loss({name: (a[name] + moved[name]) / 2 for name in a}).detach())

    found = straight_through_matching(spec, a, b, loss, steps=40, learning_rate=0.02)
    by_weights = at_midpoint(weight_matching(spec, a, b).element)
    assert found.history[0] == pytest.approx(by_weights, rel=1e-5)
    assert at_midpoint(found.element) == pytest.approx(min(found.history), rel=1e-5)
    # On this pair it does better, so the gradient reaches the element.
    assert at_midpoint(found.element) < 0.98 * by_weights
    assert not any(tensor.requires_grad for tensor in a.values())
    with pytest.raises(ValueError, match="steps=0"):
        straight_through_matching(spec, a, b, loss, steps=0)
