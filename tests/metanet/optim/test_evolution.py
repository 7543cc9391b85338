"""Persistent evolution strategies against the analytic gradient of a long unrolled computation."""

from __future__ import annotations

import torch

from metanet.optim.meta.evolution import PersistentES


def unrolled_gradient(theta: torch.Tensor, steps: int) -> torch.Tensor:
    """Return the gradient of Σ_t |s_t|² with s_{t+1} = 0.9 s_t + θ, by automatic differentiation."""
    leaf = theta.clone().requires_grad_()
    state = torch.ones_like(leaf)
    total = torch.zeros(())
    for _ in range(steps):
        state = 0.9 * state + leaf
        total = total + state.square().sum()
    (gradient,) = torch.autograd.grad(total, leaf)
    return gradient


def estimates(
    theta: torch.Tensor, steps: int, stretch: int, repeats: int, *, persistent: bool
) -> torch.Tensor:
    """Return ``[repeats, size]`` sums over all stretches of estimates from single pairs."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(repeats):
        estimator = PersistentES(len(theta), 1, 0.05, generator, persistent=persistent)
        state = torch.ones(2, len(theta))
        total = torch.zeros_like(theta)
        for start in range(0, steps, stretch):
            perturbed = estimator.perturb(theta)
            losses = torch.zeros(2)
            for _ in range(min(stretch, steps - start)):
                state = 0.9 * state + perturbed
                losses += state.square().sum(1)
            total += estimator.gradient(losses)
        found.append(total)
    return torch.stack(found)


def test_the_mean_estimate_is_the_gradient_under_truncation() -> None:
    theta = torch.tensor([0.3, -0.2, 0.1])
    expected = unrolled_gradient(theta, 12)
    for stretch in (12, 3):
        found = estimates(theta, 12, stretch, 4000, persistent=True)
        error = found.std(0) / len(found) ** 0.5
        assert bool(((found.mean(0) - expected).abs() < 4 * error).all())


def test_truncated_strategies_are_biased() -> None:
    theta = torch.tensor([0.3, -0.2, 0.1])
    expected = unrolled_gradient(theta, 12)
    found = estimates(theta, 12, 3, 2000, persistent=False)
    error = found.std(0) / len(found) ** 0.5
    assert bool(((found.mean(0) - expected).abs() > 4 * error).any())


def test_states_continue() -> None:
    generator = torch.Generator().manual_seed(0)
    first = PersistentES(4, 2, 0.1, generator)
    first.perturb(torch.zeros(4))
    second = PersistentES(4, 2, 0.1, torch.Generator())
    second.load_state_dict(first.state_dict())
    losses = torch.arange(4.0)
    torch.testing.assert_close(second.gradient(losses), first.gradient(losses))
    first.reset()
    assert not bool(first.accumulated.any())
