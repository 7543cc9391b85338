"""Laws of canonical forms on every architecture, what the forms are, and what they leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from metanet import GroupElement, WeightSpec, spec_of, testing
from metanet.canonical.form import canonical_form, canonicalize
from metanet.units import FreedomKind
from tests.models import ARCHITECTURES, Example, image

REMOVED: tuple[FreedomKind, ...] = ("sign", "even", "phase", "scale", "positive_scale")


class Gated(nn.Module):
    """A gated MLP behind a layer norm, on a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(3, 6), nn.LayerNorm(6)
        self.gate, self.up, self.down = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        z = self.norm(h)
        y: Tensor = self.head(h + self.down(F.silu(self.gate(z)) * self.up(z)))
        return y


class Squares(nn.Module):
    """Even units and cosines."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c(torch.cos(2 * self.b(self.a(x).square())))
        return y


class Stream(nn.Module):
    """A stream of ReLU units that maps to itself and is written by its own units alone."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(4))
        self.inner, self.last = nn.Linear(4, 4, bias=False), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.start)
        y: Tensor = self.last(torch.relu(self.inner(h))) + x
        return y


MODELS: dict[str, tuple[Callable[[], nn.Module], Example]] = {
    "gated": (Gated, (image(2, 3),)),
    "squares and cosines": (Squares, (image(2, 3),)),
    "stream": (Stream, (image(2, 2),)),
}


def generic(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Return generic values: variances in [.5, 2], everything else normal."""

    def draw(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        if name.endswith("running_var"):
            return torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * 1.5 + 0.5
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * 0.5

    return {name: draw(name, tensor) for name, tensor in model.state_dict().items()}


def real(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if tensor.is_floating_point()}


@pytest.mark.parametrize("name", [*ARCHITECTURES, *MODELS])
def test_laws(name: str) -> None:
    factory, inputs = {**ARCHITECTURES, **MODELS}[name]
    model = factory().double().eval()
    generator = torch.Generator().manual_seed(0)
    exact = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    spec = spec_of(model, *exact)
    weights = generic(model, generator)
    form = canonical_form(spec, weights)
    assert not form.left, "\n".join(map(str, form.left))
    with torch.no_grad():
        model.load_state_dict(weights)
        expected = tree_leaves(model(*exact))
        model.load_state_dict(dict(form.weights))
        testing.assert_close(dict(enumerate(tree_leaves(model(*exact)))), dict(enumerate(expected)))
    again = canonicalize(spec, form.weights)
    testing.assert_close(real(again), real(form.weights), tolerance=1e-12, what="idempotence")
    for _ in range(3):
        permuted = GroupElement.random(spec, generator)
        moved = canonicalize(spec, permuted @ weights)
        testing.assert_close(real(moved), real(permuted @ form.weights), what="commuting with permutations")
        element = GroupElement.random(spec, generator, kinds=REMOVED, permute=False)
        testing.assert_close(real(canonicalize(spec, element @ weights)), real(form.weights), what="orbit")


def test_what_the_form_is() -> None:
    factory, inputs = ARCHITECTURES["cnn_bn"]
    model = factory().double()
    spec = spec_of(model, inputs[0].double())
    form = canonicalize(spec, generic(model, torch.Generator().manual_seed(1)))
    ones = torch.ones(4, dtype=torch.float64)
    testing.assert_close(form["1.running_var"] + 1e-5, ones)
    testing.assert_close(form["0.weight"].flatten(1).norm(dim=1), ones)
    assert bool((form["0.weight"].flatten(1).sum(1) > 0).all())
    testing.assert_close(form["1.weight"].abs(), ones)
    testing.assert_close(form["4.weight"].flatten(1).norm(dim=1), torch.ones(6, dtype=torch.float64))


RELU = """
    groups  h1: 3 positive_scale   h2: 4 positive_scale
    0.weight  h1 2
    0.bias    h1+
    1.weight  h2 h1'
    1.bias    h2+
    2.weight  1 h2'"""


def test_a_batch_of_models_gives_what_each_gives() -> None:
    spec = WeightSpec.parse(RELU)
    weights = testing.random_weights(spec, torch.Generator().manual_seed(2), leading=(5,))
    together = canonicalize(spec, weights)
    for i in range(5):
        alone = canonicalize(spec, {name: tensor[i] for name, tensor in weights.items()})
        testing.assert_close(alone, {name: tensor[i] for name, tensor in together.items()}, tolerance=1e-14)


def test_units_that_are_left_are_counted_and_named() -> None:
    spec = WeightSpec.parse(RELU)
    weights = testing.random_weights(spec, torch.Generator().manual_seed(3))
    weights["0.weight"][1] = 0
    form = canonical_form(spec, weights)
    [left] = form.left
    assert (left.group, left.freedom, left.count) == ("h1", "magnitude", 1)
    assert str(left) == "1 units of h1 keep their magnitude: a norm that is to be one is zero"
    assert torch.equal(form.weights["0.bias"][1], weights["0.bias"][1])
    assert float(form.weights["0.weight"][0].norm()) == pytest.approx(1)


def test_groups_without_an_order_are_left() -> None:
    spec = WeightSpec.parse("groups  h: 3 positive_scale   g: 4 positive_scale\na  h g'\nb  g h'")
    weights = testing.random_weights(spec, torch.Generator().manual_seed(4))
    form = canonical_form(spec, weights)
    assert [(left.group, left.count) for left in form.left] == [("h", 3), ("g", 4)]
    assert all("not settled" in left.reason for left in form.left)
    assert all(torch.equal(form.weights[name], tensor) for name, tensor in weights.items())


def test_a_sine_without_bias_on_a_cut_is_counted() -> None:
    spec = WeightSpec.parse(
        "groups  h1: 3 sign phase(1)   h2: 4 sign phase(1)   h3: 2 sign\n0.weight  h1 2\n0.bias  h1+\n"
        "1.weight  h2 h1'\n1.bias  h2+\n2.weight  h3 h2'\n3.weight  1 h3'"
    )
    weights = testing.random_weights(spec, torch.Generator().manual_seed(5))
    weights["1.bias"][2] = 0
    [left] = canonical_form(spec, weights).left
    assert (left.group, left.freedom, left.count) == ("h2", "phase", 1)
    assert "cut" in left.reason
