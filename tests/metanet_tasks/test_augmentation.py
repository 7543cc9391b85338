from __future__ import annotations

import pytest
import torch

from metanet.spec import WeightSpec
from metanet.testing import assert_close, random_spec, random_weights
from metanet_tasks.augmentation import ElementBatch, add_noise

NESTED = WeightSpec.parse(
    """
    groups   head: 3   unit: 4 under head   h: 5 sign phase(30)
    a.weight   [(head unit) | 2 | (head unit 2)] h'
    a.bias     h+
    b.weight   h (head unit)
    """
)
CHAIN = WeightSpec.parse(
    """
    groups   expert: 3   unit: 4 sign phase(2) under expert   part: 2 scale under unit
    up       expert [unit | unit] 3
    bias     expert [unit+ | unit+]
    inner    (expert unit part)
    down     5 part' expert unit'
    """
)


@pytest.mark.parametrize("kinds", ["none", "permutations", "all"])
@pytest.mark.parametrize(
    "spec",
    [NESTED, CHAIN, random_spec(torch.Generator().manual_seed(3))],
    ids=["nested", "chain", "random"],
)
def test_every_network_gets_the_action_of_its_own_element(spec: WeightSpec, kinds: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = random_weights(spec, generator, leading=(4,))
    elements = ElementBatch.random(spec, 4, generator, kinds)  # type: ignore[arg-type]
    acted = elements.act(weights)
    for i in range(4):
        expected = elements[i] @ {name: tensor[i] for name, tensor in weights.items()}
        assert_close({name: tensor[i] for name, tensor in acted.items()}, expected, what=f"network {i}")


def test_networks_get_different_elements_and_a_seed_fixes_them() -> None:
    drawn = ElementBatch.random(NESTED, 8, torch.Generator().manual_seed(1), "all")
    again = ElementBatch.random(NESTED, 8, torch.Generator().manual_seed(1), "all")
    assert len(drawn.permutations["h"].unique(dim=0)) > 1
    assert len(drawn.freedoms["h", "phase"].unique(dim=0)) > 1
    for name, permutation in drawn.permutations.items():
        assert torch.equal(permutation, again.permutations[name])


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one of none, permutations, all"):
        ElementBatch.random(NESTED, 2, torch.Generator(), "signs")  # type: ignore[arg-type]


def test_noise_has_the_scale_that_was_asked_for() -> None:
    weights = {"w": torch.zeros(50, 400), "count": torch.zeros(50, dtype=torch.long)}
    noisy = add_noise(weights, {"w": 3.0}, 0.1, torch.Generator().manual_seed(0))
    assert float(noisy["w"].std()) == pytest.approx(0.3, rel=0.02)
    assert noisy["count"] is weights["count"]
