"""Laws of the update rules: steps commute with permutations of the spec, and rules start as their base."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from metanet import spec_of
from metanet.optim import LearnedOptimizer, MetaWeights, StructuredRule
from metanet.optim.pretrained import RULES
from metanet.optim.rules.graph_rule import GraphRule
from metanet.optim.rules.network import MixingRule, PerParameterRule
from metanet.optim.rules.newton_schulz import orthogonalize
from tests.metanet.optim.networks import (
    assert_permuted,
    cnn,
    mlp,
    mlp_spec,
    permuted_pair,
    train,
    weights,
)


@pytest.mark.parametrize(
    ("rule", "linked"),
    [(name, linked) for name, rule in RULES.items() for linked in {rule.needs_spec, True}],
)
@pytest.mark.parametrize("build", [mlp, cnn])
def test_steps_commute_with_permutations(rule: str, build: Callable[[], nn.Module], linked: bool) -> None:
    model, moved, element = permuted_pair(build)
    for network in (model, moved):
        optimizer = LearnedOptimizer(
            network.named_parameters(),
            total_steps=4,
            weights=weights(rule),
            spec=element.spec if linked else None,
        )
        train(network, optimizer, 2)
    assert_permuted(model, moved, element)


@pytest.mark.parametrize(
    "rule", [name for name, rule in RULES.items() if rule.linked and not rule.needs_spec]
)
def test_links_change_the_step(rule: str) -> None:
    ends = []
    for linked in (False, True):
        model = mlp().double()
        spec = spec_of(model, torch.zeros(2, 5).double())
        optimizer = LearnedOptimizer(
            model.named_parameters(),
            total_steps=4,
            weights=weights(rule),
            spec=spec if linked else None,
        )
        train(model, optimizer, 2)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert float((ends[0] - ends[1]).abs().max()) > 1e-5


@pytest.mark.parametrize("rule", [PerParameterRule(), MixingRule(), GraphRule()])
def test_networks_start_as_the_structured_rule(rule: StructuredRule) -> None:
    ends = []
    for made in (StructuredRule(), rule):
        model = mlp().double()
        spec = mlp_spec() if made.needs_spec else None
        optimizer = LearnedOptimizer(
            model.named_parameters(), total_steps=4, weights=MetaWeights.initial(made), spec=spec
        )
        train(model, optimizer, 3)
        ends.append([p.detach() for p in model.parameters()])
    for mine, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("changed", ["send_row_0", "receive_column_0", "private_row_1", "edge_1", "unit_0"])
def test_messages_between_units_decide_on_the_step(changed: str) -> None:
    """A unit hears of all tensors that meet it: a gradient of one layer changes the step of the next."""
    made, spec = weights("graph"), mlp_spec()
    other = MetaWeights("other", made.rule, {**made.metas, changed: made.metas[changed] + 0.3})
    moves = []
    for chosen in (made, other):
        model = mlp().double()
        optimizer = LearnedOptimizer(model.named_parameters(), total_steps=4, weights=chosen, spec=spec)
        train(model, optimizer, 1)
        moves.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert float((moves[0] - moves[1]).abs().max()) > 1e-6


def test_units_carry_what_one_layer_does_to_the_next() -> None:
    steps = []
    for size in (1.0, -1.0):
        model = mlp().double()
        optimizer = LearnedOptimizer(
            model.named_parameters(), total_steps=4, weights=weights("graph"), spec=mlp_spec()
        )
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(len(name))
            gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.grad = gradient * (size if name == "3.weight" else 1.0)
        optimizer.step()
        steps.append(model[5].weight.detach())  # type: ignore[index]
    assert float((steps[0] - steps[1]).abs().max()) > 1e-6


def test_the_structured_rule_starts_as_muon_with_a_cosine() -> None:
    """Once the correction of the momentum's bias, which torch's Muon leaves out, has worn off."""
    model, twin = mlp().double(), mlp().double()
    steps, last = 120, 10
    learned = LearnedOptimizer(
        model.named_parameters(), total_steps=steps, weights=MetaWeights.initial(StructuredRule())
    )
    mine = [p for p in model.parameters() if p.ndim == 2]
    theirs = [p for p in twin.parameters() if p.ndim == 2]
    muon = torch.optim.Muon(theirs, lr=0.016, weight_decay=0.0, momentum=0.95, nesterov=True)
    before: list[torch.Tensor] = []
    for step in range(steps):
        if step == steps - last:
            before = [p.detach().clone() for p in (*mine, *theirs)]
        for group in muon.param_groups:
            group["lr"] = 0.016 * 0.5 * (1 + math.cos(math.pi * (step + 0.5) / steps))
        generator = torch.Generator().manual_seed(step)
        for first, second in zip(mine, theirs, strict=True):
            gradient = torch.randn(first.shape, generator=generator, dtype=first.dtype)
            first.grad, second.grad = gradient, gradient.clone()
        learned.step()
        muon.step()
    moves = [p.detach() - old for p, old in zip((*mine, *theirs), before, strict=True)]
    for ours, other in zip(moves[: len(mine)], moves[len(mine) :], strict=True):
        error = float((ours - other).norm() / other.norm())
        assert error < 0.05  # torch multiplies in bfloat16


def test_orthogonal_factors_keep_singular_vectors() -> None:
    matrix = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = orthogonalize(matrix)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.mT @ found @ v.mT
    values = inner.diagonal(dim1=-2, dim2=-1)
    assert bool((values > 0.6).all())
    assert bool((values < 1.3).all())
    torch.testing.assert_close(inner, torch.diag_embed(values), rtol=0, atol=1e-6)
    assert s.shape == values.shape
