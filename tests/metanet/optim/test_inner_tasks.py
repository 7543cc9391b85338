"""Inner tasks of meta-training: many networks at once, with gradients written out."""

from __future__ import annotations

import pytest
import torch

from metanet.optim.meta.tasks import ACTIVATIONS, Classification, MLPTask


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize(("scale", "widening"), [(1.0, 1.0), (0.2, 1.0), (2.0, 9.0)])
def test_gradients_are_those_of_automatic_differentiation(
    activation: str, scale: float, widening: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    task = MLPTask(
        Classification(inputs, torch.randint(0, 4, (50,), generator=generator)),
        (6, 5, 7, 4),
        activation,
        8,
        scale,
        widening,
    )
    leaves = [p.double().requires_grad_() for p in task.initialize(3, generator)]
    indices = torch.randint(50, (3, 8), generator=generator)
    losses = task.losses(leaves, indices)
    expected = torch.autograd.grad(losses.sum(), leaves)
    found_losses, found = task.gradients([leaf.detach() for leaf in leaves], indices)
    torch.testing.assert_close(found_losses, losses.detach())
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("widths", [(6, 4), (6, 5, 4), (6, 5, 7, 4)])
def test_reparametrisations_change_no_function(widths: tuple[int, ...]) -> None:
    """Stored parameters and their gradients change, what the networks compute does not."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 6, generator=generator, dtype=torch.float64)
    data = Classification(inputs, torch.randint(0, 4, (50,), generator=generator))
    indices = torch.randint(50, (3, 8), generator=generator)
    found = []
    for scale, widening in ((1.0, 1.0), (0.5, 16.0)):
        task = MLPTask(data, widths, "tanh", 8, scale, widening)
        parameters = task.initialize(3, torch.Generator().manual_seed(1))
        losses, gradients = task.gradients(parameters, indices)
        products = [(p * g).sum() for p, g in zip(parameters, gradients, strict=True)]
        found.append((losses, products, [float(p.abs().mean()) for p in parameters]))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])
    if len(widths) > 2:
        first, last = (found[0][2][at] / found[1][2][at] for at in (0, -2))
        assert first == pytest.approx(0.5 * 4)
        assert last == pytest.approx(0.5 / 4)
