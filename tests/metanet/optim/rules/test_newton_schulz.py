"""The orthogonal factor: in bfloat16, in blocks, on the Gram matrix; what is kept in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metanet.optim.buffers import Buffers
from metanet.optim.rules import newton_schulz
from metanet.optim.rules.newton_schulz import orthogonalize
from metanet.testing import peak_allocation


@pytest.fixture
def fast_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newton_schulz, "_fast_bfloat16", lambda: True)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.usefixtures("fast_bfloat16")
@pytest.mark.parametrize("shape", [(1, 128, 160), (3, 128, 128), (2, 128, 300), (2, 300, 128)])
def test_bfloat16_rounds_and_no_more(shape: tuple[int, int, int]) -> None:
    matrices = random(*shape)
    found, exact = orthogonalize(matrices), orthogonalize(matrices.double())
    assert found.dtype == torch.float32
    assert 1e-3 < (found - exact).norm() / exact.norm() < 0.04


@pytest.mark.usefixtures("fast_bfloat16")
def test_small_matrices_stay_in_float32() -> None:
    matrices = random(3, 100, 300)
    exact = orthogonalize(matrices.double())
    torch.testing.assert_close(orthogonalize(matrices).double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("fast_bfloat16")
@pytest.mark.parametrize("tall", [False, True])
def test_gram_matrices_of_bfloat16_survive_tiny_singular_values(tall: bool) -> None:
    """Five steps on one Gram matrix would end at singular values in the hundreds."""
    left, right = (torch.linalg.qr(random(size, 128)).Q for size in (128, 512))
    matrix = (left / torch.arange(1, 129)) @ right.T
    found = orthogonalize(matrix.T[None] if tall else matrix[None])[0]
    assert torch.linalg.matrix_norm(found, 2) < 1.3


@pytest.mark.usefixtures("fast_bfloat16")
@pytest.mark.parametrize("seed", range(3))
def test_gram_matrices_of_bfloat16_survive_rounding_in_blocks(seed: int) -> None:
    """Rounding errors of small blocks of rows are as large as their entries: three steps would diverge."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.linalg.qr(torch.randn(48, 4, 4, generator=generator, dtype=torch.float64)).Q
    left = torch.block_diag(*blocks)
    right = torch.linalg.qr(torch.randn(768, 192, generator=generator, dtype=torch.float64)).Q
    matrix = (left / torch.arange(1, 193) ** 2) @ right.T
    found = orthogonalize(matrix.float()[None])[0]
    assert torch.linalg.matrix_norm(found, 2) < 1.3


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 4, 0)])
def test_nothing_is_orthogonal(shape: tuple[int, int, int]) -> None:
    assert orthogonalize(torch.ones(shape)).shape == shape


@pytest.mark.parametrize("shape", [(1, 16, 20), (1, 16, 40), (1, 40, 16)])
def test_blocks_are_the_whole_product(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = random(*shape, dtype=torch.float64)
    whole = orthogonalize(matrix)
    monkeypatch.setattr(newton_schulz, "BLOCKED", 8)
    torch.testing.assert_close(orthogonalize(matrix), whole)


def test_matrices_at_once_are_matrices_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = random(5, 6, 9, dtype=torch.float64)
    alone = torch.cat([orthogonalize(matrix[None]) for matrix in matrices])
    for cached in (1 << 22, 2 * 2 * 6 * 15 * 8):  # all five, or two at once
        monkeypatch.setattr(newton_schulz, "CACHED", cached)
        torch.testing.assert_close(orthogonalize(matrices), alone)


def test_memory_is_kept_of_matrices_that_are_not_huge(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, buffers = random(1, 48, 64), Buffers()

    def work() -> None:
        orthogonalize(matrix, buffers=buffers, out=matrix)

    work()
    size = 4 * matrix.numel()
    assert peak_allocation(work) < size / 2
    monkeypatch.setattr(newton_schulz, "KEPT", 48 * 64 - 1)
    assert peak_allocation(work) > 2 * size
