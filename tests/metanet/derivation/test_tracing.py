from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from metanet import spec_of, verify
from metanet.derivation.tracing import DerivationError, _refuse_silent_alias, export, in_place_of_own


class Renormalised(nn.Module):
    """Divides fresh weights in place by their sum; ``late`` says what reads them, or a view, afterwards."""

    def __init__(self, late: str = "") -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 2)
        self.late = late

    def forward(self, x: Tensor) -> Tensor:
        weights, _ = torch.max(torch.stack([self.first(x).exp(), self.first(-x).exp()]), 0)
        view = weights.transpose(0, 1)
        if self.late == "":
            view = view.clone()
        weights /= weights.sum(-1, keepdim=True)
        late = {"": torch.zeros(()), "view": view.transpose(0, 1), "weights": weights}[self.late]
        result: Tensor = self.second(weights + late)
        return result


def in_place(model: nn.Module) -> list[bool]:
    graph = torch.export.export(model, (torch.ones(2, 3),), strict=False).graph
    return [in_place_of_own(node) for node in graph.nodes if str(node.target) == "aten.div_.Tensor"]


def test_a_tensor_that_was_read_before_may_be_changed_in_place() -> None:
    class Plain(Renormalised):
        def forward(self, x: Tensor) -> Tensor:
            weights = self.first(x).exp()
            weights /= weights.sum(-1, keepdim=True)
            result: Tensor = self.second(weights)
            return result

    model = Plain()
    assert in_place(model) == [True]
    targets = {str(node.target) for node in export(model, (torch.ones(2, 3),), {}).graph.nodes}
    assert "aten.div_.Tensor" in targets  # the program was not traced a second time
    spec = spec_of(model, torch.ones(2, 3))
    assert [group.size for group in spec.groups] == [8]
    assert not spec.lost
    assert verify(spec, model, torch.ones(2, 3)).ok


class DroppedInPlace(nn.Module):
    """Changes in place what dropout returns: in evaluation, what it was given; ``again`` reads that too."""

    def __init__(self, *, again: bool, part: bool = False) -> None:
        super().__init__()
        self.first, self.drop, self.second = nn.Linear(3, 8), nn.Dropout(), nn.Linear(8, 2)
        self.again, self.part = again, part

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        changed = self.drop(x)
        if self.part:
            changed[:, :3] *= 2
        else:
            changed /= 2 + changed.square().sum(-1, keepdim=True)
        result: Tensor = self.second(x if self.again else changed)
        return result


def test_dropout_returns_what_it_was_given() -> None:
    model, x = DroppedInPlace(again=False).eval(), torch.ones(2, 3)
    assert in_place(model) == [True]
    spec = spec_of(model, x)
    assert [group.size for group in spec.groups] == [8]
    assert verify(spec, model, x).ok
    model = DroppedInPlace(again=True)
    spec = spec_of(model, x)
    assert [group.size for group in spec.groups] == [8]
    assert verify(spec, model, x).ok
    model = DroppedInPlace(again=True, part=True)
    spec = spec_of(model, x)  # what is read again was changed too
    assert all(group.size < 8 for group in spec.groups)
    assert verify(spec, model, x).ok
    graph = fx.Graph()
    given = graph.placeholder("given")
    dropped = graph.call_function(torch.ops.aten.alpha_dropout.default, (given, 0.5, False))
    with pytest.raises(DerivationError, match="write the operation out of place"):
        _refuse_silent_alias(graph.call_function(torch.ops.aten.div_.Tensor, (dropped, given)))


@pytest.mark.parametrize("late", ["", "view", "weights"])
def test_a_tensor_of_which_a_view_is_left_may_not(late: str) -> None:
    model = Renormalised(late)
    assert in_place(model) == [False]
    assert verify(spec_of(model, torch.ones(2, 3)), model, torch.ones(2, 3)).ok


class Casting(nn.Module):
    """Puts its router into float32 on every call, as mixtures of experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.router, self.down = nn.Linear(3, 6), nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.router = self.router.to(torch.float32)
        y: Tensor = self.down(torch.softmax(self.router(torch.relu(self.up(x))), -1))
        return y


def test_a_module_may_cast_its_parts_while_it_runs() -> None:
    model, x = Casting(), torch.randn(5, 3)
    before = nn.Module._apply
    spec = spec_of(model, x)
    assert nn.Module._apply is before
    assert not spec.lost
    assert sorted(group.size for group in spec.groups) == [4, 6]
    assert verify(spec, model, x).ok
