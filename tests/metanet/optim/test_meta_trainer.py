"""The meta-training loop: particles are independent, and a run continues bit for bit."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from metanet.optim.meta.group import Group, apply
from metanet.optim.meta.tasks import Classification, MLPTask
from metanet.optim.meta.trainer import ESTIMATORS, Estimator, MetaSettings, MetaTrainer
from metanet.optim.pretrained import RULES


def task(generator: torch.Generator, activation: str = "relu") -> MLPTask:
    inputs = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    data = Classification(inputs, (inputs[:, :3].argmax(1)).long())
    return MLPTask(data, (6, 5 + int(torch.randint(3, (), generator=generator)), 4, 3), activation, 8)


@pytest.mark.parametrize("name", list(RULES))
def test_particles_move_as_they_would_alone(name: str) -> None:
    rule = RULES[name]()
    generator = torch.Generator().manual_seed(1)
    inner = task(generator)
    metas = rule.unpack(torch.randn(3, rule.size, generator=generator, dtype=torch.float64) * 0.5)
    start = [p.double() for p in inner.initialize(3, generator)]
    indices = torch.randint(60, (2, 3, 8), generator=generator)
    data = Classification(inner.data.inputs.double(), inner.data.labels)
    inner = MLPTask(data, inner.widths, inner.activation, 8)

    def trained(chosen: slice) -> list[torch.Tensor]:
        own = [p[chosen].clone() for p in start]
        states = [rule.state(p.shape, p) for p in own]
        group = Group(inner, 9, 0, own, states)
        for batch in indices:
            _, gradients = inner.gradients(group.parameters, batch[chosen])
            apply(rule, {k: m[chosen] for k, m in metas.items()}, inner.roles, group, gradients)
            group.step += 1
        return group.parameters

    together = trained(slice(0, 3))
    for i in range(3):
        for mine, theirs in zip(trained(slice(i, i + 1)), together, strict=True):
            torch.testing.assert_close(mine[0], theirs[i], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "estimator"),
    [("mixing", "pes"), *(("structured", estimator) for estimator in ESTIMATORS)],
)
def test_a_run_continues_bit_for_bit(name: str, estimator: Estimator) -> None:
    rule = RULES[name]()
    settings = MetaSettings(groups=2, pairs=2, stretch=3, horizons=(4, 9), estimator=estimator)
    straight, resumed = MetaTrainer(rule, task, settings), MetaTrainer(rule, task, settings, seed=5)
    theta = torch.zeros(rule.size)
    for _ in range(3):
        straight.gradient(theta)
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    for _ in range(3):
        expected, figures = straight.gradient(theta)
        found, same = resumed.gradient(theta)
        assert torch.equal(found, expected)
        assert same == figures
    assert bool(expected.isfinite().all())
    assert bool((expected != 0).any())
    other: Estimator = "es" if estimator == "pes" else "pes"
    for changed, message in (
        (replace(settings, groups=1), "groups = 2, the settings say 1"),
        (replace(settings, pairs=3), "pairs = 2, the settings say 3"),
        (replace(settings, estimator=other), f"estimator = {estimator}, the settings say {other}"),
    ):
        with pytest.raises(ValueError, match=f"the saved run has {message}"):
            MetaTrainer(rule, task, changed).load_state_dict(straight.state_dict())


def test_full_strategies_take_whole_trainings() -> None:
    rule = RULES["structured"]()
    settings = MetaSettings(groups=1, pairs=2, stretch=3, horizons=(7, 7), estimator="full-es")
    trainer = MetaTrainer(rule, task, settings)
    first = trainer.groups[0].horizon  # shorter, to stagger the groups
    for step in range(2):
        _, figures = trainer.gradient(torch.zeros(rule.size))
        assert "final" in figures
        assert trainer.inner_steps == 4 * (first + 7 * step)


def test_unknown_estimators_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected an estimator among pes, es, .* found 'spsa'"):
        MetaSettings(estimator="spsa")  # type: ignore[arg-type]
