"""Compiled loops: they do what the hand-batched route does, are refused where there are none, and say why."""

from __future__ import annotations

from collections.abc import Callable
from os import environ
from shutil import which

import pytest
import torch
from torch import Tensor

from metanet.optim import LearnedOptimizer, MetaWeights
from metanet.optim.pretrained import RULES
from metanet.optim.rule import Item, UpdateRule
from metanet.optim.rules import fused
from metanet.optim.rules.celo2 import Celo2Rule
from tests.metanet.optim.networks import mlp, train, weights

SHAPES = (("hidden", (3, 40, 24)), ("output", (3, 10, 40)), ("vector", (3, 40)), ("embedding", (3, 9, 8)))
"""Of particles; the sizes of one are no sizes of another."""


def moved(rule: UpdateRule, dtype: torch.dtype) -> list[Tensor]:
    """Return directions and states of a second step, with meta-parameters of every particle's own."""
    generator = torch.Generator().manual_seed(0)
    metas = rule.unpack(torch.randn(3, rule.size, generator=generator) * 0.5)
    metas = {name: meta.to(dtype) for name, meta in metas.items()}
    values = [torch.randn(shape, generator=generator).to(dtype) for _, shape in SHAPES]
    states = [rule.state(value.shape, value) for value in values]
    found: list[Tensor] = []
    for count in (1, 2):
        items = [
            Item(role, value, torch.randn(value.shape, generator=generator).to(dtype), state, count)
            for (role, _), value, state in zip(SHAPES, values, states, strict=True)
        ]
        found = rule.directions(metas, items, 0.3)
    return [*found, *(kept for state in states for kept in state.values())]


def test_loops_do_what_the_batched_products_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncompiled, in float64, in more than one part."""
    monkeypatch.setattr(fused, "_compiled", lambda function: function)
    monkeypatch.setattr("metanet.optim.rules.factored.CHUNK", 64)
    for mine, theirs in zip(
        moved(Celo2Rule().compiling(), torch.float64), moved(Celo2Rule(), torch.float64), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.skipif(which(environ.get("CXX", "g++")) is None, reason="there is no C++ compiler")
def test_compiled_loops_do_what_the_batched_products_do() -> None:
    for mine, theirs in zip(
        moved(Celo2Rule().compiling(), torch.float32), moved(Celo2Rule(), torch.float32), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    ends = []
    for compile in (False, True):
        model = mlp()
        optimizer = LearnedOptimizer.from_pretrained(
            weights("celo2"), model, total_steps=5, lr=10.0, compile=compile
        )
        train(model, optimizer, 4)
        ends.append([p.detach() for p in model.parameters()])
    for mine, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if not rule.compilable])
def test_rules_without_loops_refuse(name: str) -> None:
    """Before a spec is asked for."""
    with pytest.raises(ValueError, match=f"the rule '{name}' has no loops to compile"):
        LearnedOptimizer(
            mlp().named_parameters(), total_steps=3, weights=MetaWeights.initial(RULES[name]()), compile=True
        )


def test_the_meta_weights_of_others_stay_as_they_are() -> None:
    shared = weights("celo2")
    optimizer = LearnedOptimizer(mlp().parameters(), total_steps=3, weights=shared, compile=True)
    assert optimizer.weights.rule.compiled
    assert not shared.rule.compiled
    assert optimizer.weights.hash == shared.hash


def test_no_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(function: Callable[..., object]) -> Callable[..., object]:
        def call(*_: object) -> object:
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found in cpp.cxx: (None, 'g++')")

        return call

    monkeypatch.setattr(fused, "_compiled", missing)
    with pytest.raises(RuntimeError, match=r"needs a C\+\+ compiler.*leave compile out"):
        moved(Celo2Rule().compiling(), torch.float32)


def test_a_compiled_training_step_leaves_the_optimizer_as_it_is() -> None:
    """Tracing it would break and compile anew at every bucket."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    ends = []
    for compile in (False, True):
        model = mlp()
        optimizer = LearnedOptimizer.from_pretrained(weights("celo2"), model, total_steps=5, lr=10.0)
        gradients = [torch.ones_like(parameter) for parameter in model.parameters()]

        def step(model: torch.nn.Module, optimizer: LearnedOptimizer, gradients: list[Tensor]) -> None:
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = gradient * 2
            optimizer.step()

        run = torch.compile(step, backend=backend) if compile else step
        for _ in range(3):
            run(model, optimizer, gradients)
        ends.append([parameter.detach() for parameter in model.parameters()])
    assert len(graphs) <= 2
    for mine, theirs in zip(*ends, strict=True):
        assert torch.equal(mine, theirs)
