"""Patches taken from an image and added up again."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metanet import spec_of, verify
from tests.models import image


class Folded(nn.Module):
    """Channels unfolded to patches, mixed per channel and offset, folded back."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 2, 1)
        self.mix = nn.Conv1d(20, 20, 1, groups=5)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(self.stem(x), 2, stride=2)
        folded = F.fold(self.mix(patches), (6, 6), 2, stride=2)
        y: Tensor = self.head(folded)
        return y


def test_channels_stay_free_between_unfold_and_fold() -> None:
    model, x = Folded(), image(2, 3, 6, 6)
    spec = spec_of(model, x)
    assert not spec.lost
    [group] = spec.groups
    assert group.size == 5
    written = {name: " ".join(map(str, axes)).replace(group.name, "c") for name, axes in spec.entries}
    assert written["mix.weight"] == "(c 4) 4 1"
    assert written["head.weight"] == "2 c 1 1"
    verification = verify(spec, model, x)
    assert verification.ok, str(verification)
    assert not verification.dead


class Sampled(nn.Module):
    """A learned grid of features read at predicted places."""

    def __init__(self) -> None:
        super().__init__()
        self.grid = nn.Parameter(torch.randn(1, 5, 4, 4))
        self.places, self.head = nn.Linear(3, 2), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.tanh(self.places(x))[None, None]
        sampled = F.grid_sample(self.grid, places, align_corners=False)
        y: Tensor = self.head(sampled[0, :, 0].mT)
        return y


def test_channels_of_a_sampled_grid_are_free() -> None:
    model, x = Sampled(), image(6, 3)
    spec = spec_of(model, x)
    assert not spec.lost
    [group] = spec.groups
    written = {name: " ".join(map(str, axes)).replace(group.name, "c") for name, axes in spec.entries}
    assert written["grid"] == "1 c 4 4"
    assert written["places.weight"] == "2 3"
    assert written["head.weight"] == "2 c"
    verification = verify(spec, model, x)
    assert verification.ok, str(verification)
    assert not verification.dead
