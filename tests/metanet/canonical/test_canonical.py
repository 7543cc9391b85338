from collections.abc import Callable, Mapping
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from metanet import GroupElement, WeightSpec, canonicalize, spec_of, testing

DEEP = WeightSpec.parse(
    """groups  h1: 6 sign phase(30)   h2: 7 sign phase(30)   h3: 5 sign phase(30)
    seq.0.weight   h1 2
    seq.0.bias     h1+
    seq.1.weight   h2 h1'
    seq.1.bias     h2+
    seq.2.weight   h3 h2'
    seq.2.bias     h3+
    seq.3.weight   1 h3'
    seq.3.bias     1"""
)
NO_BIAS = WeightSpec.parse("groups  h: 6 sign\nseq.0.weight   h 2\nseq.1.weight   1 h'")
TANH = WeightSpec.parse(
    "groups  h1: 6 sign   h2: 7 sign\nseq.0.weight  h1 3\nseq.0.bias  h1+\nseq.1.weight  h2 h1'\n"
    "seq.1.bias  h2+\nseq.2.weight  2 h2'"
)


def run(weights: Mapping[str, Tensor], x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    last = max(int(name.split(".")[1]) for name in weights)
    for i in range(last + 1):
        x = x @ weights[f"seq.{i}.weight"].mT
        if f"seq.{i}.bias" in weights:
            x = x + weights[f"seq.{i}.bias"][..., None, :]
        x = activation(x) if i < last else x
    return x


CASES: dict[str, tuple[WeightSpec, int, Callable[[Tensor], Tensor]]] = {
    "deep siren": (DEEP, 2, lambda z: torch.sin(30 * z)),
    "sine without bias": (NO_BIAS, 2, lambda z: torch.sin(30 * z)),
    "tanh": (TANH, 3, torch.tanh),
}


@pytest.mark.parametrize("case", CASES)
def test_canonical_form(case: str) -> None:
    spec, inputs, activation = CASES[case]
    generator = torch.Generator().manual_seed(0)
    weights = {n: 0.3 * t for n, t in testing.random_weights(spec, generator, leading=(20,)).items()}
    x = torch.randn(20, 9, inputs, dtype=torch.float64, generator=generator)
    canonical = canonicalize(spec, weights)
    assert any(not torch.equal(canonical[name], weights[name]) for name in weights)
    testing.assert_close(run(canonical, x, activation), run(weights, x, activation), what="function")
    testing.assert_close(canonicalize(spec, canonical), canonical, tolerance=1e-14, what="idempotence")
    for _ in range(4):
        element = GroupElement.random(spec, generator, kinds="all", permute=False)
        testing.assert_close(canonicalize(spec, element @ weights), canonical, what="orbit")
        permutation = GroupElement.random(spec, generator)
        testing.assert_close(
            canonicalize(spec, permutation @ weights),
            permutation @ canonical,
            what="commuting with permutations",
        )


class Residual(nn.Module):
    """Signs of a recurrent map: a unit reads units of its own group."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.last(h + torch.tanh(self.inner(h)))  # type: ignore[no-any-return]


class Backwards(Residual):
    """The square matrix meets the units in its rows and its columns in the same role."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.last(torch.tanh(self.first(x) + h @ self.inner.weight.T))  # type: ignore[no-any-return]


class TwoBiases(Residual):
    """Two layers write the same sine units."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.sin(3 * self.first(x)) + torch.sin(3 * self.inner(x)))  # type: ignore[no-any-return]


class Tied(TwoBiases):
    """One sine layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = self.first


class Rows(Residual):
    """Two rows of the layer, and two biases, belong to every sine unit."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 12)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sin(3 * self.first(x)).unflatten(-1, (6, 2))
        return self.last(h.mT)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [Residual, Backwards, TwoBiases, Tied, Rows])
def test_units_that_are_written_in_several_places(kind: type[Residual]) -> None:
    torch.manual_seed(0)
    model = kind().double()
    x = torch.randn(9, 3, dtype=torch.float64)
    spec = spec_of(model, x)
    phased = issubclass(kind, TwoBiases | Rows)
    assert [f.kind for f in spec.group["first"].freedoms] == ["sign", "phase"][: 1 + phased]
    state = model.state_dict()
    canonical = canonicalize(spec, state)
    moved = deepcopy(model)
    moved.load_state_dict(canonical)
    testing.assert_close(moved(x).detach(), model(x).detach(), what="function")
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        element = GroupElement.random(spec, generator, kinds="all", permute=False)
        testing.assert_close(canonicalize(spec, element @ state), canonical, what="orbit")


def test_batch_equals_loop() -> None:
    weights = testing.random_weights(DEEP, torch.Generator().manual_seed(1), leading=(4,))
    together = canonicalize(DEEP, weights)
    for i in range(4):
        alone = canonicalize(DEEP, {name: tensor[i] for name, tensor in weights.items()})
        assert all(torch.equal(alone[name], together[name][i]) for name in alone)


def test_where_the_form_puts_each_unit() -> None:
    weights = testing.random_weights(DEEP, torch.Generator().manual_seed(2), leading=(8,))
    form = canonicalize(DEEP, weights)
    phases = {i: 30 * form[f"seq.{i}.bias"] for i in range(3)}
    assert bool((form["seq.0.weight"][..., 0] > 0).all())
    assert bool(((phases[0] >= 0) & (phases[0] <= torch.pi + 1e-9)).all())
    assert bool(((phases[1] >= -1e-9) & (phases[1] <= torch.pi / 2 + 1e-9)).all())
    assert bool((phases[2].abs() <= torch.pi / 2 + 1e-9).all())
    assert bool((form["seq.3.weight"] > 0).all())


def test_groups_without_freedoms_are_left_alone() -> None:
    spec = WeightSpec.parse("groups  h: 4\nw  h 2\nv  1 h")
    weights = testing.random_weights(spec)
    assert all(torch.equal(canonicalize(spec, weights)[name], weights[name]) for name in weights)
