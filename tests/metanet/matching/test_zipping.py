"""Zipping: merged units by correlation, whole networks and trunks with two heads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metanet import GroupElement, spec_of
from metanet.matching.zipping import zip_matching, zip_units
from tests.models import ARCHITECTURES


def network(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        layers += [nn.Linear(widths[i], widths[i + 1]), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def close(x: dict[str, Tensor], y: dict[str, Tensor]) -> bool:
    return all(torch.allclose(x[name], y[name], atol=1e-6) for name in x)


@pytest.mark.parametrize("data", [True, False], ids=["activations", "weights"])
@pytest.mark.parametrize("name", ["mlp", "resnet_small"])
def test_a_network_zipped_with_its_permuted_self_is_itself(name: str, data: bool) -> None:
    factory, inputs = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = factory()
    spec = spec_of(model, *inputs)
    a = {
        key: value + 0.2 * torch.randn_like(value).abs() if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }
    planted = GroupElement.random(spec, torch.Generator().manual_seed(1))
    images = torch.randn(24, *inputs[0].shape[1:], generator=torch.Generator().manual_seed(2))
    looked = (model, images) if data else ()
    found = zip_matching(spec, a, planted @ a, *looked)
    assert found.merges_all
    first, second = found.networks(a, planted @ a)
    assert close(first, a)
    assert close(second, a)
    assert all(likeness == pytest.approx(1.0, abs=1e-4) for likeness in found.costs.values())


def test_merged_units_are_means_and_copies() -> None:
    torch.manual_seed(0)
    models = network(5, 7, 6, 3), network(5, 7, 6, 3)
    x = torch.randn(40, 5, dtype=torch.float64)
    spec = spec_of(models[0], x)
    a, b = map(state_of, models)
    found = zip_matching(spec, a, b, models[0], x, stop_after="0", within=0.6)
    assert found.map_a is not None
    assert not found.merges_all
    assert found.shared == {"0.weight", "0.bias"}
    merged = found.networks(a, b)
    # An oracle by hand: the mean of each cluster, then its copy to every unit that it is made of.
    halves = [m.merge["layer0"] / 2 for m in (found.map_a, found.map)]
    copies = [m.unmerge["layer0"] for m in (found.map_a, found.map)]
    assert all((copy.sum(1) == 1).all() and ((copy == 0) | (copy == 1)).all() for copy in copies)
    assert torch.allclose(halves[0].sum(1) + halves[1].sum(1), torch.ones(7, dtype=torch.float64))
    sums = [x @ state["0.weight"].T + state["0.bias"] for state in (a, b)]
    hidden = torch.relu(sums[0] @ halves[0].T + sums[1] @ halves[1].T)
    for model, copy, state in zip(models, copies, merged, strict=True):
        expected = model[2:](hidden @ copy.T)
        model.load_state_dict(state)
        assert torch.allclose(model(x), expected, atol=1e-12)


@pytest.mark.parametrize("data", [True, False], ids=["activations", "weights"])
def test_twins_within_a_network_make_room_for_the_other(data: bool) -> None:
    """Units that a network has twice are merged, and both functions are kept whole."""
    torch.manual_seed(0)
    models = network(5, 8, 3), network(5, 8, 3)
    for model in models:
        for name in ("0.weight", "0.bias"):
            parameter = model.get_parameter(name)
            parameter.data[4:] = parameter.data[:4]
    x = torch.randn(50, 5, dtype=torch.float64)
    spec = spec_of(models[0], x)
    a, b = map(state_of, models)
    expected = [model(x) for model in models]
    looked = (models[0], x) if data else ()
    found = zip_matching(spec, a, b, *looked, stop_after="0", within=1.0)
    for model, state, value in zip(models, found.networks(a, b), expected, strict=True):
        model.load_state_dict(state)
        assert torch.allclose(model(x), value, atol=1e-6)
    forbidden = zip_matching(spec, a, b, *looked, stop_after="0", within=0.0)
    model = models[0]
    model.load_state_dict(forbidden.networks(a, b)[0])
    assert not torch.allclose(model(x), expected[0], atol=1e-2)


def test_the_budget_and_the_factor_hold() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = nn.functional.normalize(torch.randn(20, 3, generator=generator, dtype=torch.float64), dim=1)
    table = (rows @ rows.T).numpy()
    sizes = {}
    for again in (0.0, 0.3, 1.0):
        found = zip_units(table, again=again, within=0.4)
        assert found.within <= 4
        assert sorted(set(found.clusters.tolist())) == list(range(10))
        sizes[again] = max(found.clusters.tolist().count(k) for k in range(10))
    assert sizes[0.0] <= sizes[0.3] <= sizes[1.0]
    assert sizes[1.0] > 2
    across = zip_units(table, again=0.0, within=0.0)
    assert across.within == 0
    assert sorted(across.clusters[:10].tolist()) == sorted(across.clusters[10:].tolist()) == list(range(10))


def test_the_trunk_of_a_residual_network_ends_with_a_stage() -> None:
    factory, inputs = ARCHITECTURES["resnet_small"]
    torch.manual_seed(0)
    model = factory().eval()
    spec = spec_of(model, *inputs)
    a = state_of(model)
    torch.manual_seed(1)
    b = state_of(factory())
    found = zip_matching(spec, a, b, stop_after="layer1")
    groups = set(found.map.merge)
    assert groups == {
        group for name in ("conv1.weight", "layer1.conv1.weight") for group in spec.axes_to_group[name, 0]
    }
    assert "layer1.conv2.weight" in found.shared
    assert "layer2.conv1.weight" not in found.shared
    first, second = found.networks(a, b)
    assert all(torch.equal(first[name], second[name]) for name in found.shared)
    assert not torch.equal(first["layer2.conv1.weight"], second["layer2.conv1.weight"])
    for state in (first, second):
        model.load_state_dict(state)
        assert model(*inputs).isfinite().all()


def test_what_cannot_be_zipped_is_refused() -> None:
    factory, inputs = ARCHITECTURES["vit_small"]
    model = factory()
    spec = spec_of(model, *inputs)
    state = state_of(model)
    with pytest.raises(ValueError, match="nested"):
        zip_matching(spec, state, state)
    plain = network(4, 3, 2)
    spec, state = spec_of(plain, torch.zeros(1, 4, dtype=torch.float64)), state_of(plain)
    with pytest.raises(ValueError, match="no layer 'head'"):
        zip_matching(spec, state, state, stop_after="head")
    with pytest.raises(ValueError, match="within=2"):
        zip_matching(spec, state, state, within=2)
