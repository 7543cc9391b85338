"""Optimal transport of units: exact couplings, permutations as their special case, other widths."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metanet import GroupElement, spec_of
from metanet.matching import coupling as coupling_module
from metanet.matching import weight_matching
from metanet.matching.coupling import optimal_coupling
from metanet.matching.soft_map import SoftMap
from metanet.matching.transport import transport_matching
from metanet_zoo import open_images
from tests.models import ARCHITECTURES


def costs(m: int, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((m, n))


@pytest.mark.parametrize(("m", "n"), [(4, 4), (6, 4), (3, 5), (2, 6)])
def test_exact_couplings_agree_and_have_the_right_sums(
    m: int, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = costs(m, n)
    assigned = optimal_coupling(cost)
    monkeypatch.setattr(coupling_module, "MAX_ASSIGNMENT", 1)
    solved = optimal_coupling(cost)
    for found in (assigned, solved):
        assert np.allclose(found.sum(1), 1 / m)
        assert np.allclose(found.sum(0), 1 / n)
        assert (found >= 0).all()
    assert (assigned * cost).sum() == pytest.approx((solved * cost).sum(), rel=1e-9)
    entropic = optimal_coupling(cost, regularization=0.1)
    assert np.allclose(entropic.sum(1), 1 / m, atol=1e-8)
    assert np.allclose(entropic.sum(0), 1 / n, atol=1e-8)
    assert (assigned * cost).sum() <= (entropic * cost).sum() < (assigned * cost).sum() + 0.05
    monkeypatch.setattr(coupling_module, "MAX_PAIRS", 1)
    with pytest.raises(ValueError, match="regularization"):
        optimal_coupling(cost)


def test_equal_numbers_are_an_assignment() -> None:
    cost = costs(4, 4, 3)
    best = min(permutations(range(4)), key=lambda p: sum(cost[i, p[i]] for i in range(4)))
    assert np.allclose(optimal_coupling(cost) * 4, np.eye(4)[list(best)])


@pytest.mark.parametrize("name", ["mlp", "cnn_bn", "resnet_small", "tanh_mlp"])
def test_a_planted_permutation_is_what_weight_matching_finds(name: str) -> None:
    factory, inputs = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = factory()
    spec = spec_of(model, *inputs)
    b = {
        key: value + 0.1 * torch.randn_like(value) if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }
    planted = GroupElement.random(spec, torch.Generator().manual_seed(1))
    a = planted @ b
    found = transport_matching(spec, a, b)
    element = found.map.element()
    assert element is not None
    assert element.allclose(planted)
    assert element.allclose(weight_matching(spec, a, b, flips=False).element)
    assert all(cost == pytest.approx(0.0, abs=1e-10) for cost in found.costs.values())
    assert all(share == 0.0 for share in found.mixed.values())
    moved = found.map @ b
    assert all(torch.allclose(moved[key], a[key], atol=1e-6) for key in a)


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_doubled_units_are_found_and_the_function_is_kept() -> None:
    torch.manual_seed(0)
    narrow, wide = mlp(5, 4, 3, 2).double(), mlp(5, 8, 6, 2).double()
    x = torch.randn(9, 5, dtype=torch.float64)
    spec, spec_a = spec_of(narrow, x), spec_of(wide, x)
    b = {key: value.detach() for key, value in narrow.state_dict().items()}
    doubled = {}
    for key, value in b.items():
        last = key.startswith("4")
        rows = value if last else value.repeat_interleave(2, 0)
        doubled[key] = rows if key.startswith("0") or value.ndim == 1 else rows.repeat_interleave(2, 1) / 2
    shuffled = GroupElement.random(spec_a, torch.Generator().manual_seed(1)) @ doubled
    found = transport_matching(spec, shuffled, b, spec_a=spec_a)
    moved = found.map @ b
    assert {key: x.shape for key, x in moved.items()} == {key: x.shape for key, x in shuffled.items()}
    assert all(torch.allclose(moved[key], shuffled[key], atol=1e-12) for key in moved)
    wide.load_state_dict(moved)
    assert torch.allclose(wide(x), narrow(x), atol=1e-12)
    # And back: two copies become one unit again.
    back = transport_matching(spec_a, b, shuffled, spec_a=spec).map @ shuffled
    assert all(torch.allclose(back[key], b[key], atol=1e-12) for key in b)


def trained(model: nn.Sequential, seed: int, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(80):
        batch = torch.randint(len(x), (128,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def test_a_narrower_network_fused_into_a_wider_one_keeps_working() -> None:
    images = open_images("digits")
    assert images.labels is not None
    x, y = images.images.flatten(1), images.labels
    torch.manual_seed(0)
    wide, narrow = mlp(64, 48, 32, 10), mlp(64, 24, 16, 10)
    a, b = trained(wide, 0, x[:1200], y[:1200]), trained(narrow, 1, x[:1200], y[:1200])
    found = transport_matching(spec_of(narrow, x[:1]), a, b, spec_a=spec_of(wide, x[:1]))

    def accuracy(state: dict[str, Tensor]) -> float:
        wide.load_state_dict(state)
        with torch.no_grad():
            return float((wide(x[1200:]).argmax(1) == y[1200:]).double().mean())

    moved = found.map @ b
    narrow.load_state_dict(b)
    own = float((narrow(x[1200:]).argmax(1) == y[1200:]).double().mean())
    assert accuracy(moved) == pytest.approx(own, abs=1e-9)
    fused = {key: (a[key] + moved[key]) / 2 for key in a}
    unmatched = SoftMap(found.map.source, found.map.target, *_spread(found.map))
    naive = {key: (a[key] + x) / 2 for key, x in (unmatched @ b).items()}
    # Measured: ends .871 and .893, fused .841.
    assert accuracy(fused) > max(0.8, accuracy(naive) + 0.1)


def _spread(found: SoftMap) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Matrices of the same shapes that copy units in their own order."""
    merge, unmerge = {}, {}
    for name, matrix in found.merge.items():
        m, n = matrix.shape
        copied = torch.eye(n, dtype=torch.float64).repeat_interleave(m // n, 0)
        merge[name], unmerge[name] = copied, copied.mT / (m // n)
    return merge, unmerge


def test_what_transport_cannot_do_is_refused() -> None:
    factory, inputs = ARCHITECTURES["vit_small"]
    model = factory()
    spec = spec_of(model, *inputs)
    state = dict(model.state_dict())
    with pytest.raises(ValueError, match="nested"):
        transport_matching(spec, state, state)
    small, deep = mlp(5, 4, 2), mlp(5, 4, 4, 2)
    x = torch.zeros(1, 5)
    with pytest.raises(ValueError, match="more than widths"):
        transport_matching(
            spec_of(small, x), dict(deep.state_dict()), dict(small.state_dict()), spec_a=spec_of(deep, x)
        )
    wide = mlp(5, 6, 2)
    with pytest.raises(ValueError, match="widths differ"):
        transport_matching(
            spec_of(small, x),
            dict(wide.state_dict()),
            dict(small.state_dict()),
            spec_a=spec_of(wide, x),
            fixed=["layer0"],
        )
    with pytest.raises(ValueError, match="change their widths"):
        SoftMap(spec_of(small, x), spec_of(wide, x), {}, {})
