"""Signs among a spec's actions: found with the permutation, and used where they are safe."""

from __future__ import annotations

from itertools import permutations, product

import pytest
import torch
from torch import Tensor, nn

from metanet import GroupElement, WeightSpec, spec_of
from metanet.matching import weight_matching
from metanet.matching.action_signs import sign_actions
from metanet.matching.pair import Pair
from metanet.matching.starts import Start
from tests.models import ARCHITECTURES


class Gated(nn.Module):
    """A gated unit: ``down(silu(gate(x)) · up(x))``."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(3, units), nn.Linear(3, units)
        self.down = nn.Linear(units, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        return found


def planted_signs(spec: WeightSpec, seed: int) -> GroupElement:
    """Random permutations, and random signs for every sign that matching may use."""
    generator = torch.Generator().manual_seed(seed)
    drawn = GroupElement.random(spec, generator)
    signs = {
        number: 1.0 - 2.0 * torch.randint(2, (spec.sizes[group],), generator=generator).double()
        for group, number in sign_actions(spec).items()
    }
    return GroupElement(spec, drawn.permutations, {}, signs)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: x.detach() + 0.1 * torch.randn_like(x) for name, x in model.state_dict().items()}


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return sum(float((a[name] - b[name]).double().square().sum()) for name in a)


def network(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    if name == "gated":
        return Gated(9), (torch.randn(2, 3),)
    if name in ARCHITECTURES:
        factory, inputs = ARCHITECTURES[name]
        return factory(), inputs
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=12,
        intermediate_size=10,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=20,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config), (torch.arange(5)[None],)


@pytest.mark.parametrize(
    ("name", "start"), [("gated", "greedy"), ("gated", "sorted"), ("lstm_lm", "greedy"), ("llama", "greedy")]
)
def test_planted_signs_are_recovered(name: str, start: Start) -> None:
    torch.manual_seed(0)
    model, inputs = network(name)
    spec = spec_of(model, *inputs)
    assert sign_actions(spec)
    b = state_of(model)
    planted = planted_signs(spec, 1)
    assert any((value < 0).any() for value in planted.actions.values())
    a = planted @ b
    found = weight_matching(spec, a, b, starts=[start])
    moved = found.element @ b
    assert distance(a, moved) < 1e-9 * distance(a, b)
    assert found.after == pytest.approx(0.0, abs=1e-8)
    assert weight_matching(spec, a, b, flips=False).after > 0.05 * found.before


@pytest.mark.parametrize("seed", range(2))
def test_a_gated_unit_is_solved_as_well_as_by_brute_force(seed: int) -> None:
    torch.manual_seed(seed)
    model = Gated(4)
    spec = spec_of(model, torch.randn(2, 3))
    a, b = state_of(model), state_of(Gated(4))
    (group,), (number,) = sign_actions(spec), sign_actions(spec).values()
    best = min(
        distance(
            a,
            GroupElement(spec, {group: torch.tensor(p)}, {}, {number: torch.tensor(s, dtype=torch.float64)})
            @ b,
        )
        for p in permutations(range(4))
        for s in product((1, -1), repeat=4)
    )
    assert distance(a, weight_matching(spec, a, b).element @ b) == pytest.approx(best, rel=1e-5)


def test_signs_that_would_cost_a_norm_its_gain_are_left_alone() -> None:
    for name in ("resnet_small", "vit_small"):
        factory, inputs = ARCHITECTURES[name]
        spec = spec_of(factory(), *inputs)
        assert any(action.kind == "scale" for action in spec.actions)
        assert not sign_actions(spec)


def test_a_start_that_uses_other_actions_is_refused() -> None:
    torch.manual_seed(0)
    model = Gated(4)
    spec = spec_of(model, torch.randn(2, 3))
    pair = Pair(spec, state_of(model), state_of(model))
    pair.restart(planted_signs(spec, 0))
    factory, inputs = ARCHITECTURES["vit_small"]
    other = factory()
    spec = spec_of(other, *inputs)
    pair = Pair(spec, state_of(other), state_of(other))
    with pytest.raises(ValueError, match="cannot begin at an element with linear"):
        pair.restart(GroupElement.random(spec, kinds=["linear"]))
