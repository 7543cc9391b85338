"""Inner tasks of meta-training: many networks at once, with gradients written out."""

from __future__ import annotations

import pytest
import torch

from metanet.optim.meta.tasks import ACTIVATIONS, Classification, MLPTask


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("scale", [1.0, 0.2])
def test_gradients_are_those_of_automatic_differentiation(activation: str, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    task = MLPTask(
        Classification(inputs, torch.randint(0, 4, (50,), generator=generator)),
        (6, 5, 7, 4),
        activation,
        8,
        scale,
    )
    leaves = [p.double().requires_grad_() for p in task.initialize(3, generator)]
    indices = torch.randint(50, (3, 8), generator=generator)
    losses = task.losses(leaves, indices)
    expected = torch.autograd.grad(losses.sum(), leaves)
    found_losses, found = task.gradients([leaf.detach() for leaf in leaves], indices)
    torch.testing.assert_close(found_losses, losses.detach())
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
