"""The orthogonal factor of a matrix by a few matrix products: the direction that Muon takes.

References:
    Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks, https://kellerjordan.github.io/posts/muon
    (the quintic iteration and its coefficients). Bernstein and Newhouse 2024, Old optimizer, new norm,
    https://arxiv.org/abs/2409.20325.
"""

from __future__ import annotations

from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5


def orthogonalize(matrices: Tensor, *, steps: int = STEPS, eps: float = 1e-7) -> Tensor:
    """Return matrices with the same singular vectors whose singular values are near one (0.7 … 1.2).

    Args:
        matrices: ``[..., rows, columns]``.
        steps: iterations ``X <- a X + (b XXᵀ + c (XXᵀ)²) X``.
        eps: added to the Frobenius norm that the matrices are divided by first.

    Returns:
        ``[..., rows, columns]``.
    """
    a, b, c = COEFFICIENTS
    wide = matrices.size(-2) <= matrices.size(-1)
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + eps)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = (gram @ gram).mul_(c).add_(gram, alpha=b)
        x = (polynomial @ x).add_(x, alpha=a)
    result: Tensor = x if wide else x.mT
    return result
