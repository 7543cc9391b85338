"""Fourier transforms along positions leave channels alone; along channels they tell them apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.metanet.test_rules import Net, check
from tests.models import image


def operator(p: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """A layer of a Fourier neural operator: one complex matrix per frequency."""
    z = torch.fft.rfft(F.linear(x, p["a"]), dim=1)[:, :3]
    z = torch.einsum("bki,kio->bko", z, torch.view_as_complex(p["w"]))
    return F.linear(torch.fft.irfft(z, n=5, dim=1), p["b"])


def mixer(p: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Both dimensions are mixed by a Fourier transform, as in FNet."""
    return F.linear(torch.fft.fft2(F.linear(x, p["a"])).real, p["b"])


@pytest.mark.parametrize(
    ("function", "shapes", "known"),
    [
        (
            operator,
            {"a": (4, 3), "w": (3, 4, 6, 2), "b": (2, 6)},
            """groups  p.a: 4  p.w: 6
               p.a  p.a 3
               p.w  3 p.a p.w 2
               p.b  2 p.w""",
        ),
        (
            mixer,
            {"a": (4, 3), "b": (2, 4)},
            """groups
               p.a  4 3
               p.b  2 4""",
        ),
    ],
    ids=["operator", "mixer"],
)
def test_transforms(
    function: Callable[..., Tensor], shapes: Mapping[str, tuple[int, ...]], known: str
) -> None:
    check(Net(function, **shapes), (image(2, 5, 3),), known)
