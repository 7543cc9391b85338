"""The orthogonal factor of a matrix by a few matrix products: the direction that Muon takes.

References:
    Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks, https://kellerjordan.github.io/posts/muon
    (the quintic iteration and its coefficients). Bernstein and Newhouse 2024, Old optimizer, new norm,
    https://arxiv.org/abs/2409.20325.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
NARROW = 256
"""Rows from which on bfloat16 pays."""
LONG = 3
"""Matrices this many times longer than wide are iterated on their small Gram matrix: fewer operations."""


def orthogonalize(matrices: Tensor, *, steps: int = STEPS, eps: float = 1e-7) -> Tensor:
    """Return matrices with the same singular vectors whose singular values are near one (0.7 … 1.2).

    Args:
        matrices: ``[K, rows, columns]``.
        steps: iterations ``X <- P X`` with ``P = a + b XXᵀ + c (XXᵀ)²``.
        eps: added to the Frobenius norm that the matrices are divided by first.

    Large float32 matrices are multiplied in bfloat16 where the hardware does that faster, as Muon's are.

    Returns:
        ``[K, rows, columns]``.
    """
    wide = matrices.size(-2) <= matrices.size(-1)
    x = matrices[0] if len(matrices) == 1 else matrices  # one matrix multiplies faster without a batch
    x = x if wide else x.mT
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + eps)
    if _narrow(x):
        narrow = x.bfloat16()
        for _ in range(steps):
            narrow = _apply(narrow @ narrow.mT, narrow)
        x = narrow.to(x.dtype)
    elif x.size(-1) >= LONG * x.size(-2):
        x = _accumulated(x @ x.mT, steps) @ x
    else:
        for _ in range(steps):
            x = _apply(x @ x.mT, x)
    result: Tensor = x if wide else x.mT
    return result[None] if len(matrices) == 1 else result


def _narrow(x: Tensor) -> bool:
    """Return whether products in bfloat16 pay."""
    if x.dtype != torch.float32 or x.size(-2) < NARROW:
        return False
    return x.is_cuda or _fast_bfloat16()


@cache
def _fast_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _apply(gram: Tensor, x: Tensor) -> Tensor:
    """Return P X."""
    a, b, c = COEFFICIENTS
    product = torch.addmm if x.ndim == 2 else torch.baddbmm
    return product(x, product(gram, gram, gram, beta=b, alpha=c), x, beta=a)


def _accumulated(gram: Tensor, steps: int) -> Tensor:
    """Return the product of all P, which commute with XXᵀ: the next Gram matrix is P XXᵀ P."""
    a, b, c = COEFFICIENTS
    product: Tensor | None = None
    for step in range(steps):
        product_of = torch.addmm if gram.ndim == 2 else torch.baddbmm
        polynomial = product_of(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a)
        product = polynomial if product is None else polynomial @ product
        if step < steps - 1:
            gram = polynomial @ gram @ polynomial
    assert product is not None
    return product
