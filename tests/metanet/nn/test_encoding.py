"""Input encodings: statistics that respect the symmetry, features that mean what they say."""

from math import pi

import pytest
import torch

from metanet.features import WeightFeatures
from metanet.group import GroupElement
from metanet.nn import InputEncoding
from tests.metanet.nn.oracle import SPECS, random_features


def test_fitted_blocks_are_standardised_per_fixed_index() -> None:
    spec = SPECS["siren"]
    weights = random_features(spec, 50).map(lambda t: 3 * t + torch.arange(t.shape[-1]))
    encoded = InputEncoding(spec).double().fit(weights)(weights)
    for key, tensor in encoded.tensors.items():
        values = tensor.flatten(0, -2)
        assert torch.allclose(values.mean(0), torch.zeros(values.shape[1]).double(), atol=1e-6), key
        assert torch.allclose(values.std(0, correction=0), torch.ones(values.shape[1]).double(), rtol=1e-6)


def test_statistics_do_not_change_with_permutations() -> None:
    spec = SPECS["conv"]
    weights = random_features(spec, 8)
    g = GroupElement.random(spec, torch.Generator().manual_seed(0))
    first, second = InputEncoding(spec).double().fit(weights), InputEncoding(spec).double().fit(g @ weights)
    for name, value in first.state_dict().items():
        if name != "frequencies":
            assert torch.allclose(value, second.state_dict()[name], atol=1e-14), name


def test_constant_blocks_keep_a_scale_of_one() -> None:
    spec = SPECS["mlp"]
    weights = random_features(spec).map(torch.ones_like)
    encoded = InputEncoding(spec).double().fit(weights)(weights)
    assert all(torch.equal(t, torch.zeros_like(t)) for t in encoded.tensors.values())


def test_fourier_features_stand_beside_their_entry() -> None:
    spec = SPECS["siren"]
    weights = WeightFeatures.cat([random_features(spec, seed=0), random_features(spec, seed=1)])
    encoding = InputEncoding(spec, 2, num_frequencies=3, fourier="sinusoidal", scale=0.25).double()
    encoded = encoding(weights)
    assert encoded.channels == encoding.out_channels == 14
    w = weights.tensors["0.weight"].unflatten(-1, (2, 2))
    block = encoded.tensors["0.weight"].unflatten(-1, (2, 14))
    assert torch.equal(block[..., :2], w)
    for channel in range(2):
        for k, frequency in enumerate((0.25, 0.5, 1.0)):
            angle = 2 * pi * frequency * w[..., channel]
            assert torch.allclose(block[..., 2 + 3 * channel + k], angle.sin(), atol=1e-6)
            assert torch.allclose(block[..., 8 + 3 * channel + k], angle.cos(), atol=1e-6)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="unknown Fourier features 'wavelet'"):
        InputEncoding(SPECS["mlp"], fourier="wavelet")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must not be negative"):
        InputEncoding(SPECS["mlp"], num_frequencies=-1)
