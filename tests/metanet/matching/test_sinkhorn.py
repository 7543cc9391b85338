"""Sinkhorn's operator and its derivative, and re-basin by it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metanet import GroupElement, WeightSpec, spec_of
from metanet.blocks import entry_blocks, split
from metanet.elements.wreath import permute_block
from metanet.matching.doubly_stochastic import sinkhorn, unrolled_sinkhorn
from metanet.matching.mixing import mix_block
from metanet.matching.sinkhorn_rebasin import sinkhorn_matching
from metanet.matching.weights import weight_matching

MLP = WeightSpec.parse("groups  h: 6   k: 5\nu  h 4\nb  h\nw  k h\nc  k\nv  3 k")
HEADS = """\
groups   embed: 5   head: 3   v: 4 under head   h: 6
qkv      [(head v) | (head v)] embed
out      embed (head v)
up       h embed
down     embed h
table    9 embed
"""


def weights(spec: WeightSpec, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in spec.shapes.items()
    }


def test_sums_are_one_and_the_derivative_is_that_of_the_unrolled_iteration() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 5, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    weighting = torch.randn(2, 5, 5, generator=generator, dtype=torch.float64)
    matrix = sinkhorn(scores, tolerance=1e-13, max_iterations=1000)
    ones = torch.ones(2, 5, dtype=torch.float64)
    assert torch.allclose(matrix.sum(-1), ones, atol=1e-12)
    assert torch.allclose(matrix.sum(-2), ones, atol=1e-12)
    (implicit,) = torch.autograd.grad((matrix * weighting).sum(), scores)
    unrolled = unrolled_sinkhorn(scores, 300)
    assert torch.allclose(matrix, unrolled, atol=1e-12)
    (explicit,) = torch.autograd.grad((unrolled * weighting).sum(), scores)
    assert torch.allclose(implicit, explicit, atol=1e-7)
    assert explicit.abs().max() > 0.05
    assert torch.autograd.gradcheck(
        lambda x: sinkhorn(x, tolerance=1e-13, max_iterations=1000), (scores,), atol=1e-6
    )


def test_near_permutations_are_no_trouble() -> None:
    scores = 60.0 * torch.eye(6, dtype=torch.float64)[torch.randperm(6)] + torch.rand(6, 6)
    scores.requires_grad_()
    matrix = sinkhorn(scores)
    (gradient,) = torch.autograd.grad((matrix * torch.randn(6, 6)).sum(), scores)
    assert matrix.isfinite().all()
    assert gradient.abs().max() < 1e-6
    with pytest.raises(ValueError, match="square"):
        sinkhorn(torch.zeros(2, 3))


def test_permutation_matrices_mix_as_permutations_act() -> None:
    spec = WeightSpec.parse(HEADS)
    state = weights(spec, 0)
    element = GroupElement.random(spec, torch.Generator().manual_seed(1))
    matrices = {
        name: torch.eye(p.shape[-1], dtype=torch.float64)[p] for name, p in element.permutations.items()
    }
    for name, axes in spec.entries:
        for block, value in zip(entry_blocks(name, axes), split(state[name], axes, spec.sizes), strict=True):
            parents = block.parents(spec)
            mixed = mix_block(value, block.atoms, parents, lambda _, atom: matrices[atom.group])
            expected = permute_block(value, block.atoms, parents, element.permutations, start=0)
            assert torch.equal(mixed, expected)


@pytest.mark.parametrize("text", [str(MLP), HEADS], ids=["mlp", "heads"])
def test_planted_permutations_are_recovered(text: str) -> None:
    spec = WeightSpec.parse(text)
    b = weights(spec, 0)
    planted = GroupElement.random(spec, torch.Generator().manual_seed(1))
    found = sinkhorn_matching(spec, planted @ b, b, begin="barycentre", steps=30)
    assert found.element.allclose(planted)
    assert found.after == 0.0
    assert found.before > 1.0
    assert found.history[0] == found.before


def test_relabelling_the_networks_relabels_the_element() -> None:
    a, b = weights(MLP, 1), weights(MLP, 2)
    g, h = (GroupElement.random(MLP, torch.Generator().manual_seed(seed)) for seed in (3, 4))
    found = sinkhorn_matching(MLP, a, b, steps=15)
    relabelled = sinkhorn_matching(MLP, g @ a, h @ b, steps=15)
    assert relabelled.element.allclose(g @ found.element @ h.inverse())
    assert not found.element.allclose(GroupElement.identity(MLP))
    assert found.after < found.before


def test_fixed_groups_stay() -> None:
    found = sinkhorn_matching(MLP, weights(MLP, 1), weights(MLP, 2), fixed=["h"], steps=20)
    assert found.moved.get("h", 0.0) == 0.0
    assert found.moved["k"] > 0


@pytest.mark.parametrize("objective", ["midpoint", "random"])
def test_the_midpoint_is_no_worse_than_after_weight_matching(objective: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 4, generator=generator)
    y = (x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 0.5).long()

    def network() -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3))

    def trained(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), 2e-2)
        for _ in range(60):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}

    a, b = trained(0), trained(1)
    model = network()
    spec = spec_of(model, x[:1])

    def loss(state: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(model, state, (x,)), y)

    def at_midpoint(element: GroupElement) -> float:
        moved = element @ b
        return float(loss({name: (a[name] + moved[name]) / 2 for name in a}).detach())

    found = sinkhorn_matching(spec, a, b, loss, objective=objective, steps=25)  # type: ignore[arg-type]
    by_weights = at_midpoint(weight_matching(spec, a, b).element)
    assert found.history[0] == pytest.approx(by_weights, rel=1e-5)
    assert at_midpoint(found.element) == pytest.approx(found.after, rel=1e-5)
    # On this pair it does better, so the gradient reaches the element.
    assert found.after < 0.98 * by_weights
    assert found.before == pytest.approx(at_midpoint(GroupElement.identity(spec)), rel=1e-5)
    with pytest.raises(ValueError, match="do not go together"):
        sinkhorn_matching(spec, a, b, loss, objective="distance")
    with pytest.raises(ValueError, match="steps=0"):
        sinkhorn_matching(spec, a, b, steps=0)
