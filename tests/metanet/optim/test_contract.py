"""The contract of an optimizer, for every rule and for forecasts, on every kind of network."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from metanet import spec_of
from metanet.optim import LearnedOptimizer
from metanet.optim.pretrained import RULES, MetaWeights
from tests.metanet.optim.contract import (
    KINDS,
    OPTIMIZERS,
    assert_same,
    loss_of,
    network,
    optimizer_for,
    spec_for,
    train,
)
from tests.metanet.optim.networks import weights

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@every_optimizer
@pytest.mark.parametrize("kind", KINDS)
def test_trainings_of_every_network_resume_bit_for_bit(kind: str, name: str) -> None:
    straight, resumed = network(kind), network(kind)
    optimizer = optimizer_for(name, straight, spec_for(kind))
    train(straight, optimizer, kind, range(3))
    buffer = io.BytesIO()
    torch.save([straight.state_dict(), optimizer.state_dict()], buffer)
    buffer.seek(0)
    model_state, optimizer_state = torch.load(buffer, weights_only=True)
    resumed.load_state_dict(model_state)
    again = optimizer_for(name, resumed, spec_for(kind))
    again.load_state_dict(optimizer_state)
    expected = train(straight, optimizer, kind, range(3, 6))
    assert train(resumed, again, kind, range(3, 6)) == expected
    assert_same(straight, resumed)
    start = network(kind)
    for (label, before), after in zip(start.named_parameters(), straight.parameters(), strict=True):
        assert bool(after.isfinite().all())
        assert not torch.equal(before, after), label


@every_optimizer
def test_schedules_multiply_the_rate_and_resume(name: str) -> None:
    slow, fast, resumed = network("mlp"), network("mlp"), network("mlp")
    spec = spec_for("mlp")
    still, moved = optimizer_for(name, slow, spec, lr=0.5), optimizer_for(name, fast, spec)
    schedule = LambdaLR(moved, lambda step: 0.5 if step < 3 else 0.25)
    for step in range(3):
        train(slow, still, "mlp", [step])
        train(fast, moved, "mlp", [step])
        schedule.step()
    assert_same(slow, fast)
    resumed.load_state_dict(fast.state_dict())
    again = optimizer_for(name, resumed, spec)
    later = LambdaLR(again, lambda step: 0.5 if step < 3 else 0.25)
    again.load_state_dict(copy.deepcopy(moved.state_dict()))
    later.load_state_dict(schedule.state_dict())
    for model, optimizer, running in ((fast, moved, schedule), (resumed, again, later)):
        for step in range(3, 6):
            train(model, optimizer, "mlp", [step])
            running.step()
    assert moved.param_groups[0]["lr"] == again.param_groups[0]["lr"]
    assert_same(fast, resumed)
    train(slow, still, "mlp", range(3, 6))
    assert not torch.equal(next(slow.parameters()), next(fast.parameters()))


@pytest.mark.parametrize("name", ["structured", "nowcaster linear"])
@pytest.mark.parametrize("kind", ["cosine", "cycle", "plateau", "warm-up"])
def test_schedulers_of_every_sort_set_the_rate_that_a_plain_optimizer_would_have(
    name: str, kind: str
) -> None:
    model, plain = network("mlp"), network("mlp")
    learned = optimizer_for(name, model, spec_for("mlp"))
    twin = torch.optim.SGD(plain.parameters(), lr=learned.param_groups[0]["lr"])

    def scheduler(optimizer: torch.optim.Optimizer) -> Any:
        if kind == "cosine":
            return CosineAnnealingLR(optimizer, 6)
        if kind == "cycle":
            return OneCycleLR(optimizer, 2.0, total_steps=6, cycle_momentum=False)
        if kind == "plateau":
            return ReduceLROnPlateau(optimizer, patience=1)
        parts = [LinearLR(optimizer, 0.1, total_iters=2), CosineAnnealingLR(optimizer, 4)]
        return SequentialLR(optimizer, parts, [2])

    pair, rates = [(model, learned, scheduler(learned)), (plain, twin, scheduler(twin))], []
    for step in range(5):
        for network_, optimizer, schedule in pair:
            train(network_, optimizer, "mlp", [step])
            schedule.step(*([1.0] if kind == "plateau" else []))
        rates.append(learned.param_groups[0]["lr"])
        assert rates[-1] == pytest.approx(twin.param_groups[0]["lr"])
    assert len(set(rates)) > 1


@every_optimizer
def test_mixed_precision_scales_gradients_and_skips_steps_that_overflow(name: str) -> None:
    plain, scaled = network("mlp"), network("mlp")
    spec = spec_for("mlp")
    first, second = optimizer_for(name, plain, spec), optimizer_for(name, scaled, spec)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def loss(model: torch.nn.Module, step: int) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss_of(model, "mlp", step)

    for step in range(6):
        if step == 2:  # a step whose gradients overflow is as if it had not been
            before = str(second.state_dict())
            second.zero_grad()
            (scaler.scale(loss(scaled, step)) * torch.inf).backward()
            scaler.step(second)
            scaler.update()
            assert str(second.state_dict()) == before
            assert scaler.get_scale() == 512.0
        first.zero_grad()
        loss(plain, step).backward()
        first.step()
        second.zero_grad()
        scaler.scale(loss(scaled, step)).backward()
        scaler.step(second)
        scaler.update()
    assert_same(plain, scaled)  # scales are powers of two
    assert {parameter.dtype for parameter in scaled.parameters()} == {torch.float32}


@every_optimizer
def test_pickled_and_copied_trainings_continue_bit_for_bit(name: str) -> None:
    model = network("mlp")
    optimizer = optimizer_for(name, model, spec_for("mlp"))
    schedule = CosineAnnealingLR(optimizer, 20)
    for step in range(3):
        train(model, optimizer, "mlp", [step])
        schedule.step()
    others = [pickle.loads(pickle.dumps((model, optimizer))), copy.deepcopy((model, optimizer))]
    expected = train(model, optimizer, "mlp", range(3, 6))
    for copied, its_own in others:
        assert str(its_own.state_dict()) != str(optimizer.state_dict()), "a copy stays where it is"
        assert train(copied, its_own, "mlp", range(3, 6)) == expected
        assert_same(copied, model)


@every_optimizer
def test_compiled_models_train_as_they_are(name: str) -> None:
    model, plain = network("mlp"), network("mlp")
    wrapped: Any = torch.compile(model, backend="eager")
    optimizer = optimizer_for(name, wrapped, spec_for("mlp"))
    other = optimizer_for(name, plain, spec_for("mlp"))
    assert train(wrapped, optimizer, "mlp", range(6)) == train(plain, other, "mlp", range(6))
    assert_same(model, plain)
    other.load_state_dict(optimizer.state_dict())


@every_optimizer
def test_parameters_that_are_frozen_for_a_while_stay_and_move_again(name: str) -> None:
    model = network("mlp")
    frozen = model[3].weight  # type: ignore[index]
    optimizer = optimizer_for(name, model, spec_for("mlp"))
    train(model, optimizer, "mlp", range(2))
    frozen.requires_grad_(False)
    frozen.grad = None
    before = frozen.clone()
    train(model, optimizer, "mlp", range(2, 6))
    assert torch.equal(frozen, before)
    frozen.requires_grad_(True)
    train(model, optimizer, "mlp", range(6, 8))
    assert not torch.equal(frozen, before)


def test_a_forecast_leaves_out_what_had_no_gradient() -> None:
    """A base optimizer does not move such parameters; a forecast that hears of their neighbours must not."""
    model = network("mlp")
    unused = model[3].weight  # type: ignore[index]
    optimizer = optimizer_for("nowcaster graph", model, spec_for("mlp"))
    before = unused.clone()
    for step in range(5):
        optimizer.zero_grad()
        loss_of(model, "mlp", step).backward()
        unused.grad = None
        optimizer.step()
    assert torch.equal(unused, before)
    assert not torch.equal(model[5].weight, network("mlp")[5].weight)  # type: ignore[index]


@pytest.mark.parametrize("rule", list(RULES))
def test_directions_that_are_not_finite_are_replaced(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta-parameters far too large: the guard moves the tensors by the rule's plain direction."""
    made = weights(rule)
    rates = [name for name in made.metas if name.startswith(("log_", "schedule"))]
    huge = {name: meta if name in rates else meta * 1e37 for name, meta in made.metas.items()}
    fallbacks: list[tuple[int, ...]] = []
    plain = made.rule.fallback

    def counted(item: Any) -> torch.Tensor:
        fallbacks.append(tuple(item.values.shape))
        return plain(item)

    monkeypatch.setattr(made.rule, "fallback", counted)
    model = network("mlp")
    optimizer = LearnedOptimizer.from_pretrained(
        MetaWeights("huge", made.rule, huge), model, total_steps=20, spec=spec_for("mlp")
    )
    losses = train(model, optimizer, "mlp", range(4))
    assert fallbacks
    assert all(loss == loss for loss in losses)
    for before, after in zip(network("mlp").parameters(), model.parameters(), strict=True):
        assert bool(after.isfinite().all())
        assert not torch.equal(before, after)


@every_optimizer
def test_hooks_of_steps_and_states_are_called_once(name: str) -> None:
    model = network("mlp")
    optimizer = optimizer_for(name, model, spec_for("mlp"))
    called: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    train(model, optimizer, "mlp", range(2))
    assert called == ["before", "after"] * 2
    called.clear()
    optimizer.register_state_dict_pre_hook(lambda *_: called.append("save"))
    optimizer.register_state_dict_post_hook(lambda *_: called.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: called.append("load"))
    optimizer.register_load_state_dict_post_hook(lambda *_: called.append("loaded"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert called == ["save", "saved", "load", "loaded"]
    copied, its_own = pickle.loads(pickle.dumps((model, optimizer)))  # hooks are left out
    train(copied, its_own, "mlp", [2])
    assert len(called) == 4


@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if rule.bucketed])
def test_linked_tensors_move_in_one_bucket_as_they_would_alone(rule: str) -> None:
    ends, buckets = [], []
    for together in (True, False):
        made = weights(rule)
        made.rule.bucketed = together
        model = torch.nn.Sequential(*(torch.nn.Linear(6, 6) for _ in range(4))).double()
        spec = spec_of(model, torch.zeros(2, 6).double())
        for number, parameter in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(number)
            torch.nn.init.normal_(parameter, generator=generator)
        optimizer = LearnedOptimizer.from_pretrained(made, model, total_steps=9, spec=spec)
        for step in range(3):
            for number, parameter in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(10 * step + number)
                parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                if step == 1 and number == 2:  # its bucket is taken apart for a step
                    parameter.grad = None
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        buckets.append(len(optimizer.buckets()))
    assert buckets == [3, 8]
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-12)
