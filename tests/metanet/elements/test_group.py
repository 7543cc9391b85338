from math import pi

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metanet import GroupElement, WeightSpec, testing

SIREN = WeightSpec.parse("groups  h: 5 sign phase(30)\nw  h 2\nb  h+\nv  1 h'\nc  1")
NESTED = WeightSpec.parse(
    "groups  head: 3   qk: 4 under head\nw  [(head qk) | (head qk) | 5] 2\nv  7 (head 6)"
)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_group_laws_on_random_specs(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    spec = testing.random_spec(generator)
    testing.assert_group_laws(spec, testing.random_weights(spec, generator), seed=seed)


def test_group_laws_on_nested_groups() -> None:
    testing.assert_group_laws(NESTED, testing.random_weights(NESTED, leading=(2, 3)))


def test_nested_units_move_within_their_parent() -> None:
    generator = torch.Generator().manual_seed(0)
    element = GroupElement.random(NESTED, generator)
    index = element.index(NESTED.axes["w"][0])
    assert index is not None
    heads, inner = element.permutations["head"], element.permutations["qk"]
    for part in range(2):
        for h in range(3):
            for j in range(4):
                expected = part * 12 + int(heads[h]) * 4 + int(inner[h, j])
                assert int(index[part * 12 + h * 4 + j]) == expected
    assert index[24:].tolist() == list(range(24, 29))


def test_action_on_a_sine_unit_is_the_written_one() -> None:
    weights = testing.random_weights(SIREN, torch.Generator().manual_seed(1))
    p = torch.tensor([2, 0, 1, 4, 3])
    s, k = torch.tensor([1, -1, 1, -1, 1]), torch.tensor([0, 1, -3, 2, 0])
    element = GroupElement(SIREN, {"h": p}, {("h", "sign"): s, ("h", "phase"): k})
    moved = element @ weights
    for i in range(5):
        assert torch.equal(moved["w"][i], s[i] * weights["w"][p[i]])
        assert torch.isclose(moved["b"][i], s[i] * weights["b"][p[i]] + k[i] * pi / 30)
        assert torch.equal(moved["v"][0, i], s[i] * (-1) ** int(k[i]) * weights["v"][0, p[i]])
    assert torch.equal(moved["c"], weights["c"])


def test_sine_function_is_kept() -> None:
    def network(t: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.sin(30 * (x @ t["w"].T + t["b"])) @ t["v"].T + t["c"]

    generator = torch.Generator().manual_seed(2)
    weights = testing.random_weights(SIREN, generator)
    x = torch.randn(9, 2, dtype=torch.float64, generator=generator)
    for _ in range(5):
        element = GroupElement.random(SIREN, generator, kinds="all")
        testing.assert_close(network(element @ weights, x), network(weights, x), what="the sine network")


def test_scales_and_even_units_keep_their_functions() -> None:
    for freedom, activation in (("positive_scale", torch.relu), ("scale", lambda z: z), ("even", torch.cos)):
        spec = WeightSpec.parse(f"groups  h: 5 {freedom}\nw  h 2\nb  h+\nv  1 h'")
        generator = torch.Generator().manual_seed(3)
        weights = testing.random_weights(spec, generator)
        x = torch.randn(9, 2, dtype=torch.float64, generator=generator)
        outputs = [
            activation(x @ t["w"].T + t["b"]) @ t["v"].T
            for t in (weights, GroupElement.random(spec, generator, kinds="all") @ weights)
        ]
        testing.assert_close(outputs[1], outputs[0], what=freedom)


def test_gradients_and_second_moments_transform_as_they_must() -> None:
    spec = WeightSpec.parse("groups  h: 5 scale\nw  h 2\nb  h\nv  1 h'")
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(9, 2, dtype=torch.float64, generator=generator)

    def gradient(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        leaves = {name: t.clone().requires_grad_() for name, t in weights.items()}
        ((x @ leaves["w"].T + leaves["b"]) @ leaves["v"].T).square().sum().backward()
        return {name: t.grad for name, t in leaves.items() if t.grad is not None}

    weights = testing.random_weights(spec, generator)
    element = GroupElement.random(spec, generator, kinds="all")
    there = gradient(element @ weights)
    testing.assert_close(element.act(gradient(weights), representation="gradient"), there)
    squares = {name: t.square() for name, t in gradient(weights).items()}
    expected = {name: t.square() for name, t in there.items()}
    testing.assert_close(element.act(squares, representation="second_moment"), expected)


def test_a_momentum_is_not_shifted_by_phases() -> None:
    element = GroupElement(SIREN, {}, {("h", "phase"): torch.tensor([1, 0, 0, 2, 0])})
    bias = element.act({"b": torch.zeros(5, dtype=torch.float64)}, representation="momentum")["b"]
    assert torch.equal(bias, torch.zeros(5, dtype=torch.float64))


def test_random_draws_permutations_by_default_and_is_reproducible() -> None:
    elements = [GroupElement.random(SIREN, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert not elements[0].freedoms
    assert elements[0].allclose(elements[1])
    full = GroupElement.random(SIREN, torch.Generator().manual_seed(5), kinds="all")
    assert {kind for _, kind in full.freedoms} == {"sign", "phase"}


def test_leading_dimensions_and_integer_entries() -> None:
    spec = WeightSpec.parse("groups  h: 4\nw  h 2\ncount")
    element = GroupElement.random(spec, torch.Generator().manual_seed(6))
    stacked = {"w": torch.randn(3, 4, 2), "count": torch.arange(3)}
    moved = element @ stacked
    assert moved["count"].dtype == torch.long
    for i in range(3):
        single = element @ {"w": stacked["w"][i], "count": stacked["count"][i]}
        assert torch.equal(moved["w"][i], single["w"])


@pytest.mark.parametrize(
    ("permutations", "freedoms", "message"),
    [
        ({"h": torch.tensor([0, 0, 1, 2, 3])}, {}, "no permutation"),
        ({"h": torch.arange(4)}, {}, r"expected indices of shape \[5\]"),
        ({"k": torch.arange(5)}, {}, "no group 'k'"),
        ({}, {("h", "scale"): torch.ones(5)}, "has no freedom 'scale'"),
        ({}, {("h", "sign"): torch.full((5,), 2)}, "does not allow"),
        ({}, {("h", "phase"): torch.full((5,), 0.5)}, "does not allow"),
    ],
)
def test_bad_elements(permutations: dict, freedoms: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=message):
        GroupElement(SIREN, permutations, freedoms)


def test_acting_on_foreign_weights_says_so() -> None:
    with pytest.raises(ValueError, match="do not fit the spec: missing"):
        GroupElement.identity(SIREN) @ {"w": torch.zeros(5, 2)}
    with pytest.raises(ValueError, match="different specs"):
        GroupElement.identity(SIREN) @ GroupElement.identity(NESTED)
