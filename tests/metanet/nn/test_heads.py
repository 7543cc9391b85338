"""Heads: what they pool, what they add, where they start."""

import pytest
import torch

from metanet.nn import DWSNet, EquivariantHead, InvariantHead, WeightClassifier
from tests.metanet.nn.oracle import SPECS, random_features


def test_pooled_blocks_lie_side_by_side() -> None:
    spec = SPECS["mlp"]
    weights = random_features(spec, 3)
    head = InvariantHead(spec, 1, 2, folded=False)
    parts = [w.flatten(1, -2).mean(1) if w.ndim > 2 else w for w in weights.tensors.values()]
    assert torch.equal(head.pool(weights), torch.cat(parts, 1))


def test_moments_are_mean_maximum_and_mean_square() -> None:
    spec = SPECS["rnn"].select(["hh"])
    weights = random_features(spec, 3)
    w = weights.tensors["hh"].flatten(1)
    pooled = InvariantHead(spec, 1, 2, folded=False, pooling="moments").pool(weights)
    assert torch.allclose(pooled, torch.stack([w.mean(1), w.amax(1), w.square().mean(1)], 1))


def test_editing_starts_near_the_identity_and_reaches_anything() -> None:
    spec = SPECS["siren"]
    weights, delta = random_features(spec, seed=0), random_features(spec, seed=1)
    head = EquivariantHead(spec).double()
    assert head(weights, delta).allclose(weights + 0.01 * delta, 1e-6, 1e-6)
    with torch.no_grad():
        head.scales.fill_(1.0)
    assert head(weights, delta).allclose(weights + delta, 1e-12)


@pytest.mark.parametrize("network", ["unf", "dws"])
def test_classifiers_that_pool_means_never_build_the_last_blocks_but_agree(network: str) -> None:
    spec = SPECS["siren"]
    torch.manual_seed(0)
    model = WeightClassifier(spec, 3, network=network, hidden_channels=4).double()  # type: ignore[arg-type]
    weights = random_features(spec, 3)
    apart = model.head(model.network(model.encoding(weights)))
    assert torch.allclose(model(weights), apart, rtol=1e-12)


def test_head_dropout_acts_in_training_only() -> None:
    spec = SPECS["siren"]
    torch.manual_seed(0)
    model = WeightClassifier(spec, 3, hidden_channels=4, head_dropout=0.5).double()
    weights = random_features(spec, 3)
    assert not torch.equal(model(weights), model(weights))
    model.eval()
    assert torch.equal(model(weights), model(weights))


def test_fitted_statistics_are_the_classifiers() -> None:
    spec = SPECS["siren"]
    weights = random_features(spec, 20).map(lambda t: 5 * t)
    model = WeightClassifier(spec, 3, hidden_channels=4).double().fit_encoding(weights)
    assert 3 < float(model.state_dict()["encoding.std_2"]) < 7


def test_options_are_checked() -> None:
    spec = SPECS["mlp"]
    with pytest.raises(ValueError, match="unknown pooling 'max'"):
        InvariantHead(spec, 1, 2, pooling="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown network 'mlp'"):
        WeightClassifier(spec, 2, network="mlp")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown set layer 'sab'"):
        DWSNet(spec, set_layer="sab")  # type: ignore[arg-type]
