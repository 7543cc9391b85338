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

from metanet.optim.buffers import Buffers

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
NARROW = 256
"""Rows from which on bfloat16 pays."""
LONG = 3
"""Matrices this many times longer than wide are iterated on their small Gram matrix: fewer operations."""
CACHED = 1 << 18
"""Numbers that small matrices which are multiplied at once may take: what stays in cache."""
BLOCKS = 4
"""Blocks of rows in which large symmetric products are computed: what lies below the diagonal is copied."""


def orthogonalize(
    matrices: Tensor,
    *,
    steps: int = STEPS,
    eps: float = 1e-7,
    buffers: Buffers | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return matrices with the same singular vectors whose singular values are near one (0.7 … 1.2).

    Args:
        matrices: ``[K, rows, columns]``.
        steps: iterations ``X <- P X`` with ``P = a + b XXᵀ + c (XXᵀ)²``.
        eps: added to the Frobenius norm that the matrices are divided by first.
        buffers: memory for what comes between, where it is small.
        out: of the same shape, for the result; the matrices themselves will do.

    Large float32 matrices are multiplied in bfloat16 where the hardware does that faster, as Muon's are.

    Returns:
        ``[K, rows, columns]``.
    """
    wide = matrices.size(-2) <= matrices.size(-1)
    result = torch.empty_like(matrices, memory_format=torch.contiguous_format) if out is None else out
    if buffers is None or matrices[0].numel() > CACHED // 4:
        buffers = Buffers()
    height = min(matrices.shape[1:])
    width = max(CACHED // (2 * height * (height + max(matrices.shape[1:]))), 1)
    for start in range(0, len(matrices), width):
        part = matrices[start : start + width]
        x = part if wide else part.mT
        found = _iterated(x, steps, eps, buffers)
        result[start : start + width].copy_(found if wide else found.mT)
    return result


def _iterated(matrices: Tensor, steps: int, eps: float, buffers: Buffers) -> Tensor:
    """Orthogonalize matrices that are at least as long as wide."""
    x = matrices[0] if len(matrices) == 1 else matrices  # one matrix multiplies faster without a batch
    scale = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).add_(eps).reciprocal_()
    narrow = x.ndim == 2 and _narrow(x)
    like = x.new_empty(0, dtype=torch.bfloat16) if narrow else x
    now = torch.mul(x, scale, out=buffers.take("x", x.shape, like))
    square = (*x.shape[:-1], x.shape[-2])
    gram, powers = buffers.take("gram", square, like), buffers.take("powers", square, like)
    if not narrow and x.size(-1) >= LONG * x.size(-2):
        gram = torch.matmul(now, now.mT, out=gram)
        return _accumulated(gram, powers, steps, buffers) @ now
    other = buffers.take("y", x.shape, like)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        _symmetric(now, now.mT, gram)
        powers.copy_(gram)
        _symmetric(gram, gram, powers, beta=b, alpha=c)
        if narrow:  # a itself would be rounded to bfloat16
            other.copy_(now).addmm_(powers, now, beta=a)
        else:
            powers.diagonal(dim1=-2, dim2=-1).add_(a)
            torch.matmul(powers, now, out=other)
        now, other = other, now
    return now


def _symmetric(left: Tensor, right: Tensor, into: Tensor, beta: float = 0.0, alpha: float = 1.0) -> Tensor:
    """Write ``beta * into + alpha * left @ right``, which is symmetric."""
    if into.ndim == 3:
        return into.baddbmm_(left, right, beta=beta, alpha=alpha)
    rows = into.shape[0]
    if into.is_cuda or rows < BLOCKS * 64 or rows % BLOCKS:
        return into.addmm_(left, right, beta=beta, alpha=alpha)
    height = rows // BLOCKS
    for start in range(0, rows, height):
        stop = start + height
        into[start:stop, start:].addmm_(left[start:stop], right[:, start:], beta=beta, alpha=alpha)
        into[stop:, start:stop].copy_(into[start:stop, stop:].mT)
    return into


def _narrow(x: Tensor) -> bool:
    """Return whether products in bfloat16 pay."""
    if x.dtype != torch.float32 or x.size(-2) < NARROW:
        return False
    return x.is_cuda or _fast_bfloat16()


@cache
def _fast_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _accumulated(gram: Tensor, powers: Tensor, steps: int, buffers: Buffers) -> Tensor:
    """Return the product of all P, which commute with XXᵀ: the next Gram matrix is P XXᵀ P."""
    a, b, c = COEFFICIENTS
    spare = buffers.take("spare", gram.shape, gram)
    product, next_product = (buffers.take(name, gram.shape, gram) for name in ("product", "next"))
    for step in range(steps):
        powers.copy_(gram)
        _symmetric(gram, gram, powers, beta=b, alpha=c)
        powers.diagonal(dim1=-2, dim2=-1).add_(a)
        if step == 0:
            product.copy_(powers)
        else:
            product, next_product = torch.matmul(powers, product, out=next_product), product
        if step < steps - 1:
            torch.matmul(powers, gram, out=spare)
            torch.matmul(spare, powers, out=gram)
    return product
