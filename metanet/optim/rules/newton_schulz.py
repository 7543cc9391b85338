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
NARROW = 128
"""Rows and columns from which on bfloat16 pays."""
LONG = 2
"""Matrices this many times longer than wide are iterated on their small Gram matrix: fewer operations."""
RESTART = 2
"""Steps on one Gram matrix in bfloat16, whose rounding errors grow twelvefold with each: after a third step
eigenvalues that should be zero are negative enough to let the iteration diverge."""
CACHED = 1 << 22
"""Bytes that matrices which are multiplied at once may take."""
KEPT = 1 << 20
"""Numbers of a matrix up to which memory is kept between calls."""
BLOCKS = 4
"""Blocks of rows in which large symmetric products are computed: what lies below the diagonal is copied."""
BLOCKED = 512
"""Rows from which on that pays."""


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
        steps: iterations ``X <- P X`` with ``P = a + b XXᵀ + c (XXᵀ)²``; of tall matrices ``X P`` with XᵀX.
        eps: added to the Frobenius norm that the matrices are divided by first.
        buffers: memory for what comes between; huge matrices have their own, which is not kept.
        out: of the same shape, for the result; the matrices themselves will do.

    Float32 matrices of `NARROW` rows and columns or more are multiplied in bfloat16 where the hardware does
    that faster, as Muon's are.

    Returns:
        ``[K, rows, columns]``.
    """
    result = torch.empty_like(matrices, memory_format=torch.contiguous_format) if out is None else out
    if not matrices.numel():
        return result
    rows, columns = matrices.shape[1:]
    if buffers is None or rows * columns > KEPT:
        buffers = Buffers()
    like = matrices.new_empty(0, dtype=torch.bfloat16 if _narrow(matrices) else matrices.dtype)
    width = max(CACHED // (2 * min(rows, columns) * (rows + columns) * like.element_size()), 1)
    for start in range(0, len(matrices), width):
        part = matrices[start : start + width]
        result[start : start + width].copy_(_iterated(part, steps, eps, like, buffers))
    return result


def _iterated(matrices: Tensor, steps: int, eps: float, like: Tensor, buffers: Buffers) -> Tensor:
    """Orthogonalize matrices in the type of ``like``."""
    x = matrices[0] if len(matrices) == 1 else matrices  # one matrix multiplies faster without a batch
    now, other = buffers.take("x", x.shape, like), buffers.take("y", x.shape, like)
    scale = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).add_(eps).reciprocal_()
    torch.mul(x, scale, out=now)
    short, long = sorted(x.shape[-2:])
    tall, narrow = x.size(-2) > short, like.element_size() < 4
    gram = buffers.take("gram", (*x.shape[:-2], short, short), like)
    stride = (RESTART if narrow else steps) if long >= LONG * short else 1
    for done in range(0, steps, stride):
        _symmetric(now.mT, now, gram) if tall else _symmetric(now, now.mT, gram)
        count = min(stride, steps - done)
        product = _product(gram, count, buffers)
        left, right = (now, product) if tall else (product, now)
        if count == 1:
            _multiply(left, right, other, now, beta=COEFFICIENTS[0])
        else:
            _multiply(left, right, other)
        now, other = other, now
    return now


def _product(gram: Tensor, steps: int, buffers: Buffers) -> Tensor:
    """Return the product of the P of some steps, which commute with XXᵀ: the next Gram matrix is P XXᵀ P.

    A single P is returned without its a, which would be rounded on the diagonal.
    """
    a, b, c = COEFFICIENTS
    power = buffers.take("power", gram.shape, gram)
    if steps == 1:
        return _symmetric(gram, gram, power, gram, beta=b, alpha=c)
    product, spare = (buffers.take(name, gram.shape, gram) for name in ("product", "spare"))
    for step in range(steps):
        _symmetric(gram, gram, power, gram, beta=b, alpha=c).diagonal(dim1=-2, dim2=-1).add_(a)
        if step == 0:
            product.copy_(power)
        else:
            product, spare = _symmetric(power, product, spare), product
        if step < steps - 1:
            _symmetric(power, gram, spare)
            _symmetric(spare, power, gram)
    return product


def _multiply(
    left: Tensor,
    right: Tensor,
    out: Tensor,
    plus: Tensor | None = None,
    beta: float = 1.0,
    alpha: float = 1.0,
) -> Tensor:
    """Write ``beta * plus + alpha * left @ right``, or ``left @ right`` if there is nothing to add."""
    flat = out.ndim == 2
    if plus is None:
        return (torch.mm if flat else torch.bmm)(left, right, out=out)
    return (torch.addmm if flat else torch.baddbmm)(plus, left, right, beta=beta, alpha=alpha, out=out)


def _symmetric(
    left: Tensor,
    right: Tensor,
    out: Tensor,
    plus: Tensor | None = None,
    beta: float = 1.0,
    alpha: float = 1.0,
) -> Tensor:
    """Do the same where the result is symmetric; ``plus`` may not be ``out``."""
    rows = out.shape[-1]
    if out.ndim == 3 or out.is_cuda or rows < BLOCKED or rows % BLOCKS:
        return _multiply(left, right, out, plus, beta, alpha)
    if plus is None:
        plus, beta = out, 0.0  # in place: without a sum, what is not contiguous would be copied
    height = rows // BLOCKS
    for start in range(0, rows, height):
        stop = start + height
        at = (slice(start, stop), slice(start, None))
        _multiply(left[start:stop], right[:, start:], out[at], plus[at], beta, alpha)
        out[stop:, start:stop].copy_(out[start:stop, stop:].contiguous().mT)
    return out


def _narrow(matrices: Tensor) -> bool:
    """Return whether products in bfloat16 pay."""
    if matrices.dtype != torch.float32 or min(matrices.shape[1:]) < NARROW:
        return False
    if matrices.is_cuda:
        with torch.cuda.device(matrices.device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return _fast_bfloat16()


@cache
def _fast_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
