"""Nowcasting: an optimizer in full around any other, whose forecasts commute with permutations."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from metanet import GroupElement
from metanet.optim import LearnedOptimizer
from metanet.optim.forecaster import FORMS, STATES, Forecaster, History
from metanet.optim.nowcaster import Nowcaster
from metanet.optim.rules.links import Links
from tests.metanet.optim.contract import forecaster
from tests.metanet.optim.networks import (
    assert_permuted,
    cnn,
    mlp,
    mlp_spec,
    permuted_pair,
    train,
    weights,
)
from tests.metanet.optim.test_stacked import SPEC as MIXTURE
from tests.metanet.optim.test_stacked import mixture
from tests.metanet.optim.test_stacked import train as train_mixture

BASES: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "AdamW": lambda model: torch.optim.AdamW(model.named_parameters(), lr=0.01),
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    "learned": lambda model: LearnedOptimizer(
        model.named_parameters(), total_steps=40, weights=weights("structured")
    ),
}


def nowcaster(model: nn.Module, base: str = "AdamW", form: str = "graph", **options: object) -> Nowcaster:
    settings: dict[str, object] = {"total_steps": 40, "every": 5, "ahead": 6, "spec": mlp_spec(), **options}
    return Nowcaster(forecaster(form), BASES[base](model), model, **settings)  # type: ignore[arg-type]


def states(*sizes: int, count: int = STATES) -> Tensor:
    return torch.randn(count, 1, *sizes, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def test_a_line_is_continued() -> None:
    """The oracle: coefficients that continue a line meet where a line goes."""
    made = Forecaster.initial("linear")
    made.metas["linear"].view(4, STATES - 1, 4)[:, -1, 1] = -10.0  # -(k/10) 10 d_4 = k (θ_5 - θ_4)
    start, slope = states(4, 3, count=2)
    line = torch.stack([start + i * slope for i in range(STATES)])
    (found,) = made([History(line, "hidden")], 6.0, 0.3, None)
    torch.testing.assert_close(found, start + (STATES - 1 + 6) * slope)


@pytest.mark.parametrize("form", FORMS)
def test_forecasts_start_from_the_present(form: str) -> None:
    links = Links(mlp_spec())
    history = [History(states(8, 5), "hidden", "0.weight"), History(states(8), "vector", "0.bias")]
    for found, kept in zip(Forecaster.initial(form)(history, 3.0, 0.5, links), history, strict=True):
        assert torch.equal(found, kept.states[-1])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("build", [mlp, cnn])
def test_trainings_with_forecasts_commute_with_permutations(
    form: str, build: Callable[[], nn.Module]
) -> None:
    model, moved, element = permuted_pair(build)
    for network in (model, moved):
        train(network, nowcaster(network, "SGD", form, spec=element.spec), 6)
    assert_permuted(model, moved, element)


@pytest.mark.parametrize("form", FORMS)
def test_stacked_experts_are_forecast_too(form: str) -> None:
    model, moved = mixture(), mixture()
    element = GroupElement.random(MIXTURE, torch.Generator().manual_seed(1))
    moved.load_state_dict(element @ moved.state_dict())
    plain = mixture()
    for network in (model, moved):
        train_mixture(network, nowcaster(network, "SGD", form, spec=MIXTURE), 5)
    train_mixture(plain, BASES["SGD"](plain), 5)
    assert_permuted(model, moved, element)
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert not torch.equal(mine, theirs)


@pytest.mark.parametrize("base", list(BASES))
@pytest.mark.parametrize("stop", [4, 8, 10])
def test_a_training_resumes_within_a_period_bit_for_bit(base: str, stop: int) -> None:
    straight, resumed = mlp(), mlp()
    optimizer = nowcaster(straight, base)
    train(straight, optimizer, stop)
    buffer = io.BytesIO()
    torch.save([straight.state_dict(), optimizer.state_dict()], buffer)
    expected = train(straight, optimizer, 9, start=stop)
    buffer.seek(0)
    model_state, state = torch.load(buffer, weights_only=True)
    resumed.load_state_dict(model_state)
    before = copy.deepcopy(state)
    again = nowcaster(resumed, base)
    again.load_state_dict(state)
    assert str(before) == str(state), "loading must not change the caller's dict"
    assert train(resumed, again, 9, start=stop) == expected
    for mine, theirs in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    copied, its_own = pickle.loads(pickle.dumps((straight, optimizer)))
    assert train(copied, its_own, 6, start=30) == train(straight, optimizer, 6, start=30)


def test_between_forecasts_steps_are_those_of_the_base() -> None:
    plain, jumping = mlp(), mlp()
    first, second = BASES["AdamW"](plain), nowcaster(jumping)
    assert train(plain, first, 5) == train(jumping, second, 5)
    assert any(
        not torch.equal(mine, theirs)
        for mine, theirs in zip(plain.parameters(), jumping.parameters(), strict=True)
    )
    still = mlp()
    train(still, nowcaster(still, total_steps=1), 5)
    for mine, theirs in zip(plain.parameters(), still.parameters(), strict=True):
        assert torch.equal(mine, theirs), "at the end of a training nothing is forecast"


def test_schedulers_closures_and_groups_reach_the_base() -> None:
    model = mlp()
    early = [(n, p) for n, p in model.named_parameters() if n != "7.weight"]
    base = torch.optim.AdamW(early, lr=0.01)
    optimizer = Nowcaster(forecaster("linear"), base, model, total_steps=40, every=5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    x, y = torch.randn(16, 5), torch.randint(0, 3, (16,))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    before = closure().item()
    assert optimizer.step(closure).item() == before
    schedule.step()
    assert base.param_groups[0]["lr"] == 0.005
    assert base.state is optimizer.state
    last: nn.Parameter = model[7].weight  # type: ignore[index]
    optimizer.add_param_group({"params": [("7.weight", last)], "lr": 0.1})
    old = last.detach().clone()
    optimizer.step(closure)
    assert not torch.equal(old, last)
    assert last in base.state


def test_what_is_frozen_or_not_finite_stays() -> None:
    model = mlp()
    frozen = model[3].weight  # type: ignore[index]
    frozen.requires_grad_(False)
    optimizer = nowcaster(model)
    before = frozen.clone()
    train(model, optimizer, 5)
    assert torch.equal(frozen, before)
    bad = forecaster("linear")
    bad.metas["linear"].fill_(torch.inf)
    plain, same = mlp(), mlp()
    base = BASES["AdamW"]
    train(same, Nowcaster(bad, base(same), same, total_steps=40, every=5, ahead=6), 5)
    train(plain, base(plain), 5)
    for mine, theirs in zip(plain.parameters(), same.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_narrow_types_keep_wide_states() -> None:
    model = mlp().bfloat16()
    optimizer = nowcaster(model)
    train(model, optimizer, 3)
    kept = [v["nowcast_states"] for v in optimizer.state_dict()["state"].values()]
    assert {value.dtype for value in kept} == {torch.float32}
    assert all(loss == loss for loss in train(model, optimizer, 4, start=3))


def test_forecasts_that_a_narrow_type_cannot_hold_are_left_out() -> None:
    model = nn.Linear(3, 2, bias=False).half()
    far = Forecaster.initial("linear")
    far.metas["linear"].fill_(-1.0)
    base = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer = Nowcaster(far, base, model, total_steps=1000, every=5, ahead=900)
    for _ in range(5):
        model.weight.grad = torch.full_like(model.weight, -5000.0)
        optimizer.step()
    assert float(model.weight.detach().min()) > 24_000
    assert bool(model.weight.isfinite().all())


def test_forecasters_are_kept_whole_and_others_refused(tmp_path: Path) -> None:
    made, path = forecaster("graph"), tmp_path / "forecaster.safetensors"
    made.save(path)
    assert path.stat().st_size < 100_000
    loaded = Forecaster.load(path)
    assert loaded.form == "graph"
    assert all(torch.equal(made.metas[name], meta) for name, meta in loaded.metas.items())
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="damaged or no file of a forecaster"):
        Forecaster.load(path)
    weights("structured").save(path)
    with pytest.raises(ValueError, match="holds no forecaster: its metadata says None"):
        Forecaster.load(path)
    with pytest.raises(ValueError, match="no file"):
        Forecaster.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="linear, graph, found 'cubic'"):
        Forecaster.initial("cubic")


def test_wrong_settings_are_refused() -> None:
    model, other = mlp(), mlp()
    for options, message in (
        ({"every": 7}, "multiple of 5, found 7"),
        ({"total_steps": 0}, "found 0 and 6"),
        ({"spec": None}, "need the spec of the network"),
    ):
        with pytest.raises(ValueError, match=message):
            nowcaster(model, **options)
    with pytest.raises(ValueError, match="10 parameters that are not the model's"):
        Nowcaster(forecaster("linear"), BASES["SGD"](other), model, total_steps=9)
    with pytest.raises(ValueError, match="saved by an optimizer without forecasts"):
        nowcaster(model).load_state_dict(BASES["AdamW"](model).state_dict())


def test_a_forecaster_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    forecaster = Forecaster.initial("linear")
    forecaster.metas["linear"][0, 3] = torch.nan
    forecaster.save(tmp_path / "forecaster.safetensors")
    with pytest.raises(ValueError, match="linear hold values that are not finite; make it again"):
        Forecaster.load(tmp_path / "forecaster.safetensors")
