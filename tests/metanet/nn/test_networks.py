"""The contract of every layer, network and head on structured weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from metanet.features import WeightFeatures, feature_layout
from metanet.group import GroupElement
from metanet.nn import (
    UNF,
    DWSLayer,
    DWSNet,
    EquivariantHead,
    InputEncoding,
    InvariantHead,
    UNFLayer,
    WeightClassifier,
)
from metanet.spec import WeightSpec
from tests.metanet.nn.oracle import SPECS, random_features


class Edit(nn.Module):
    """A network, and a head that adds what it says to the weights."""

    def __init__(self, spec: WeightSpec) -> None:
        super().__init__()
        self.network, self.head = UNF(spec, hidden_channels=4), EquivariantHead(spec, scale=0.5)

    def forward(self, features: WeightFeatures) -> WeightFeatures:
        edited: WeightFeatures = self.head(features, self.network(features))
        return edited


class Pooled(nn.Module):
    """An invariant head right on the weights."""

    def __init__(self, spec: WeightSpec, **options: Any) -> None:
        super().__init__()
        self.head = InvariantHead(spec, 1, 5, 8, folded=False, **options)

    def forward(self, features: WeightFeatures) -> Tensor:
        answer: Tensor = self.head(features)
        return answer


class Hidden(nn.Module):
    """A UNF layer between an encoder and a decoder of hidden features."""

    def __init__(self, spec: WeightSpec) -> None:
        super().__init__()
        self.encoder = UNF(spec, hidden_channels=3, out_channels=None, num_layers=1)
        self.layer = UNFLayer(spec, 3, 2)

    def forward(self, features: WeightFeatures) -> WeightFeatures:
        hidden: WeightFeatures = self.layer(self.encoder(features))
        return hidden


Build = Callable[[WeightSpec], nn.Module]
EQUIVARIANT: dict[str, Build] = {
    "UNFLayer": Hidden,
    "DWSLayer": lambda spec: DWSLayer(spec, 1, 2),
    "UNF": lambda spec: UNF(spec, hidden_channels=40),
    "UNF folded": lambda spec: UNF(spec, hidden_channels=4, out_channels=2),
    "UNF hidden": lambda spec: UNF(spec, hidden_channels=4, out_channels=None),
    "UNF options": lambda spec: UNF(spec, hidden_channels=4, activation="gelu", norm="layer", residual=True),
    "DWSNet": lambda spec: DWSNet(spec, hidden_channels=3, num_layers=3),
    "DWSNet options": lambda spec: DWSNet(
        spec, hidden_channels=3, activation="silu", norm="layer", residual=True
    ),
    "InputEncoding": lambda spec: InputEncoding(spec, num_frequencies=2).fit(
        random_features(spec, 5, seed=9)
    ),
    "EquivariantHead": Edit,
}
INVARIANT: dict[str, Build] = {
    "InvariantHead": Pooled,
    "InvariantHead moments": lambda spec: Pooled(spec, pooling="moments"),
    "classifier unf": lambda spec: WeightClassifier(
        spec, 5, hidden_channels=4, num_layers=2, head_features=8
    ),
    "classifier dws": lambda spec: WeightClassifier(
        spec, 5, network="dws", hidden_channels=3, num_layers=2, pooling="moments", num_frequencies=2
    ),
    "classifier options": lambda spec: WeightClassifier(
        spec, 5, hidden_channels=4, norm="layer", residual=True, activation="tanh", head_features=None
    ),
}
ALL = {**EQUIVARIANT, **INVARIANT}
LAWFUL = [name for name in SPECS if name not in ("square", "mlp")]


def build(name: str, spec: WeightSpec, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return ALL[name](spec).double().eval()


def close(x: WeightFeatures | Tensor, y: WeightFeatures | Tensor, tolerance: float = 1e-10) -> bool:
    if isinstance(x, Tensor):
        assert isinstance(y, Tensor)
        return torch.allclose(x, y, rtol=tolerance, atol=tolerance * float(x.detach().abs().max()))
    assert isinstance(y, WeightFeatures)
    return x.allclose(y, tolerance, tolerance)


def act(element: GroupElement, result: WeightFeatures | Tensor) -> WeightFeatures | Tensor:
    return result if isinstance(result, Tensor) else element @ result


@pytest.mark.parametrize("spec", LAWFUL)
@pytest.mark.parametrize("name", ALL)
def test_equivariant_or_invariant(name: str, spec: str) -> None:
    net, weights = build(name, SPECS[spec]), random_features(SPECS[spec])
    result = net(weights)
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        g = GroupElement.random(SPECS[spec], generator)
        assert close(net(g @ weights), act(g, result))


@pytest.mark.parametrize("spec", ["siren", "rnn", "attention"])
@pytest.mark.parametrize(
    "name", [n for n in ALL if n not in ("InputEncoding", "InvariantHead", "InvariantHead moments")]
)
def test_sensitive_to_permutations_that_are_not_coupled(name: str, spec: str) -> None:
    """One block left out of a group element: the network's function changes, and so must the answer."""
    net, weights = build(name, SPECS[spec]), random_features(SPECS[spec])
    g = GroupElement.random(SPECS[spec], torch.Generator().manual_seed(5))
    key = {"siren": "1.weight", "rnn": "hh", "attention": "o"}[spec]

    def uncoupled(features: WeightFeatures) -> WeightFeatures:
        moved = (g @ features).tensors
        return features.with_tensors(
            {**moved, key: features.tensors[key]}, channels=features.channels, folded=features.folded
        )

    result = net(weights)
    expected = result if isinstance(result, Tensor) else uncoupled(result)
    assert not close(net(uncoupled(weights)), expected, 1e-4)


@pytest.mark.parametrize("spec", ["siren", "rnn", "conv"])
@pytest.mark.parametrize("name", ALL)
def test_batch_is_loop(name: str, spec: str) -> None:
    """One network's output does not depend on the others, in training either."""
    net, weights = build(name, SPECS[spec]).train(), random_features(SPECS[spec], 4)
    together = net(weights)
    for i in range(4):
        alone = net(weights[i])
        assert close(alone, together[i : i + 1])


@pytest.mark.parametrize("name", ALL)
def test_single_precision_is_close_to_double(name: str) -> None:
    net, weights = build(name, SPECS["siren"]), random_features(SPECS["siren"])
    exact = net(weights)
    rough = net.float()(weights.to(torch.float32))
    if isinstance(rough, WeightFeatures):
        assert all(tensor.dtype == torch.float32 for tensor in rough.tensors.values())
        assert rough.to(torch.float64).allclose(exact, 1e-4, 1e-4)
    else:
        assert rough.dtype == torch.float32
        assert close(rough.double(), exact, 1e-4)


@pytest.mark.parametrize("name", ALL)
def test_saved_is_loaded_bit_for_bit(name: str) -> None:
    first, second = build(name, SPECS["conv"], seed=0), build(name, SPECS["conv"], seed=1)
    stored = save(first.state_dict())
    second.load_state_dict(load(stored))
    assert save(second.state_dict()) == stored
    weights = random_features(SPECS["conv"])
    assert close(first(weights), second(weights), 0.0)


@pytest.mark.parametrize("name", ALL)
def test_seeds_fix_results(name: str) -> None:
    weights = random_features(SPECS["conv"])
    first, second, other = (build(name, SPECS["conv"], seed)(weights) for seed in (0, 0, 1))
    assert close(first, second, 0.0)
    assert not close(first, other, 1e-6)


@pytest.mark.parametrize("name", [n for n in ALL if n != "InputEncoding"])
def test_every_parameter_is_trained(name: str) -> None:
    """Every parameter has a gradient; a few steps of gradient descent bring the loss down."""
    torch.manual_seed(0)
    net, weights = build(name, SPECS["siren"]).train(), random_features(SPECS["siren"], 6)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        result = net(weights)
        parts = [result] if isinstance(result, Tensor) else list(result.tensors.values())
        loss = torch.stack([(part - 1).square().mean() for part in parts]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    missing = [n for n, p in net.named_parameters() if p.grad is None]
    assert not missing
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["UNF", "DWSNet", "classifier unf"])
def test_features_of_another_network_are_refused(name: str) -> None:
    net = build(name, SPECS["siren"])
    with pytest.raises(ValueError, match="this module is on"):
        net(random_features(SPECS["mlp"]))
    doubled = WeightFeatures.cat([random_features(SPECS["siren"])] * 2)
    with pytest.raises(ValueError, match="expected features with 1 channels per parameter"):
        net(doubled)


def test_wider_networks_of_the_same_names_are_refused() -> None:
    text = str(SPECS["mlp"])
    net = UNF(SPECS["mlp"], hidden_channels=4)
    with pytest.raises(ValueError, match="this module is on"):
        net(random_features(WeightSpec.parse(text.replace("h1: 2", "h1: 4"))).to(torch.float32))


@pytest.mark.parametrize("cls", [UNF, DWSNet])
def test_dropped_channels_are_the_same_for_all_units(cls: type[UNF] | type[DWSNet]) -> None:
    spec = SPECS["siren"]
    torch.manual_seed(0)
    net = cls(spec, hidden_channels=6, out_channels=None, num_layers=1, dropout=0.5).double()
    weights = random_features(spec)
    g = GroupElement.random(spec, torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    result = net(weights)
    torch.manual_seed(1)
    assert close(net(g @ weights), g @ result)
    assert not close(net(weights), result, 1e-3)
    kept = net.eval()(weights)
    assert close(net(weights), kept, 0.0)


def test_promise_of_the_readme() -> None:
    spec = SPECS["siren"]
    torch.manual_seed(0)
    w = random_features(spec, dtype=torch.float32)
    g = GroupElement.random(spec)
    net = UNF(spec, in_channels=1, hidden_channels=16, out_channels=1, num_layers=3)
    assert net(g @ w).allclose(g @ net(w))
    assert net(w).to_state_dict().keys() == spec.axes.keys()
    assert repr(net) == f"UNF({spec!r}, 1 -> 16 -> 16 -> 1 channels | 55 terms)"
    assert repr(UNFLayer(spec, 1, 16)) == f"UNFLayer({spec!r}, 1 -> 16 channels | 55 terms)"
    assert repr(DWSLayer(spec, 2, 3)) == f"DWSLayer({spec!r}, 2 -> 3 channels | 55 terms)"
    assert "1 -> 8 -> 8 channels" in repr(DWSNet(spec, 1, 8, None, 2))


def test_layout_is_the_same_for_equal_specs() -> None:
    again = WeightSpec.parse(str(SPECS["fused"]))
    assert feature_layout(again) == feature_layout(SPECS["fused"])
