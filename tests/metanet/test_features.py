"""WeightFeatures: exact round trips, and the same action as on state dicts."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from metanet.features import WeightFeatures, feature_layout, stack_features
from metanet.group import Carrier, GroupElement
from metanet.spec import WeightSpec
from tests.metanet.nn.oracle import SPECS, random_features

TIED = replace(
    WeightSpec.parse(
        """
        groups   e: 4   c: 3
        embed    7 e
        conv     e c 2 2
        flat     e (c 5)
        fused    [e | 2 e | c] e
        head     7 e
        """
    ),
    ties=(("embed", "head"),),
)
ALL = {**SPECS, "tied": TIED}


def state_dict(spec: WeightSpec, *leading: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn((*leading, *shape), generator=generator, dtype=torch.float64)
        for name, shape in spec.shapes.items()
    }
    for tie in spec.ties:
        tensors |= dict.fromkeys(tie[1:], tensors[tie[0]])
    counters = [name for name in tensors if name.endswith("num_batches_tracked")]
    return tensors | {name: torch.randint(100, leading) for name in counters}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("leading", [(), (3,)], ids=["one", "batch"])
@pytest.mark.parametrize("name", ALL)
def test_round_trip_is_exact(name: str, leading: tuple[int, ...]) -> None:
    tensors = state_dict(ALL[name], *leading)
    features = WeightFeatures.from_state_dict(ALL[name], tensors, batched=bool(leading))
    assert len(features) == (leading or (1,))[0]
    assert_equal(features.to_state_dict(), tensors)


def test_layout_puts_fixed_axes_into_the_width() -> None:
    spec = WeightSpec.parse("groups a: 2 b: 3\n w b 4 a 5")
    w = torch.arange(120.0).reshape(3, 4, 2, 5)
    block = WeightFeatures.from_state_dict(spec, {"w": w}).tensors["w"]
    assert block.shape == (1, 3, 2, 20)
    assert block[0, 1, 1, 2 * 5 + 3] == w[1, 2, 1, 3]


def test_tied_entries_give_their_blocks_once() -> None:
    features = WeightFeatures.from_state_dict(TIED, state_dict(TIED))
    assert "head" not in features.tensors
    edited = features.map(torch.neg).to_state_dict()
    assert torch.equal(edited["head"], edited["embed"])


@pytest.mark.parametrize("kinds", [(), "all"], ids=["permutations", "all"])
@pytest.mark.parametrize("name", ALL)
def test_acts_as_on_the_state_dict(name: str, kinds: tuple[()] | str) -> None:
    spec = ALL[name]
    tensors = state_dict(spec, 2)
    g = GroupElement.random(spec, torch.Generator().manual_seed(1), kinds=kinds)  # type: ignore[arg-type]
    features = WeightFeatures.from_state_dict(spec, tensors, batched=True)
    assert isinstance(features, Carrier)
    acted = g @ features
    assert_equal(acted.to_state_dict(), g @ tensors)
    if any(block.groups for block in feature_layout(spec)):
        assert not acted.allclose(features)
    assert (g.inverse() @ acted).allclose(features, rtol=1e-12, atol=1e-12)


def test_gradients_transform_without_shifts() -> None:
    spec = SPECS["siren"]
    tensors = state_dict(spec)
    g = GroupElement.random(spec, torch.Generator().manual_seed(1), kinds="all")
    features = WeightFeatures.from_state_dict(spec, tensors, representation="gradient")
    assert_equal((g @ features).to_state_dict(), g.act(tensors, representation="gradient"))


def test_hidden_features_refuse_signs() -> None:
    spec = SPECS["siren"]
    hidden = random_features(spec).with_tensors(
        {
            block.key: torch.randn(2, *(spec.sizes[g] for g in block.groups), 5)
            for block in feature_layout(spec)
        },
        channels=5,
        folded=True,
    )
    g = GroupElement.random(spec, torch.Generator().manual_seed(0))
    moved = (g @ hidden).tensors["1.weight"]
    rows, columns = g.permutations["h2"], g.permutations["h1"]
    assert torch.equal(moved, hidden.tensors["1.weight"][:, rows][:, :, columns])
    with pytest.raises(ValueError, match="permutations only"):
        GroupElement.random(spec, kinds=("sign",)) @ hidden
    with pytest.raises(ValueError, match="hidden features are no state dict"):
        hidden.to_state_dict()


def test_cat_lays_channels_side_by_side() -> None:
    spec = SPECS["conv"]
    first, second = random_features(spec, seed=0), random_features(spec, seed=1)
    both = WeightFeatures.cat([first, second])
    assert both.channels == 2
    block = both.tensors["0.weight"].unflatten(-1, (18, 2))
    assert torch.equal(block[..., 0], first.tensors["0.weight"])
    assert torch.equal(block[..., 1], second.tensors["0.weight"])
    with pytest.raises(ValueError, match="2 channels are no state dict"):
        both.to_state_dict()


def test_indexing_and_stacking() -> None:
    features = random_features(SPECS["conv"], 4)
    assert features[1].to_state_dict()["0.bias"].shape == (3,)
    assert torch.equal(features[-1].tensors["0.bias"], features[3:].tensors["0.bias"])
    again = stack_features([features[:1], features[[1, 2]], features[torch.tensor([3])]])
    assert_equal(again.to_state_dict(), features.to_state_dict())
    with pytest.raises(IndexError, match="network 4"):
        features[4]


def test_arithmetic_and_conversion() -> None:
    features = random_features(SPECS["conv"])
    assert (features + 0.5 * features).allclose(1.5 * features, rtol=1e-12)
    half = features.to(torch.float32)
    assert half.tensors["0.bias"].dtype == torch.float32
    assert half.to_state_dict()["1.num_batches_tracked"].dtype == torch.int64
    assert half.to("cpu").allclose(features)
    with pytest.raises(ValueError, match="one spec"):
        features + random_features(SPECS["mlp"])


def test_integers_are_carried() -> None:
    spec = WeightSpec.parse("groups h: 2\n w h 3\n position_ids 1 4")
    tensors = {"w": torch.randn(2, 3), "position_ids": torch.arange(4)[None]}
    features = WeightFeatures.from_state_dict(spec, tensors)
    assert list(features.tensors) == ["w"]
    assert_equal(
        (2.0 * features).to_state_dict(), {"w": 2 * tensors["w"], "position_ids": tensors["position_ids"]}
    )


def test_a_mask_of_integers_is_permuted_with_its_units() -> None:
    spec = WeightSpec.parse("groups h: 4\n w h 3\n mask h")
    tensors = {"w": torch.randn(2, 4, 3), "mask": torch.tensor([[1, 0, 1, 0], [0, 0, 1, 1]])}
    element = GroupElement(spec, {"h": torch.tensor([1, 3, 0, 2])}, {})
    features = WeightFeatures.from_state_dict(spec, tensors, batched=True)
    assert_equal((element @ features).to_state_dict(), element @ tensors)


def test_wrong_weights_are_refused() -> None:
    spec = SPECS["mlp"]
    tensors = state_dict(spec)
    with pytest.raises(ValueError, match=r"missing 0\.bias"):
        WeightFeatures.from_state_dict(spec, {k: v for k, v in tensors.items() if k != "0.bias"})
    with pytest.raises(ValueError, match="wrong shapes"):
        WeightFeatures.from_state_dict(spec, tensors, batched=True)
    stacked = state_dict(spec, 2) | {"0.bias": torch.randn(3, 2)}
    with pytest.raises(ValueError, match="different numbers of models"):
        WeightFeatures.from_state_dict(spec, stacked, batched=True)
    features = WeightFeatures.from_state_dict(spec, tensors)
    with pytest.raises(ValueError, match=r"block '0.bias': expected \[b, 2, 1\]"):
        features.with_tensors({**features.tensors, "0.bias": torch.randn(1, 3, 1)}, channels=1)
    with pytest.raises(ValueError, match=r"missing \['2\.bias'\]"):
        features.with_tensors({k: v for k, v in features.tensors.items() if k != "2.bias"}, channels=1)
