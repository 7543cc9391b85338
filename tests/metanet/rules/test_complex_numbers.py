"""Complex numbers read from and written as pairs of real ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from metanet import spec_of, verify
from tests.models import image


class Pairs(nn.Module):
    """Two real layers read as complex numbers, a function of them, and a head."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(3, 8)
        self.head = nn.Linear(width, 2)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        a = torch.view_as_complex(self.a(x).unflatten(-1, (4, 2)))
        real, imaginary = self.b(x).chunk(2, -1)
        y: Tensor = self.head(self.function(a, torch.complex(real, imaginary)))
        return y


@pytest.mark.parametrize(
    ("function", "width", "head"),
    [
        (lambda a, b: torch.view_as_real(a * b).flatten(-2), 8, "(u 2)"),
        (lambda a, b: (a.conj() * b).real + (a + b).imag, 4, "u"),
        (lambda a, b: (a * torch.polar(b.real, b.imag)).abs(), 4, "u"),
    ],
    ids=["view_as_real", "parts", "polar"],
)
def test_complex_units_move_as_pairs(
    function: Callable[[Tensor, Tensor], Tensor], width: int, head: str
) -> None:
    model, x = Pairs(function, width), image(5, 3)
    spec = spec_of(model, x)
    assert not spec.lost
    [group] = spec.groups
    assert group.size == 4
    written = {name: " ".join(map(str, axes)).replace(group.name, "u") for name, axes in spec.entries}
    assert written["a.weight"] == "(u 2) 3"
    assert written["b.weight"] == "[u | u] 3"
    assert written["head.weight"] == f"2 {head}"
    verification = verify(spec, model, x)
    assert verification.ok, str(verification)
    assert not verification.dead


class ComplexLayers(nn.Module):
    """Complex parameters, as in wavelet representations."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 6)
        self.second = nn.Linear(6, 5, dtype=torch.complex64)
        self.head = nn.Linear(5, 1, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.exp(1j * self.first(x) - self.first(x).abs().square())
        y = torch.tanh(self.second(y))
        out: Tensor = self.head(y).real
        return out


def test_complex_parameters_are_verified_in_double_precision() -> None:
    model, x = ComplexLayers(), image(5, 3)
    spec = spec_of(model, x)
    assert [group.size for group in spec.groups] == [6, 5]
    verification = verify(spec, model, x)
    assert verification.max_error < 1e-12, str(verification)
    assert not verification.dead
    assert model.second.weight.dtype == torch.complex64
