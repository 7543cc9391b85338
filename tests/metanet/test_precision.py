"""Running modules in float64 whatever they cast to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metanet.precision import double, float64


def test_casts_and_constants_stay_wide() -> None:
    with float64():
        x = torch.ones(3, dtype=torch.float16) / 3
        assert x.dtype == torch.float64
        assert torch.randn(2).bfloat16().dtype == torch.float64
        assert (1j * x).to(torch.complex64).dtype == torch.complex128
        assert torch.arange(3).dtype == torch.int64
    assert torch.get_default_dtype() == torch.float32


def test_complex_parameters_become_double() -> None:
    model = double(
        nn.ModuleList([nn.Linear(2, 3, dtype=torch.complex64), nn.Linear(2, 3), nn.BatchNorm1d(2)])
    )
    types = {str(tensor.dtype) for tensor in model.state_dict().values()}
    assert types == {"torch.complex128", "torch.float64", "torch.int64"}


def _grouped(a: Tensor, b: Tensor, offs: Tensor | None) -> Tensor:
    product: Tensor = torch.nn.functional.grouped_mm(a, b, offs=offs)
    return product


@pytest.mark.parametrize("form", ["rows", "batch"])
def test_grouped_products_agree_with_torch_in_lower_precision(form: str) -> None:
    generator = torch.Generator().manual_seed(0)
    b = torch.randn(3, 8, 16, generator=generator)
    if form == "rows":
        a, offs = torch.randn(9, 8, generator=generator), torch.tensor([4, 4, 9], dtype=torch.int32)
    else:
        a, offs = torch.randn(3, 4, 8, generator=generator), None
    with float64():
        wide = _grouped(a.double(), b.double(), offs)
    assert wide.dtype == torch.float64
    narrow = _grouped(a.bfloat16(), b.bfloat16(), offs)
    torch.testing.assert_close(narrow.double(), wide, rtol=0.05, atol=0.1)
