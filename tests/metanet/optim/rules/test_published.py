"""Published learned optimizers: their sizes, their features against plain formulas, what they promise."""

from __future__ import annotations

import pytest
import torch

from metanet.optim import LearnedOptimizer, MetaWeights
from metanet.optim.pretrained import RULES
from metanet.optim.rule import Item
from metanet.optim.rules.factored import DECAYS, FLOOR, Edges, accumulate, factored_state, features
from tests.metanet.optim.networks import mlp, train, weights


@pytest.mark.parametrize(("rule", "size"), [("small_fc", 2402), ("celo2", 329), ("deep_sets", 2787)])
def test_sizes_are_the_published_ones(rule: str, size: int) -> None:
    """Less two outputs that Celo2 does not use (18 weights) and the decay that Deep Sets learns."""
    assert RULES[rule]().size == size


@pytest.mark.parametrize("rule", ["small_fc", "celo2", "structured", "mixing"])
def test_states_hold_four_floats_per_parameter(rule: str) -> None:
    weight = torch.zeros(200, 300, requires_grad=True)
    optimizer = LearnedOptimizer([weight], total_steps=3, weights=weights(rule))
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    kept = sum(t.numel() for t in optimizer.state[weight].values() if isinstance(t, torch.Tensor))
    assert kept <= 4.1 * weight.numel()


@pytest.mark.parametrize("shape", [(2, 70, 600), (2, 40)])
def test_features_are_those_of_the_plain_formulas(shape: tuple[int, ...]) -> None:
    """In chunks; the matrices are larger than one."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    state = factored_state(shape, values)
    rows, columns = torch.zeros(3, *shape[:2]).double(), torch.zeros(3, shape[0], shape[-1]).double()
    second, momenta = torch.zeros_like(values), torch.zeros(3, *shape).double()
    for count in (1, 2):
        gradient = torch.randn(shape, generator=generator, dtype=torch.float64)
        item = Item("hidden", values, gradient, state, count)
        accumulate(item)
        square = gradient**2
        second = 0.999 * second + 0.001 * square
        for i, decay in enumerate(DECAYS):
            momenta[i] = decay * momenta[i] + (1 - decay) * gradient
            rows[i] = decay * rows[i] + (1 - decay) * (square.mean(2) if len(shape) == 3 else square)
            if len(shape) == 3:
                columns[i] = decay * columns[i] + (1 - decay) * square.mean(1)
    if len(shape) == 3:
        share = rows / (rows.mean(2, keepdim=True) + 1e-9)
        factor = 1 / (share[..., None] * columns[:, :, None]).sqrt()
        seen = [rows[..., None].expand_as(factor), columns[:, :, None].expand_as(factor)]
    else:
        factor, seen = 1 / (rows + 1e-9).sqrt(), [rows, rows]
    inverse = (second + 1e-6) ** -0.5
    expected = [gradient, values, *momenta, second, *(momenta * inverse), inverse, *(gradient * factor)]
    expected += [*(momenta * factor), *seen[0], *seen[1], *((seen[0] + 1e-8) ** -0.5)]
    expected += [*((seen[1] + 1e-8) ** -0.5)]
    expected = [e.flatten(1) for e in expected]
    edges = Edges.of(state)
    half = values[0].numel() // 2
    for part in (slice(0, half), slice(half, 2 * half)):
        at = (slice(0, len(values)), part)
        found = features(item, at, edges, short=False, out=values.new_empty(len(values), 16, half))
        wanted = torch.stack([e[:, part] for e in expected], 1)
        longer = features(item, at, edges, short=True, out=values.new_empty(len(values), 18, half))
        torch.testing.assert_close(longer[:, :10], wanted[:, :10], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(longer[:, 12:], wanted[:, 10:16], rtol=1e-6, atol=1e-9)
        own = gradient.flatten(1)[:, part]
        torch.testing.assert_close(longer[:, 10], own.clamp(-0.1, 0.1))
        torch.testing.assert_close(longer[:, 11], own * inverse.flatten(1)[:, part], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found, wanted[:, :16], rtol=1e-6, atol=1e-9)
    weight, bias = torch.randn(1, 5, 12, dtype=torch.float64), torch.randn(1, 5, dtype=torch.float64)
    units = values.new_zeros(len(values), 5, half)
    at = (slice(0, len(values)), slice(half, 2 * half))
    edges.add(edges.biases(weight, bias), units, at)
    rest = torch.stack(expected[16:], 1)
    rest = rest / (rest.square().mean(2, keepdim=True).sqrt() + FLOOR)
    torch.testing.assert_close(units, weight @ rest[..., half:] + bias[..., None], rtol=1e-6, atol=1e-9)


def test_directions_of_celo2_have_size_one() -> None:
    weight = torch.zeros(20, 30, dtype=torch.float64, requires_grad=True)
    optimizer = LearnedOptimizer([weight], total_steps=3, weights=weights("celo2"), lr=2.0)
    weight.grad = torch.randn(20, 30, dtype=torch.float64)
    optimizer.step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(2e-3, rel=1e-6)


def test_functionals_start_as_deep_sets() -> None:
    ends = []
    for name in ("deep_sets", "unf"):
        model = mlp().double()
        initial = MetaWeights.initial(RULES[name]())
        train(model, LearnedOptimizer(model.named_parameters(), total_steps=4, weights=initial), 3)
        ends.append([p.detach() for p in model.parameters()])
    for mine, theirs in zip(*ends, strict=True):
        assert torch.equal(mine, theirs)
