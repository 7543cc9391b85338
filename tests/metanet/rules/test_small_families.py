"""Broadcasting by name, distances, windows and functions of matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metanet import spec_of, verify
from tests.models import image


class Read(nn.Module):
    """Entries by name and a function of them and of the input."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.function, self.p = function, nn.ParameterDict()
        for name, shape in shapes.items():
            self.p[name] = nn.Parameter(torch.randn(*shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.p, x)


def broadcast_over(p: Any, x: Tensor) -> Tensor:
    a, b = torch.broadcast_tensors(x @ p.a, p.b)
    y: Tensor = torch.tanh(a * b) @ p.c
    return y


def grid_of(p: Any, x: Tensor) -> Tensor:
    first, second = torch.meshgrid(p.a, p.b, indexing="xy")
    y: Tensor = torch.tanh(first * second) @ p.c * x
    return y


def unpooled(p: Any, x: Tensor) -> Tensor:
    y, places = F.max_pool2d(F.conv2d(x, p.a), 2, return_indices=True)
    return F.conv2d(F.max_unpool2d(torch.tanh(y), places, [2, 2]), p.b)


X = image(4, 3)
FORMS: dict[
    str, tuple[Callable[[Any, Tensor], Tensor], dict[str, tuple[int, ...]], Tensor, dict[str, str]]
] = {
    "broadcast_tensors": (
        broadcast_over,
        {"a": (3, 5), "b": (5,), "c": (5, 2)},
        X,
        {"a": "3 u", "b": "u", "c": "u 2"},
    ),
    "meshgrid": (
        grid_of,
        {"a": (5,), "b": (4,), "c": (5, 3)},
        X,
        {"a": "u", "b": "4", "c": "u 3"},
    ),
    "atleast_2d": (
        lambda p, x: torch.tanh(x @ p.a + torch.atleast_2d(p.b)) @ p.c,
        {"a": (3, 5), "b": (5,), "c": (5, 2)},
        X,
        {"a": "3 u", "b": "u", "c": "u 2"},
    ),
    "cdist": (
        lambda p, x: torch.exp(-torch.cdist(torch.tanh(x @ p.a), p.b)),
        {"a": (3, 5), "b": (7, 5)},
        X,
        {"a": "3 u", "b": "7 u"},
    ),
    "pairwise_distance": (
        lambda p, x: F.pairwise_distance(torch.tanh(x @ p.a), torch.sigmoid(x @ p.b), keepdim=True),
        {"a": (3, 5), "b": (3, 5)},
        X,
        {"a": "3 u", "b": "3 u"},
    ),
    "unfold": (
        lambda p, x: torch.tanh(F.conv1d(x, p.a)).unfold(2, 3, 2).amax(-1).mean(-1) @ p.b,
        {"a": (5, 3, 2), "b": (5, 2)},
        image(2, 3, 8),
        {"a": "u 3 2", "b": "u 2"},
    ),
    "max_unpool2d": (
        unpooled,
        {"a": (5, 3, 1, 1), "b": (2, 5, 1, 1)},
        image(2, 3, 6, 6),
        {"a": "u 3 1 1", "b": "2 u 1 1"},
    ),
    "vdot": (
        lambda p, x: torch.tanh(x @ p.a) @ p.b / torch.vdot(p.c, p.b.sum(1)),
        {"a": (3, 5), "b": (5, 2), "c": (5,)},
        X,
        {"a": "3 u", "b": "u 2", "c": "u"},
    ),
    "matrix_exp": (
        lambda p, x: torch.tanh(x @ p.a) @ torch.matrix_exp(p.b / 4) @ p.c,
        {"a": (3, 5), "b": (5, 5), "c": (5, 2)},
        X,
        {"a": "3 u", "b": "u u", "c": "u 2"},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_units_keep_the_freedom_they_have(form: str) -> None:
    function, shapes, x, known = FORMS[form]
    model = Read(function, shapes)
    spec = spec_of(model, x)
    assert not spec.lost
    free = [group for group in spec.groups if group.size == 5]
    assert len(free) == 1, str(spec)
    for name, axes in known.items():
        written = " ".join(map(str, spec.axes[f"p.{name}"])).replace(free[0].name, "u")
        if form != "meshgrid" or name != "b":
            assert written.replace("'", "").replace("+", "") == axes
    verification = verify(spec, model, x)
    assert verification.ok, str(verification)
    assert not verification.dead


def test_orthogonal_weights_of_reflections_are_fixed() -> None:
    inner = nn.utils.parametrizations.orthogonal(nn.Linear(6, 4), use_trivialization=False)
    model = nn.Sequential(nn.Linear(3, 6), inner, nn.Tanh(), nn.Linear(4, 2))
    spec = spec_of(model, X)
    assert not spec.lost
    assert not spec.groups, str(spec)
    assert verify(spec, model, X).ok


def of_another_type(p: Any, x: Tensor) -> Tensor:
    mask = torch.zeros(5, dtype=torch.bool).type_as(p.a)
    y: Tensor = torch.multiply(torch.tanh(x @ p.a), 1 - mask) @ p.b
    return y


def test_constants_change_their_type_with_their_values() -> None:
    model = Read(of_another_type, {"a": (3, 5), "b": (5, 2)})
    spec = spec_of(model, X)
    assert not spec.lost
    assert [group.size for group in spec.groups] == [5]
    assert [freedom.kind for freedom in spec.groups[0].freedoms] == ["sign"]
    assert verify(spec, model, X).ok


def test_an_entry_without_values_has_a_spec_and_a_proof() -> None:
    model = Read(lambda p, x: torch.cat([x @ p.a, x @ p.empty], 1), {"a": (3, 5), "empty": (3, 0)})
    model.p["none"] = nn.Parameter(torch.randn(0, 3))
    assert verify(spec_of(model, X), model, X).ok
