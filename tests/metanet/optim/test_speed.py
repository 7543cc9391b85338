"""What was done for speed changes no number: memory side by side, products of blocks, chunks."""

from __future__ import annotations

import types

import pytest
import torch

from metanet import spec_of
from metanet.optim import LearnedOptimizer, MetaWeights
from metanet.optim.buffers import Buffers, laid, padded, together
from metanet.optim.meta.group import Group, apply
from metanet.optim.meta.tasks import Classification, MLPTask
from metanet.optim.pretrained import RULES
from metanet.optim.rule import UpdateRule
from metanet.optim.rules import newton_schulz, structured
from metanet.optim.rules.newton_schulz import COEFFICIENTS, STEPS, orthogonalize
from metanet.testing import peak_allocation
from tests.metanet.optim.networks import mlp, train, weights


def test_views_side_by_side_are_found_again() -> None:
    tensors = [torch.randn(3, 5, 7), torch.randn(3, 4), torch.randn(3, 2, 9)]
    flat = torch.zeros(2, 3, padded(tensors))
    views = laid(flat, tensors)
    for i, view in enumerate(views):
        view.fill_(i + 1)
    whole = together(views, 2)
    assert whole is not None
    assert whole.data_ptr() == flat.data_ptr()
    assert whole.shape == flat.shape
    assert {float(x) for x in flat.unique()} == {0.0, 1.0, 2.0, 3.0}, "gaps stay zero"
    assert together(views[::-1], 2) is None
    assert together(views[:2], 2) is None
    assert together([view.clone() for view in views], 2) is None


def test_buffers_are_kept_and_grow() -> None:
    buffers, like = Buffers(), torch.zeros(())
    first = buffers.take("a", (2, 3), like)
    assert buffers.take("a", (2, 3), like) is first
    assert buffers.take("a", (3, 2), like).data_ptr() == first.data_ptr()
    assert buffers.take("a", (40, 3), like).shape == (40, 3)
    assert buffers.take("a", (2, 3), like.double()).dtype == torch.float64


@pytest.mark.parametrize("name", ["structured", "per_parameter", "mixing", "celo2", "small_fc"])
def test_particles_side_by_side_move_as_particles_apart(name: str) -> None:
    rule = RULES[name]()
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    task = MLPTask(Classification(inputs, (inputs[:, 0] > 0).long()), (6, 7, 5, 2), "gelu", 8)
    metas = rule.unpack(torch.randn(4, rule.size, generator=generator, dtype=torch.float64) * 0.5)
    start = [p.double() for p in task.initialize(4, generator)]
    ends = []
    for side_by_side in (True, False):
        own = [p.clone() for p in start]
        group = Group(task, 9, 0, own, [rule.state(p.shape, p) for p in own])
        if side_by_side:
            group.lay(own, rule)
            assert together([state["momenta"] for state in group.states], 2) is not None
        for step in range(3):
            indices = torch.randint(40, (4, 8), generator=torch.Generator().manual_seed(step))
            _, gradients = task.gradients(group.parameters, indices)
            if not side_by_side:
                gradients = [gradient.clone() for gradient in gradients]
            apply(rule, metas, task.roles, group, gradients)
            group.step += 1
        ends.append(group.parameters)
    for mine, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", [(5, 6, 9), (5, 9, 6), (1, 256, 256), (2, 12, 48), (3, 48, 12)])
def test_orthogonal_factors_are_those_of_the_plain_iteration(shape: tuple[int, int, int]) -> None:
    """In blocks, on the Gram matrix, and some matrices at a time."""
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b, c = COEFFICIENTS
    x = matrices / torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True)
    x = x if shape[1] <= shape[2] else x.mT
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    found = orthogonalize(matrices)
    torch.testing.assert_close(found, x if shape[1] <= shape[2] else x.mT, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["structured", "per_parameter", "mixing"])
@pytest.mark.parametrize("role", ["embedding", "hidden", "huge"])
def test_a_step_holds_chunks_and_one_matrix(name: str, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices between units: the mixture and what the products need of one at a time; others: chunks.

    Of huge matrices that is given back; of others it is kept for the next step.
    """
    if role == "huge":
        monkeypatch.setattr(newton_schulz, "KEPT", 1)
        monkeypatch.setattr(structured, "KEPT", 1)
    parameters = [torch.zeros(600, 500, requires_grad=True) for _ in range(3)]
    group = {"params": parameters, "role": "embedding" if role == "embedding" else "hidden"}
    optimizer = LearnedOptimizer([group], total_steps=9, weights=weights(name))
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    state = 4 * len(parameters)
    first, later = (peak_allocation(optimizer.step) / 4 / parameters[0].numel() for _ in range(2))
    assert first < state + (3 if role == "embedding" else 7), "what is kept, chunks included"
    if role == "huge":
        assert 1 < later < 4
    else:
        assert later < (0.2 if role == "embedding" or name == "structured" else 1.2)


@pytest.mark.parametrize("rule", list(RULES))
def test_parts_of_a_step_are_the_whole_one(rule: str) -> None:
    """What a rule moves part by part is what it calls its direction."""
    ends = []
    for whole in (False, True):
        made = RULES[rule]()
        if whole:
            made.move = types.MethodType(UpdateRule.move, made)  # type: ignore[method-assign]
        metas = {name: meta.clone() for name, meta in weights(rule).metas.items()}
        model = mlp().double()
        spec = spec_of(model, torch.zeros(2, 5).double())
        optimizer = LearnedOptimizer(
            model.named_parameters(),
            total_steps=4,
            weights=MetaWeights(rule, made, metas),
            spec=spec,
            weight_decay=0.1,
        )
        train(model, optimizer, 3)
        ends.append([p.detach() for p in model.parameters()])
    for mine, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_peaks_count_what_is_held_at_a_time() -> None:
    def work() -> None:
        x = torch.zeros(1000)
        y = x + 1
        del x
        many = [y * i for i in range(5)]
        view = many[0].view(10, 100)[3:]
        del many, y
        torch.cat([view, view]).sum()

    assert peak_allocation(work) == 4 * 6000


def test_many_small_tensors_are_stacked_in_bounded_buckets() -> None:
    parameters = [torch.zeros(200, 300, requires_grad=True) for _ in range(40)]
    optimizer = LearnedOptimizer(parameters, total_steps=9, weights=weights("structured"))
    counts = [len(bucket.parameters) for bucket in optimizer.buckets()]
    assert sum(counts) == 40
    assert max(counts) == 17
    assert len(counts) == 3


def test_stacking_small_tensors_takes_the_same_memory_every_time() -> None:
    parameters = [torch.zeros(40, 60, requires_grad=True) for _ in range(20)]
    optimizer = LearnedOptimizer(parameters, total_steps=9, weights=weights("structured"))
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    assert peak_allocation(optimizer.step) / 4 < 0.1 * sum(p.numel() for p in parameters)
