"""Kept memory: one place per name, type and thread, and none of it in copies."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor, nn

from metanet.optim import LearnedOptimizer
from metanet.optim.buffers import Buffers
from metanet.optim.pretrained import MetaWeights
from tests.metanet.optim.networks import weights


def test_memory_stays_whatever_other_types_take() -> None:
    """Matrices in bfloat16 and in float32 alternate in every step."""
    buffers, wide, narrow = Buffers(), torch.zeros(()), torch.zeros((), dtype=torch.bfloat16)
    first = buffers.take("x", (4, 3), wide)
    assert buffers.take("x", (6, 2), narrow).dtype == torch.bfloat16
    assert buffers.take("x", (4, 3), wide) is first
    assert buffers.take("x", (2, 5), wide).data_ptr() == first.data_ptr()
    assert buffers.take("x", (5, 5), wide).data_ptr() != first.data_ptr()


def test_threads_and_copies_have_memory_of_their_own() -> None:
    buffers, like = Buffers(), torch.zeros(())
    mine = buffers.take("x", (4,), like).fill_(1)
    with ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(buffers.take, "x", (4,), like).result()
    copies = [copy.deepcopy(buffers), pickle.loads(pickle.dumps(buffers))]
    for other in (theirs, *(one.take("x", (4,), like) for one in copies)):
        other.fill_(2)
    assert bool((mine == 1).all())


def trained(seed: int, shared: MetaWeights, start: Barrier | None = None) -> list[Tensor]:
    """Take some steps on random gradients with a rule that others use too."""
    generator = torch.Generator().manual_seed(seed)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((80, 60), (40, 30))]
    optimizer = LearnedOptimizer(parameters, total_steps=40, weights=shared)
    if start is not None:
        start.wait()
    for _ in range(12):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("rule", ["structured", "small_fc"])
def test_optimizers_of_one_rule_step_at_the_same_time(rule: str) -> None:
    shared, start = weights(rule), Barrier(2)
    expected = [trained(seed, shared) for seed in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(trained, seed, shared, start) for seed in (0, 1)]
        found = [run.result() for run in running]
    for mine, theirs in zip(found, expected, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert torch.equal(one, other)
