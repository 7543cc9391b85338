"""Truncated backpropagation against finite differences of what it differentiates."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from metanet.optim.meta.backprop import Moment, backpropagate
from metanet.optim.meta.group import Group, apply
from metanet.optim.meta.tasks import Classification, MLPTask
from metanet.optim.meta.trainer import MetaSettings, MetaTrainer
from metanet.optim.pretrained import RULES
from metanet.optim.rule import Item, Metas, UpdateRule
from metanet.optim.rules.links import Links
from metanet.optim.rules.structured import StructuredRule


def task(dtype: torch.dtype = torch.float64) -> MLPTask:
    """Return a task with an input that is always zero, whose weights have no gradient."""
    inputs = torch.randn(60, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    inputs[:, 4] = 0
    return MLPTask(Classification(inputs, inputs[:, :3].argmax(1)), (5, 6, 4, 3), "tanh", 8)


def drawn(rule: UpdateRule) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rule.size, generator=generator, dtype=torch.float64) * 0.3


def trainer(rule: UpdateRule, dtype: torch.dtype = torch.float64, **settings: object) -> MetaTrainer:
    made = replace(
        MetaSettings(groups=1, pairs=1, stretch=3, horizons=(20, 20), estimator="backprop"),
        **settings,  # type: ignore[arg-type]
    )
    return MetaTrainer(rule, lambda _: task(dtype), made, seed=3)


def slope(trainer: MetaTrainer, state: Mapping[str, object], theta: Tensor, along: Tensor) -> float:
    """Return the central difference of the weighted loss of the next stretch."""

    def loss(step: float) -> float:
        trainer.load_state_dict(copy.deepcopy(state))
        weighted, _ = trainer._stretch(trainer.groups[0], trainer.rule.unpack((theta + step * along)[None]))
        return float(weighted.mean())

    return (loss(1e-5) - loss(-1e-5)) / 2e-5


def moments(rule: UpdateRule, theta: Tensor, steps: int) -> list[Moment]:
    """Train two networks; return every step with random weights of the losses."""
    inner, generator = task(), torch.Generator().manual_seed(2)
    group = Group(inner, 9, 0, [], [])
    group.lay(inner.initialize(2, generator), rule)
    found = []
    for _ in range(steps):
        indices = torch.randint(60, (2, 8), generator=generator)
        found.append(Moment(group.copy(), indices, torch.rand(2, generator=generator).double() + 0.5))
        apply(rule, rule.unpack(theta[None]), inner.roles, group, found[-1].gradients())
        group.step += 1
    return found


@pytest.mark.parametrize("name", list(RULES))
def test_estimates_are_slopes_of_the_stretch(name: str) -> None:
    """From a state that earlier meta-parameters left, on which the stretch does not look back."""
    rule = RULES[name]()
    theta, made = drawn(rule), trainer(rule)
    made.gradient(theta)
    state = copy.deepcopy(made.state_dict())
    found, _ = made.gradient(theta)
    along = torch.randn(len(theta), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = slope(made, state, theta, along)
    assert abs(expected) > 1e-7
    assert float(found @ along) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", list(RULES))
def test_single_precision_is_differentiated_as_well(name: str) -> None:
    rule = RULES[name]()
    theta = drawn(rule)
    expected, _ = trainer(rule).gradient(theta)
    found, _ = trainer(rule, torch.float32).gradient(theta.float())
    assert float((found - expected).norm() / expected.norm()) < 1e-3
    assert float(expected.norm()) > 0


def test_stretches_are_cut() -> None:
    """Two stretches add up to what each is alone, and not to one stretch of both."""
    rule = StructuredRule()
    theta = drawn(rule)
    short, whole = trainer(rule), trainer(rule, stretch=6)
    first, second = short.gradient(theta)[0], short.gradient(theta)[0]
    both, figures = whole.gradient(theta)
    assert float((both - first - second).norm() / both.norm()) > 1e-2
    along = both / both.norm()
    fresh = trainer(rule, stretch=6)
    assert slope(fresh, copy.deepcopy(fresh.state_dict()), theta, along) == pytest.approx(
        float(both @ along), rel=1e-5
    )
    assert figures["loss"] > 0


@pytest.mark.parametrize("name", ["per_parameter", "celo2"])
def test_the_first_order_takes_gradients_as_constants(name: str) -> None:
    rule = RULES[name]()
    theta = drawn(rule)
    steps = moments(rule, theta, 4)
    fixed = [[g.clone() for g in step.gradients()] for step in steps]

    def objective(at: Tensor) -> float:
        group = steps[0].group.copy()
        total = 0.0
        for step, gradients in zip(steps, fixed, strict=True):
            losses = group.task.losses([p.detach() for p in group.parameters], step.indices)
            total += float(losses @ step.weights)
            apply(rule, rule.unpack(at[None]), group.task.roles, group, gradients)
            group.step += 1
        return total

    along = torch.randn(len(theta), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = (objective(theta + 1e-5 * along) - objective(theta - 1e-5 * along)) / 2e-5
    first = backpropagate(rule, theta, steps, second_order=False).sum(0)
    assert float(first @ along) == pytest.approx(expected, rel=1e-5)
    assert float((first - backpropagate(rule, theta, steps).sum(0)).norm() / first.norm()) > 1e-4


@pytest.mark.parametrize("name", list(RULES))
def test_particles_are_differentiated_as_they_would_be_alone(name: str) -> None:
    rule = RULES[name]()
    theta = drawn(rule)
    steps = moments(rule, theta, 3)
    together = backpropagate(rule, theta, steps)
    alone = []
    for step in steps:
        states = [{k: v[:, 1:].detach() for k, v in state.items()} for state in step.group.states]
        parameters = [p[1:].detach() for p in step.group.parameters]
        group = replace(step.group, parameters=parameters, states=states)
        alone.append(Moment(group, step.indices[1:], step.weights[1:]))
    torch.testing.assert_close(backpropagate(rule, theta, alone)[0], together[1], rtol=1e-6, atol=1e-9)


def test_clipped_losses_have_no_slope_and_lost_networks_spoil_nothing() -> None:
    rule = RULES["mixing"]()
    theta, made = drawn(rule), trainer(rule, pairs=3, ceiling=1.1)
    made.groups[0].parameters[0][0] = torch.nan
    state = copy.deepcopy(made.state_dict())
    found, _ = made.gradient(theta)
    along = found / found.norm()
    assert slope(made, state, theta, along) == pytest.approx(float(found @ along), rel=1e-5)


def test_a_network_that_overflows_counts_up_to_there() -> None:
    rule = StructuredRule()
    theta = drawn(rule)
    steps = moments(rule, theta, 4)
    for step in steps[2:]:
        step.weights[0] = 0
    expected = backpropagate(rule, theta, steps)
    steps = moments(rule, theta, 4)
    for step in steps[2:]:
        step.weights[0] = 0
        step.group.parameters[2][0] = torch.inf
        step.group.states[0]["second"][0, 0] = torch.nan
    torch.testing.assert_close(backpropagate(rule, theta, steps), expected, rtol=0, atol=0)
    assert bool((expected != 0).any(1).all())


def test_compiled_rules_are_differentiated_as_they_are_written() -> None:
    rule = RULES["celo2"]()
    theta = drawn(rule)
    steps = moments(rule, theta, 2)
    expected = backpropagate(rule, theta, steps)
    rule.compiled = True
    assert torch.equal(backpropagate(rule, theta, steps), expected)
    assert rule.compiled


class Reading(StructuredRule):
    """A rule that reads a number out of its meta-parameters."""

    def directions(
        self, metas: Metas, items: Sequence[Item], progress: float, links: Links | None = None
    ) -> list[Tensor]:
        """Return the structured directions times a number."""
        return [
            found * metas["decay"][0, 0].item() for found in super().directions(metas, items, progress, links)
        ]


def test_rules_that_lose_derivatives_are_refused() -> None:
    rule = Reading()
    with pytest.raises(ValueError, match="the rule 'structured' cannot be differentiated: it takes item"):
        trainer(rule).gradient(drawn(rule))
