"""Matching many networks cycle-consistently, and matching by activations."""

from __future__ import annotations

from itertools import permutations, product

import pytest
import torch
from torch import Tensor

from metanet import GroupElement, WeightSpec, spec_of
from metanet.matching import activation_matching, cycle_consistent_matching, merge_many_matching
from metanet.matching.frank_wolfe import frank_wolfe
from tests.models import ARCHITECTURES

MLP = WeightSpec.parse("groups  h: 6   k: 5\nu  h 4\nb  h\nw  k h\nv  3 k")


def weights(spec: WeightSpec, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in spec.shapes.items()}


def spread(states: list[dict[str, Tensor]]) -> float:
    return sum(
        float(
            (torch.stack([state[name] for state in states]).double().var(0, correction=0) * len(states)).sum()
        )
        for name in states[0]
    )


@pytest.mark.parametrize("method", [merge_many_matching, cycle_consistent_matching])
def test_permuted_copies_meet_in_the_universe(method) -> None:  # type: ignore[no-untyped-def]
    base = weights(MLP, 0)
    planted = [GroupElement.random(MLP, torch.Generator().manual_seed(seed)) for seed in range(4)]
    states = [g @ {k: x + 0.01 * torch.randn_like(x) for k, x in base.items()} for g in planted]
    found = method(MLP, states)
    moved = [element @ state for element, state in zip(found.elements, states, strict=True)]
    assert found.after == pytest.approx(spread(moved), rel=1e-4)
    assert found.before == pytest.approx(spread(states), rel=1e-4)
    assert found.after < 0.01 * found.before
    for i, j in product(range(4), repeat=2):
        assert found.between(i, j).allclose(planted[i] @ planted[j].inverse())
    around = found.between(0, 1) @ found.between(1, 2) @ found.between(2, 0)
    assert around.allclose(GroupElement.identity(MLP))


def test_the_spread_of_unrelated_networks_falls_and_never_below_the_optimum() -> None:
    spec = WeightSpec.parse("groups  h: 4\nu  h 3\nv  2 h")
    states = [weights(spec, seed) for seed in range(3)]
    best = min(
        spread(
            [
                states[0],
                *(
                    GroupElement(spec, {"h": torch.tensor(p)}, {}) @ state
                    for p, state in zip(pair, states[1:], strict=True)
                ),
            ]
        )
        for pair in product(permutations(range(4)), repeat=2)
    )
    for method in (merge_many_matching, cycle_consistent_matching):
        found = method(spec, states)
        assert best * (1 - 1e-6) <= found.after <= 1.1 * best
        assert found.after < found.before


def test_frank_wolfe_of_one_group_and_two_networks_is_the_assignment() -> None:
    spec = WeightSpec.parse("groups  h: 5\nu  h 3\nv  2 h")
    states = [weights(spec, seed) for seed in (1, 2)]
    elements = frank_wolfe(spec, states)
    moved = [element @ state for element, state in zip(elements, states, strict=True)]
    best = min(
        spread([states[0], GroupElement(spec, {"h": torch.tensor(p)}, {}) @ states[1]])
        for p in permutations(range(5))
    )
    assert spread(moved) <= 1.05 * best


def test_one_network_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two"):
        merge_many_matching(MLP, [weights(MLP, 0)])


@pytest.mark.parametrize("name", ["mlp", "cnn_bn", "resnet_small", "vit_small"])
def test_activations_find_the_units_that_layers_write(name: str) -> None:
    factory, inputs = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = factory()
    spec = spec_of(model, *inputs)
    state = {
        k: v + 0.1 * torch.randn_like(v) if v.is_floating_point() else v
        for k, v in model.state_dict().items()
    }
    data = torch.randn(16, *inputs[0].shape[1:], generator=torch.Generator().manual_seed(1))
    planted = GroupElement.random(spec, torch.Generator().manual_seed(2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = activation_matching(spec, model, planted @ state, state, data)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert found.after < 1e-3 * found.before
    reached = found.element.permutations
    assert reached
    for group, permutation in reached.items():
        assert torch.equal(permutation, planted.permutations[group]), group
    if name in ("mlp", "cnn_bn", "resnet_small"):
        assert set(reached) == set(spec.group)
