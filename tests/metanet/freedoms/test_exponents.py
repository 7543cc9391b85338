"""What gives a network freedoms beside permutation, and what costs it them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metanet import spec_of, verify
from metanet.freedoms.equations import EQUATIONS, Step
from metanet.freedoms.equations.pointwise import kept
from metanet.freedoms.equations.registry import Row
from tests.metanet.test_rules import Net
from tests.models import image

Function = Callable[[Any, Tensor], Tensor]


def row(p: Any, x: Tensor) -> Tensor:
    return F.linear(x, p["a"], p["b"])


def read(p: Any, h: Tensor) -> Tensor:
    return F.linear(h, p["r"])


def hidden(function: Callable[[Tensor], Tensor]) -> Function:
    """An activation between one hidden layer and its reader."""
    return lambda p, x: read(p, function(row(p, x)))


def batch_norm(h: Tensor, p: Any, eps: float = 1e-5) -> Tensor:
    return F.batch_norm(h, p["m"], p["v"].square(), eps=eps)


# function of a row a, b (3 -> 4), a reader r (4 -> 2), vectors g, h, m, v (4) and a matrix s (4 -> 4)
# -> freedoms of the rows, kinds of their actions
CASES: dict[str, tuple[Function, str]] = {
    "linear": (hidden(lambda h: h), "linear"),
    "scaled": (hidden(lambda h: -2 * h / 3), "linear"),
    "read twice": (lambda p, x: read(p, row(p, x)) + torch.tanh(read(p, row(p, x))), "linear"),
    "shifted": (hidden(lambda h: h + 1), ""),
    "a gain": (lambda p, x: read(p, row(p, x) * p["g"]), "scale scale"),
    "an offset": (lambda p, x: read(p, row(p, x) + p["g"]), "linear"),
    "divided by a vector": (lambda p, x: read(p, row(p, x) / p["g"]), "scale scale"),
    "a vector divided": (lambda p, x: read(p, p["g"] / row(p, x)), "scale scale"),
    "inverse": (hidden(torch.reciprocal), "scale"),
    "cube": (hidden(lambda h: h**3), "scale"),
    "square": (hidden(torch.square), "scale"),
    "square root of a square": (hidden(lambda h: h.square().sqrt()), "positive_scale even"),
    "absolute value": (hidden(torch.abs), "positive_scale even"),
    "sign": (hidden(torch.sign), "sign positive_scale"),
    "sum of odd and even": (hidden(lambda h: h + h.abs()), "positive_scale"),
    "maximum with zero": (hidden(lambda h: h.clamp(min=0)), "positive_scale"),
    "maximum with one": (hidden(lambda h: h.clamp(min=1)), ""),
    "ReLU of a negative": (hidden(lambda h: torch.relu(-h)), "positive_scale"),
    "the larger of two": (
        lambda p, x: read(p, torch.maximum(row(p, x), row(p, 2 * x))), "positive_scale"
    ),
    "ReLU6": (hidden(F.relu6), ""),
    "GELU": (hidden(F.gelu), ""),
    "ReLU times sigmoid": (hidden(lambda h: torch.relu(h) * torch.sigmoid(h)), ""),
    "ReLU times tanh": (hidden(lambda h: torch.relu(h) * torch.tanh(h)), ""),
    "product with itself": (hidden(lambda h: h * h), "scale"),
    "softmax": (hidden(lambda h: h.softmax(-1)), ""),
    "softmax over others": (hidden(lambda h: h.softmax(0)), ""),
    "sum over units": (lambda p, x: torch.relu(row(p, x)).sum(-1), ""),
    "norm over units": (lambda p, x: row(p, x).norm(dim=-1), "orthogonal"),
    "ReLU and a constant mask": (hidden(lambda h: torch.relu(h).masked_fill(h > 1, 0.0)), ""),
    "where": (hidden(lambda h: torch.where(h > 0, h, 0.1 * h)), ""),
    "concatenated with zeros": (
        lambda p, x: read(p, torch.cat([torch.relu(row(p, x)), torch.zeros(1, 4)])), "positive_scale"
    ),
    "concatenated with ones": (
        lambda p, x: read(p, torch.cat([torch.relu(row(p, x)), torch.ones(1, 4)])), ""
    ),
    "a square map": (lambda p, x: read(p, torch.relu(row(p, x) + torch.relu(row(p, x)) @ p["s"])),
                     "positive_scale"),
    "a square map of linear units": (lambda p, x: read(p, row(p, x) + row(p, x) @ p["s"]), "linear"),
    "a bilinear form": (lambda p, x: torch.einsum("bi,ij,bj->b", row(p, x), p["s"], row(p, x)), "linear"),
    "a gram matrix": (lambda p, x: row(p, x) @ row(p, x).T, "sign"),
    "a layer picked by its order": (
        lambda p, x: read(p, row(p, x).gather(-1, row(p, x).argsort(-1)).cumsum(-1)), ""
    ),
    "the largest unit": (lambda p, x: read(p, F.one_hot(row(p, x).argmax(-1), 4) * row(p, x)), ""),
    "a batch norm of the data": (
        lambda p, x: read(p, F.batch_norm(row(p, x), None, None, training=True)), "sign"
    ),
    "a power of norm zero": (lambda p, x: read(p, row(p, x).norm(p=0, dim=0, keepdim=True)), ""),
    "a layer norm": (lambda p, x: read(p, F.layer_norm(row(p, x), (4,), p["g"], p["h"])), "scale"),
    "a root mean square norm": (lambda p, x: read(p, F.rms_norm(row(p, x), (4,), p["g"])), "scale sign"),
    "a parameter used in two ways": (
        lambda p, x: read(p, torch.relu(row(p, x))) + p["b"].sigmoid().sum(), ""
    ),
    "a batch norm of a computed variance": (lambda p, x: read(p, batch_norm(row(p, x), p)), "sign"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_gives_and_costs_freedoms(name: str) -> None:
    function, expected = CASES[name]
    model = Net(function, a=(4, 3), b=(4,), r=(2, 4), g=(4,), h=(4,), m=(4,), v=(4,), s=(4, 4))
    x = image(2, 3)
    spec = spec_of(model, x)
    assert verify(spec, model, x, draws=2).ok
    [group] = spec.groups
    kinds: list[str] = [freedom.kind for freedom in group.freedoms]
    kinds += [action.kind for action in spec.actions if action.kind != "shift"]
    assert sorted(kinds) == sorted(expected.split()), str(spec)


def test_an_operation_without_an_equation_costs_every_freedom(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), image(2, 3)
    monkeypatch.delitem(EQUATIONS, "relu")
    spec = spec_of(model, x)
    assert not spec.actions
    assert [group.freedoms for group in spec.groups] == [()]
    assert spec.dimension() == 0


def test_an_equation_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Softplus has no freedom; one that claims to pass positive factors is found out by `verify`."""
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 2)), image(2, 3)
    assert spec_of(model, x).dimension() == 0

    def passes(step: Step) -> tuple[Row, ...]:
        return kept(step, step.function())

    monkeypatch.setitem(EQUATIONS, "softplus", passes)
    spec = spec_of(model, x)
    assert spec.dimension() > 0
    assert not verify(spec, model, x, draws=1).ok


# function of expert weights w (3 -> 5) and readers r, their shapes -> the one action
NESTED: dict[str, tuple[Function, dict[str, tuple[int, ...]], str]] = {
    "units that stand twice beside their expert": (
        lambda p, x: torch.einsum("beh,beg,ehgo->bo", torch.relu(experts(p, x)), experts(p, x), p["r"]),
        {"w": (4, 3, 5), "r": (4, 5, 5, 2)}, "positive_scale: p.w -1, p.r 1, p.r 1",
    ),
    "units of units, whose scales contain those of both above": (
        lambda p, x: torch.einsum("befh,efho->bo", torch.relu(experts(p, x, "bi,efih->befh")), p["r"]),
        {"w": (4, 2, 3, 5), "r": (4, 2, 5, 2)}, "positive_scale: p.w 1, p.r -1",
    ),
}  # fmt: skip


def experts(p: Any, x: Tensor, equation: str = "bi,eih->beh") -> Tensor:
    return torch.einsum(equation, x, p["w"])


@pytest.mark.parametrize("name", NESTED)
def test_what_units_of_experts_have_contains_what_the_experts_have(name: str) -> None:
    function, shapes, expected = NESTED[name]
    model, x = Net(function, **shapes), image(2, 3)
    spec = spec_of(model, x)
    assert verify(spec, model, x).ok
    [action] = spec.actions
    powers = ", ".join(f"{term.entry} {term.power}" for term in action.terms)
    assert f"{action.kind}: {powers}" == expected
    assert len(action.axes) == len(spec.groups)


def test_a_factor_of_a_part_of_an_expert_is_no_factor_of_the_expert() -> None:
    def function(p: Any, x: Tensor) -> Tensor:
        gate, up = experts(p, x).chunk(2, -1)
        return torch.einsum("beh,eho->bo", torch.relu(gate) * up, p["r"])

    model, x = Net(function, w=(4, 3, 10), r=(4, 5, 2)), image(2, 3)
    spec = spec_of(model, x)
    assert verify(spec, model, x).ok
    assert [action.kind for action in spec.actions if len(action.axes) == 2] == ["scale", "positive_scale"]
