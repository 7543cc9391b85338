"""Paths between networks, and corrections of activations' statistics after a merge."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from metanet.merging.data_free import rescale_without_data
from metanet.merging.paths import Path, barrier_path, interpolate, mean_of
from metanet.merging.repair import Correction, repair, reset_batch_norm
from tests.models import ARCHITECTURES


def plain() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 32),
        nn.ReLU(),
        nn.Linear(32, 24),
        nn.ReLU(),
        nn.Linear(24, 16),
        nn.ReLU(),
        nn.Linear(16, 3),
    )


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 12, 3, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 8, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 3),
    )


def two_states(model: nn.Module) -> list[dict[str, Tensor]]:
    states = []
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        states.append(
            {
                name: torch.rand(t.shape, generator=generator) + 0.5
                if name.endswith("running_var")
                else torch.randn(t.shape, generator=generator) * (t.ndim == 1 or t[0].numel() ** -0.5)
                if t.is_floating_point()
                else t.clone()
                for name, t in model.state_dict().items()
            }
        )
    return states


def outputs(model: nn.Module, state: Mapping[str, Tensor], x: Tensor, layer: str) -> Tensor:
    model.load_state_dict(dict(state))
    seen: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        model.eval()(x)
    handle.remove()
    return seen[0].transpose(0, 1).flatten(1) if seen[0].ndim > 2 else seen[0].T


def test_a_path_has_the_ends_and_the_height_above_the_chord() -> None:
    a, b = {"x": torch.tensor([0.0])}, {"x": torch.tensor([2.0])}
    path = barrier_path(a, b, lambda state: {"loss": float(3 * state["x"] - state["x"] ** 2)}, points=5)
    assert path.metrics["loss"][0] == 0.0
    assert path.metrics["loss"][-1] == pytest.approx(2.0)
    assert path.barrier == pytest.approx(1.0)
    assert path.at("loss", 0.5) == pytest.approx(2.0)
    assert Path((0.0, 0.5, 1.0), {"loss": (1.0, 0.0, 1.0)}).barrier == 0.0
    with pytest.raises(ValueError, match="points=2"):
        barrier_path(a, b, lambda state: {"loss": 0.0}, points=2)


def test_interpolation_and_mean_agree_and_keep_counters() -> None:
    model = ARCHITECTURES["cnn_bn"][0]()
    a, b = two_states(model)
    middle, mean = interpolate(a, b, 0.5), mean_of([a, b])
    for name in a:
        assert torch.allclose(middle[name], mean[name], atol=1e-6), name
        assert middle[name].dtype == a[name].dtype
    assert all(torch.equal(interpolate(a, b, 0.0)[name], a[name]) for name in a)


def test_reset_gives_the_statistics_of_the_data_and_keeps_the_mode() -> None:
    model = convolutional()
    x = torch.randn(64, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 3 + 1
    model.train()
    model[3].eval()
    assert reset_batch_norm(model, x.split(16)) == 1
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    with torch.no_grad():
        y = model[0](x)
    assert norm.running_mean is not None
    assert torch.allclose(norm.running_mean, y.mean((0, 2, 3)), atol=1e-4)
    assert model.training
    assert not model[3].training
    assert norm.momentum == 0.1
    with pytest.raises(ValueError, match="no batch"):
        reset_batch_norm(model, [])


@pytest.mark.parametrize("make", [plain, convolutional])
@pytest.mark.parametrize("correction", ["repair", "rescale"])
def test_corrections_restore_statistics_between_the_ends(
    make: Callable[[], nn.Sequential], correction: Correction
) -> None:
    model = make()
    a, b = two_states(model)
    shape = (256, 6) if make is plain else (64, 2, 8, 8)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    merged = interpolate(a, b, 0.25)
    fixed = repair(model, merged, a, b, x, weight=0.25, correction=correction)
    for layer in ("0", "2", "4") if make is plain else ("1", "3"):
        ends = [outputs(model, state, x, layer) for state in (a, b)]
        now = outputs(model, fixed, x, layer)
        goal = torch.lerp(ends[0].std(1), ends[1].std(1), 0.25)
        alive = (now.std(1) > 1e-5) & (goal > 1e-5)
        assert alive.any()
        assert torch.allclose(now.std(1)[alive], goal[alive], rtol=1e-3)
        if correction == "repair":
            mean = torch.lerp(ends[0].mean(1), ends[1].mean(1), 0.25)
            assert torch.allclose(now.mean(1)[alive], mean[alive], atol=1e-3)
        else:
            assert not torch.allclose(
                now.mean(1), torch.lerp(ends[0].mean(1), ends[1].mean(1), 0.25), atol=1e-2
            )


def test_a_network_merged_with_itself_needs_no_correction() -> None:
    model = plain()
    a, _ = two_states(model)
    x = torch.randn(128, 6, generator=torch.Generator().manual_seed(2))
    for fixed in (repair(model, a, a, a, x), rescale_without_data(model, a, a, a, x[:1])):
        assert all(torch.allclose(fixed[name], a[name], atol=1e-4) for name in a)


def test_rescaling_without_data_brings_norms_between_the_ends() -> None:
    model = plain()
    a, b = two_states(model)
    fixed = rescale_without_data(model, interpolate(a, b, 0.5), a, b, torch.zeros(1, 6))
    for layer in ("0", "2", "4"):
        norms = [state[f"{layer}.weight"].norm(dim=1) for state in (a, b, fixed)]
        assert torch.allclose(norms[2], (norms[0] + norms[1]) / 2, rtol=1e-4)
    assert torch.allclose(fixed["6.weight"], (a["6.weight"] + b["6.weight"]) / 2)
    model = convolutional()
    a, b = two_states(model)
    merged = interpolate(a, b, 0.5)
    fixed = rescale_without_data(model, merged, a, b, torch.zeros(1, 2, 8, 8))
    assert torch.equal(fixed["0.weight"], merged["0.weight"])
    assert (fixed["1.running_var"] < ((a["1.running_var"].sqrt() + b["1.running_var"].sqrt()) / 2) ** 2).any()
    assert not torch.allclose(fixed["1.running_var"], merged["1.running_var"])
