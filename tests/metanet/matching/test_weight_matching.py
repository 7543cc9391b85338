"""Weight matching recovers planted elements, never raises the distance, and agrees with brute force."""

from __future__ import annotations

from itertools import permutations, product

import pytest
import torch
from torch import Tensor

from metanet import GroupElement, WeightSpec, spec_of
from metanet.matching import match_weights, weight_matching
from metanet.matching.starts import STARTS, Start
from tests.models import ARCHITECTURES

NESTED = """\
groups   embed: 5   head: 3   v: 4 under head   h: 6
qkv      [(head v) | (head v)] embed
out      embed (head v)
up       h embed
down     embed h
table    9 embed
"""
EXPERTS = """\
groups   expert: 4   f: 5 under expert
router   expert 7
up       expert f 7
down     expert 7 f
"""
CHAIN = """\
groups   kv: 2   query: 3 under kv   w: 4 under query   v: 3 under kv
q        (kv query w) 6
gate     (kv query w) 6
k        (kv v) 6
out      6 (kv query)
"""
GROUPED = """\
groups   g: 3   o: 4 under g   i: 2 under g   rest: 5
first    (g i) rest
second   (g o) i 3
third    rest (g o)
stem     rest 4
"""


def weights(spec: WeightSpec, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in spec.shapes.items()}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((a[name] - b[name]).double().square().sum()) for name in a)


def trained_like(name: str, seed: int) -> tuple[WeightSpec, dict[str, Tensor]]:
    """A spec, and generic values for its entries: nothing twice the same, as after training."""
    factory, inputs = ARCHITECTURES[name]
    model = factory()
    generator = torch.Generator().manual_seed(seed)
    state = {
        key: value + 0.1 * torch.randn(value.shape, generator=generator)
        if value.is_floating_point()
        else value
        for key, value in model.state_dict().items()
    }
    return spec_of(model, *inputs), state


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_planted_elements_are_recovered_exactly(name: str) -> None:
    spec, b = trained_like(name, 0)
    planted = GroupElement.random(spec, torch.Generator().manual_seed(1))
    found = weight_matching(spec, planted @ b, b)
    assert found.element.allclose(planted)
    assert found.after == 0.0


@pytest.mark.parametrize(
    "text", [NESTED, EXPERTS, CHAIN, GROUPED], ids=["heads", "experts", "chain", "grouped"]
)
@pytest.mark.parametrize("start", STARTS)
def test_planted_nested_elements_are_recovered(text: str, start: Start) -> None:
    spec = WeightSpec.parse(text)
    b = weights(spec, 0)
    planted = GroupElement.random(spec, torch.Generator().manual_seed(2))
    a = {name: x + 0.02 * torch.randn_like(x) for name, x in (planted @ b).items()}
    starts: list[Start] = [start] if start != "random" else ["random"] * 8
    found = weight_matching(spec, a, b, starts=starts)
    assert found.element.allclose(planted)


@pytest.mark.parametrize("name", ["tanh_mlp", "siren"])
def test_planted_signs_and_phases_are_recovered(name: str) -> None:
    spec, b = trained_like(name, 3)
    planted = GroupElement.random(spec, torch.Generator().manual_seed(1), kinds=["sign", "phase"])
    found = weight_matching(spec, planted @ b, b)
    a, moved = planted @ b, found.element @ b
    # An even number of half turns and a sign with an odd one are the same change of the weights.
    assert all(torch.allclose(a[key], moved[key], atol=1e-5) for key in a)
    assert weight_matching(spec, a, b, flips=False).after > 1e3 * max(found.after, 1e-9)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_distance_never_rises_and_is_what_it_says(name: str) -> None:
    spec, a = trained_like(name, 0)
    b = {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in a.items()}
    for start in STARTS:
        found = weight_matching(spec, a, b, starts=[start], seed=3)
        slack = 1e-6 * found.before
        assert all(x >= y - slack for x, y in zip(found.history, found.history[1:], strict=False))
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        compared = {
            key
            for key, axes in spec.entries
            if not key.endswith(statistics) and any(spec.axes_to_group[key, d] for d in range(len(axes)))
        }
        moved = found.element @ b
        expected = distance({k: a[k] for k in compared}, {k: moved[k] for k in compared})
        assert found.after == pytest.approx(expected, rel=1e-5)
        assert found.after <= found.before + slack


@pytest.mark.parametrize("seed", range(3))
def test_one_group_is_solved_as_well_as_by_brute_force(seed: int) -> None:
    spec = WeightSpec.parse("groups  h: 4 sign\nw  h 3\nb  h+\nv  2 h'")
    a, b = weights(spec, seed), weights(spec, seed + 50)
    best = min(
        distance(
            a,
            GroupElement(spec, {"h": torch.tensor(p)}, {("h", "sign"): torch.tensor(s)}) @ b,
        )
        for p in permutations(range(4))
        for s in product((1, -1), repeat=4)
    )
    assert weight_matching(spec, a, b).after == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_heads_and_widths_are_solved_as_well_as_by_brute_force(seed: int) -> None:
    spec = WeightSpec.parse("groups  head: 3   v: 2 under head\nw  (head v) 2\no  2 (head v)\nt  head")
    a, b = weights(spec, seed), weights(spec, seed + 50)
    inner = list(permutations(range(2)))
    best = min(
        distance(a, GroupElement(spec, {"head": torch.tensor(p), "v": torch.tensor(rows)}, {}) @ b)
        for p in permutations(range(3))
        for rows in product(inner, repeat=3)
    )
    assert weight_matching(spec, a, b).after == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_phases_are_solved_as_well_as_by_brute_force(seed: int) -> None:
    spec = WeightSpec.parse("groups  h: 2 sign phase(4)\nw  h 2\nb  h+\nv  1 h'")
    a, b = weights(spec, seed), weights(spec, seed + 50)
    best = min(
        distance(
            a,
            GroupElement(
                spec,
                {"h": torch.tensor(p)},
                {("h", "sign"): torch.tensor(s), ("h", "phase"): torch.tensor(k)},
            )
            @ b,
        )
        for p in permutations(range(2))
        for s in product((1, -1), repeat=2)
        for k in product(range(-3, 4), repeat=2)
    )
    assert weight_matching(spec, a, b).after == pytest.approx(best, rel=1e-5)


def test_two_coupled_groups_reach_the_optimum_from_some_start() -> None:
    spec = WeightSpec.parse("groups  h: 3   k: 4\nu  h 2\nw  k h\nv  2 k")
    for seed in range(3):
        a, b = weights(spec, seed), weights(spec, seed + 50)
        best = min(
            distance(a, GroupElement(spec, {"h": torch.tensor(p), "k": torch.tensor(q)}, {}) @ b)
            for p in permutations(range(3))
            for q in permutations(range(4))
        )
        starts: list[Start] = ["greedy", "identity", *(["random"] * 20)]  # type: ignore[list-item]
        assert weight_matching(spec, a, b, starts=starts).after == pytest.approx(best, rel=1e-5)


def test_fixed_groups_stay_and_networks_of_one_base_are_left_alone() -> None:
    spec, b = trained_like("resnet_small", 0)
    name = spec.groups[0].name
    planted = GroupElement.random(spec, torch.Generator().manual_seed(1))
    found = weight_matching(spec, planted @ b, b, fixed=[name])
    assert name not in found.element.permutations
    near = {k: v + 1e-3 * torch.randn_like(v) if v.is_floating_point() else v for k, v in b.items()}
    assert weight_matching(spec, near, b).element.allclose(GroupElement.identity(spec))


def test_bad_input_is_refused() -> None:
    spec, b = trained_like("mlp", 0)
    with pytest.raises(ValueError, match="no groups"):
        match_weights(spec, b, b, fixed=["nothing"])
    with pytest.raises(ValueError, match="not finite"):
        match_weights(spec, b, {k: v * torch.nan for k, v in b.items()})
    with pytest.raises(ValueError, match="shape"):
        match_weights(spec, b, {k: v[:1] for k, v in b.items()})
    with pytest.raises(ValueError, match="unknown start"):
        match_weights(spec, b, b, starts=["best"])  # type: ignore[list-item]
