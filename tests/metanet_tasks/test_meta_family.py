"""The distribution of inner tasks of meta-training."""

from __future__ import annotations

import pytest
import torch

from metanet.optim.meta.tasks import Classification
from metanet_tasks.optim.meta_task import MLPFamily

DATA = [Classification(torch.zeros(3, 4), torch.arange(3))]


@pytest.mark.parametrize("name", ["scales", "widenings"])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (2.0, 1.0), (float("nan"), 1.0), (1.0, float("inf"))])
def test_bounds_that_nothing_lies_between_are_refused(name: str, bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=f"expected {name} with 0 < low <= high"):
        MLPFamily(DATA, scales=bounds) if name == "scales" else MLPFamily(DATA, widenings=bounds)


def test_tasks_are_drawn_within_the_bounds() -> None:
    family = MLPFamily(DATA, scales=(0.5, 2.0), widenings=(4.0, 16.0))
    tasks = [family(torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert all(0.5 <= task.scale <= 2.0 and 4.0 <= task.widening <= 16.0 for task in tasks)
    assert len({(task.scale, task.widening) for task in tasks}) > 1
