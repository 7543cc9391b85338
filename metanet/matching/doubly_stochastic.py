"""Sinkhorn's operator: the doubly stochastic matrix nearest to given scores, with its exact derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MAX_ITERATIONS = 200
TOLERANCES = {torch.float64: 1e-9}
TOLERANCE = 1e-5
"""Largest error of a row's sum at which the iteration ends, in float64 and in other precisions."""
DAMPING = 1e-9
"""Added to the implicit system: it is singular where a matrix is a permutation, and has no gradient there."""


def sinkhorn(
    scores: Tensor, *, max_iterations: int = MAX_ITERATIONS, tolerance: float | None = None
) -> Tensor:
    r"""Return the doubly stochastic matrix with ``P_ij = exp(x_ij + α_i + β_j)``.

    Rows and columns of exp(x) are divided by their sums in turn, in log space. The derivative is that of the
    limit, by the implicit function theorem, and not of the iteration: with G = ∂L/∂P and H = P ⊙ G,

        ∂L/∂x = P ⊙ (G − a 1ᵀ − 1 bᵀ),   (I − PᵀP) b = Hᵀ1 − PᵀH1,   a = H1 − P b ,

    so that its cost and memory do not depend on the number of iterations.

    Args:
        scores: ``[*, n, n]`` x, divided by the temperature.
        max_iterations: passes over rows and columns.
        tolerance: largest error of a row's sum at which they end; None takes what the precision allows.

    Returns:
        ``[*, n, n]``; columns sum to one exactly, rows to the tolerance.

    References:
        Sinkhorn 1964, https://doi.org/10.1214/aoms/1177703591. Peña et al. 2023, Re-basin via implicit
        Sinkhorn differentiation, https://arxiv.org/abs/2212.12042, and Eisenberger et al. 2022,
        https://arxiv.org/abs/2205.06688, for the derivative. Departs from both in eliminating a: one system
        of n unknowns in place of 2n.
    """
    if scores.ndim < 2 or scores.shape[-1] != scores.shape[-2]:
        raise ValueError(f"doubly stochastic matrices are square: found scores {list(scores.shape)}")
    if tolerance is None:
        tolerance = TOLERANCES.get(scores.dtype, TOLERANCE)
    found: Tensor = _Sinkhorn.apply(scores, max_iterations, tolerance)  # type: ignore[no-untyped-call]
    return found


def unrolled_sinkhorn(scores: Tensor, iterations: int) -> Tensor:
    """Return what `sinkhorn` does after a number of iterations, differentiable through each of them."""
    logs = scores
    for _ in range(iterations):
        logs = logs - logs.logsumexp(-1, keepdim=True)
        logs = logs - logs.logsumexp(-2, keepdim=True)
    return logs.exp()


class _Sinkhorn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, max_iterations: int, tolerance: float) -> Tensor:
        logs = scores
        for _ in range(max_iterations):
            rows = logs.logsumexp(-1, keepdim=True)
            done = bool((rows.exp() - 1).abs().max() < tolerance)
            logs = logs - rows
            logs = logs - logs.logsumexp(-2, keepdim=True)
            if done:
                break
        matrix = logs.exp()
        ctx.save_for_backward(matrix)
        return matrix

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (matrix,) = ctx.saved_tensors
        p, g = matrix.double(), gradient.double()
        n = p.shape[-1]
        h = p * g
        rows, columns = h.sum(-1, keepdim=True), h.sum(-2).unsqueeze(-1)
        # 1 1ᵀ / n takes away the one direction, (1, −1), that changes nothing.
        unit = torch.eye(n, dtype=p.dtype, device=p.device)
        system = unit * (1 + DAMPING) - p.mT @ p + 1.0 / n
        b = torch.linalg.solve(system, columns - p.mT @ rows)
        a = rows - p @ b
        return (p * (g - a - b.mT)).to(gradient), None, None
