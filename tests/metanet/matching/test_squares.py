"""Sums of squares chunk by chunk, against float64 throughout."""

from __future__ import annotations

import pytest
import torch

from metanet.matching.squares import CHUNK, SMALL, all_finite, squared_distance, squared_norm


@pytest.mark.parametrize("size", [1, SMALL, SMALL + 1, 3 * CHUNK + 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_are_nearly_those_of_float64(size: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(size)
    x, y = (torch.randn(size, dtype=dtype, generator=generator) for _ in range(2))
    y = x + 1e-3 * y
    exact = (x - y).double().square().sum()
    assert squared_distance(x, y) == pytest.approx(float(exact), rel=1e-8)
    assert squared_norm(x) == pytest.approx(float(x.double().square().sum()), rel=1e-8)
    assert squared_distance(x, x) == 0.0


def test_views_that_are_not_contiguous_are_taken_as_they_are() -> None:
    x, y = torch.randn(300, 200), torch.randn(300, 200)
    exact = float((x[:, 7:150] - y[:, 7:150]).double().square().sum())
    assert squared_distance(x[:, 7:150], y[:, 7:150]) == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_is_seen_and_large_sums_are_no_infinity(value: float) -> None:
    x = torch.full((1000,), 3e38)
    assert all_finite(x)
    x[500] = value
    assert not all_finite(x)
    x[501] = -value
    assert not all_finite(x)
