"""A model read in another's order, stretch by stretch, against the group element acting on all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from metanet import GroupElement, spec_of
from metanet_zoo.merging.aligned import AlignedSource, AxisMove, element_moves
from metanet_zoo.merging.sources import SafetensorsSource


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Tanh(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip
    state = {
        name: value.double() if value.is_floating_point() else value
        for name, value in net.state_dict().items()
    }
    return spec_of(net, torch.zeros(2, 3, 16, 16)), state


@pytest.mark.parametrize("kinds", [(), "all"])
def test_any_stretch_is_that_of_the_moved_tensor(
    network: Any, tmp_path: Path, kinds: Literal["all"] | tuple[()]
) -> None:
    spec, state = network
    file = tmp_path / "b.safetensors"
    save_file(state, file)
    element = GroupElement.random(spec, torch.Generator().manual_seed(1), kinds=kinds)
    wanted = element.act({name: state[name] for name in spec})
    source = AlignedSource(SafetensorsSource([file]), element_moves(element, list(spec)))
    for name, entry in source.entries().items():
        for start, stop in [(0, entry.size), (entry.size // 3, entry.size), (0, entry.size // 3)]:
            raw = np.empty((stop - start) * entry.item_size, np.uint8)
            source.read(name, start, stop, raw)
            values = torch.from_numpy(raw.view(np.float64 if entry.dtype == "F64" else np.int64))
            torch.testing.assert_close(values, wanted.get(name, state[name]).reshape(-1)[start:stop])
    source.close()


def test_moves_that_do_not_fit_are_refused(network: Any, tmp_path: Path) -> None:
    _, state = network
    file = tmp_path / "b.safetensors"
    save_file(state, file)
    source = SafetensorsSource([file])
    with pytest.raises(ValueError, match=r"'7.bias' of shape \[5\].*sizes \[4\]"):
        AlignedSource(source, {"7.bias": AxisMove((np.arange(4),))})
    with pytest.raises(ValueError, match="of I64 cannot be scaled"):
        AlignedSource(source, {"1.num_batches_tracked": AxisMove((), (), (np.ones(1),))})
