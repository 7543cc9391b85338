"""Signs and phases: given where the operations allow them, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metanet import GroupElement, spec_of, verify
from tests.metanet.test_rules import Net
from tests.models import image

Function = Callable[[Any, Tensor], Tensor]


def sine(after: Function, omega: float = 30.0) -> Function:
    """One sine layer a, b; then whatever comes after."""
    return lambda p, x: after(p, torch.sin(omega * F.linear(x, p["a"], p["b"])))


def read(p: Any, h: Tensor) -> Tensor:
    return F.linear(h, p["r"])


def hidden(function: Callable[[Tensor], Tensor]) -> Function:
    """An activation between one hidden layer and its reader."""
    return lambda p, x: read(p, function(F.linear(x, p["a"], p["b"])))


def layer(p: Any, x: Tensor) -> Tensor:
    return F.linear(x, p["a"], p["b"])


# function of the parameters (row a: 3 -> 4, bias b, reader r: 4 -> 2, g: 4, w: 1, s: 4 -> 4) -> freedoms of a
CASES: dict[str, tuple[Function, str]] = {
    "sine": (sine(read), "sign phase(30)"),
    "sine without a factor": (sine(read, 1.0), "sign phase(1)"),
    "frequency in two factors": (lambda p, x: read(p, torch.sin(layer(p, x) * 6 / 0.5)), "sign phase(12)"),
    "frequency as a constant tensor": (
        lambda p, x: read(p, torch.sin(torch.full((4,), 5.0) * layer(p, x))), "sign phase(5)"
    ),
    "negative frequency": (lambda p, x: read(p, torch.sin(-(layer(p, x) * 2))), "sign phase(2)"),
    "frequencies that differ by unit": (
        lambda p, x: read(p, torch.sin(torch.arange(1.0, 5.0) * layer(p, x))), "fixed"
    ),
    "learned frequency": (lambda p, x: read(p, torch.sin(p["w"] * layer(p, x))), "sign"),
    "learned frequency of every unit": (lambda p, x: read(p, torch.sin(p["g"] * layer(p, x))), ""),
    "sine without a bias": (lambda p, x: read(p, torch.sin(F.linear(x, p["a"]))), "sign"),
    "sine with an offset": (lambda p, x: read(p, torch.sin(layer(p, x) * 3 + 0.5)), "phase(3)"),
    "cosine": (lambda p, x: read(p, torch.cos(layer(p, x))), "even phase(1)"),
    "a bias that is used twice": (
        lambda p, x: read(p, torch.sin(layer(p, x))) + read(p, p["b"]), "sign"
    ),
    "a row that is read before the sine too": (
        lambda p, x: read(p, torch.sin(layer(p, x))) + read(p, layer(p, x)), "sign"
    ),
    "two sines of different frequency": (
        lambda p, x: read(p, torch.sin(3 * layer(p, x)) + torch.sin(5 * layer(p, x))), "sign"
    ),
    "one layer used twice": (
        lambda p, x: read(p, torch.sin(3 * layer(p, x))) + read(p, torch.sin(3 * layer(p, x + 1))),
        "sign phase(3)",
    ),
    "sine through linear operations": (
        lambda p, x: read(p, torch.sin(layer(p, x)).unsqueeze(0).expand(2, 2, 4).mean(0).mul(2).neg()),
        "sign phase(1)",
    ),
    "a residual around the sine": (lambda p, x: read(p, layer(p, x) + torch.sin(layer(p, x))), "sign"),
    "a gain after the sine": (lambda p, x: read(p, torch.sin(layer(p, x)) * p["g"]), "even phase(1)"),
    "an offset after the sine": (lambda p, x: read(p, torch.sin(layer(p, x)) + p["g"]), "sign"),
    "a constant after the sine": (lambda p, x: read(p, torch.sin(layer(p, x)) + 1.0), ""),
    "a sum over the units": (lambda p, x: torch.sin(layer(p, x)).sum(-1, keepdim=True), ""),
    "norm after the sine": (lambda p, x: read(p, F.layer_norm(torch.sin(layer(p, x)), (4,))), ""),
    "sine read twice": (
        lambda p, x: read(p, torch.sin(layer(p, x))) + torch.tanh(read(p, torch.sin(layer(p, x)))),
        "sign phase(1)",
    ),
    "the square of a sine": (lambda p, x: read(p, torch.sin(layer(p, x)).square()), "even"),
    "tanh": (hidden(torch.tanh), "sign"),
    "erf": (hidden(torch.erf), "sign"),
    "asinh": (hidden(torch.asinh), "sign"),
    "atan": (hidden(torch.atan), "sign"),
    "softsign": (hidden(F.softsign), "sign"),
    "tanhshrink": (hidden(F.tanhshrink), "sign"),
    "hardtanh": (hidden(F.hardtanh), "sign"),
    "uneven hardtanh": (hidden(lambda h: F.hardtanh(h, -1, 2)), ""),
    "clamp": (hidden(lambda h: h.clamp(-1, 1)), "sign"),
    "cube after tanh": (hidden(lambda h: torch.tanh(h) ** 3), "sign"),
    "bounds the wrong way round": (hidden(lambda h: torch.tanh(h).clamp(1, -1)), ""),
    "square after tanh": (hidden(lambda h: torch.tanh(h) ** 2), "even"),
    "identity alone": (hidden(lambda h: h), ""),
    "relu": (hidden(torch.relu), "positive_scale"),
    "gelu": (hidden(F.gelu), ""),
    "tanh times itself": (hidden(lambda h: torch.tanh(h) * torch.tanh(h)), "even"),
    "tanh rounded to truth values": (hidden(lambda h: torch.tanh(h) * (torch.tanh(h).bool() | (h > 0))), ""),
    "tanh and a square matrix": (
        lambda p, x: read(p, torch.tanh(torch.tanh(layer(p, x)) @ p["s"])), "sign"
    ),
    "a matrix between the row and tanh": (lambda p, x: read(p, torch.tanh(layer(p, x) @ p["s"])), ""),
    "a step of recurrence": (
        lambda p, x: read(p, torch.tanh(layer(p, x) + torch.tanh(layer(p, x)) @ p["s"].T)), "sign"
    ),
    "concatenated with a constant": (
        lambda p, x: read(p, torch.cat([torch.tanh(layer(p, x)), torch.ones(1, 4)])), ""
    ),
    "concatenated with zeros": (
        lambda p, x: read(p, torch.cat([torch.tanh(layer(p, x)), torch.zeros(1, 4)])), "sign"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_freedoms(name: str) -> None:
    function, expected = CASES[name]
    model = Net(function, a=(4, 3), b=(4,), r=(2, 4), g=(4,), w=(1,), s=(4, 4))
    x = image(2, 3)
    spec = spec_of(model, x)
    assert verify(spec, model, x).ok
    found = [group for group in spec.groups if group.name.startswith("p.a")]
    if expected == "fixed":
        assert not found
    else:
        assert " ".join(map(str, found[0].freedoms)) == expected


class Discrete(nn.Module):
    """A buffer that is no real numbers and goes with the units."""

    def __init__(self, function: Function, offset: Tensor) -> None:
        super().__init__()
        self.a, self.r = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(2, 4))
        self.function = function
        self.register_buffer("offset", offset)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.function(self, x), self.r)


@pytest.mark.parametrize("offset", [torch.tensor([True, False, True, False]), torch.tensor([1, 2, 3, 4])])
@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: torch.tanh(F.linear(x, m.a) + m.offset),
        lambda m, x: torch.sin(F.linear(x, m.a, m.offset.to(x.dtype))),
    ],
)
def test_integers_take_neither_sign_nor_shift(function: Function, offset: Tensor) -> None:
    model, x = Discrete(function, offset), image(2, 3)
    spec = spec_of(model, x)
    assert [group.freedoms for group in spec.groups] == [()]
    assert verify(spec, model, x).ok


def of_sources(p: Any, x: Tensor) -> Tensor:
    """Attention over the units: its weights know their order, and not their signs."""
    h = torch.tanh(layer(p, x)).T
    return F.scaled_dot_product_attention(x[None, :, :2], h.abs()[None], h[None])


def units_as_batch(p: Any, x: Tensor) -> Tensor:
    """A layer of sines reads the absolute values of its own units, one unit at a time."""
    h = torch.sin(layer(p, F.linear(torch.sin(layer(p, x)).abs().T, p["k"])))
    return F.linear(read(p, h).T, p["r"])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda p, x: read(p, torch.sin(torch.addmm(p["b"], x, p["e"], beta=0.5))), "sign"),
        (lambda p, x: read(p, torch.sin(torch.addmm(p["b"], x, p["e"], alpha=0.5))), "sign phase(1)"),
        (of_sources, ""),
        (units_as_batch, ""),
    ],
)
def test_forms_that_cost_a_freedom(function: Function, expected: str) -> None:
    model = Net(function, a=(4, 3), b=(4,), e=(3, 4), k=(3, 2), r=(2, 4))
    x = image(2, 3)
    spec = spec_of(model, x)
    assert verify(spec, model, x).ok
    assert [" ".join(map(str, group.freedoms)) for group in spec.groups] == [expected]


def test_a_bias_of_nested_units_has_phases_of_every_pair() -> None:
    def function(p: Any, x: Tensor) -> Tensor:
        h = torch.sin(3 * F.linear(x, p["a"], p["b"])).view(2, 2, 4).mT
        return F.linear(h.reshape(2, 8), p["r"])

    x = image(2, 3)
    model = Net(function, a=(8, 3), b=(8,), r=(2, 8))
    spec = spec_of(model, x)
    assert verify(spec, model, x).ok
    assert [" ".join(map(str, group.freedoms)) for group in spec.groups] == ["", "sign phase(3)"]
    generator = torch.Generator().manual_seed(0)
    first, second = (GroupElement.random(spec, generator, kinds="all") for _ in range(2))
    weights = {name: tensor.detach().double() for name, tensor in model.state_dict().items()}
    together, stepwise = (first @ second) @ weights, first @ (second @ weights)
    assert all(torch.allclose(together[name], stepwise[name]) for name in weights)


def test_complex_units_are_permuted_alone() -> None:
    def function(p: Any, x: Tensor) -> Tensor:
        return F.linear(torch.sin(F.linear(x.to(torch.cfloat), p["a"], p["b"])), p["r"]).abs()

    model = Net(function, a=(4, 3), b=(4,), r=(2, 4)).to(torch.cfloat)
    assert [group.freedoms for group in spec_of(model, image(2, 3)).groups] == [()]
