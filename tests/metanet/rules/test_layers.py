"""Layers whose rules stand in several families: windows, spectral norms, shuffles, bags, adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from metanet import spec_of, verify
from tests.metanet.test_rules import Net, check
from tests.models import image

Weights = Mapping[str, Tensor]


def windows(p: Weights, x: Tensor) -> Tensor:
    """Attention in shifted windows with relative positions, as in Swin."""
    x = torch.roll(F.linear(x, p["a"]), (-1, -1), (1, 2))
    x = x.view(2, 2, 2, 2, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, 8)
    q, k, v = F.linear(x, p["qkv"]).reshape(-1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
    places = (torch.arange(16) * 5 % 9).reshape(4, 4)
    scores = q @ k.transpose(-2, -1) + p["table"][places.view(-1)].view(4, 4, 2).permute(2, 0, 1)
    x = F.linear((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 4, 8), p["out"])
    x = x.view(2, 2, 2, 2, 2, 8).permute(0, 1, 3, 2, 4, 5).reshape(2, 4, 4, 8)
    return F.linear(torch.roll(x, (1, 1), (1, 2)), p["b"])


def merging(p: Weights, x: Tensor) -> Tensor:
    """Four neighbouring patches side by side, as between the stages of Swin."""
    x = F.linear(x, p["a"])
    x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
    return F.linear(F.layer_norm(x, (16,), p["gain"]), p["b"])


def adapted(p: Weights, x: Tensor) -> Tensor:
    """A linear map with a low-rank adapter."""
    h = F.linear(x, p["w"]) + F.linear(F.linear(x, p["down"]), p["up"]) * 0.5
    return F.linear(h.relu(), p["b"])


def repeated(p: Weights, x: Tensor) -> Tensor:
    """Every index along one dimension is repeated a number of times of its own."""
    h = F.linear(x, p["a"]).repeat_interleave(torch.tensor([1, 2, 1, 3]), 1)
    return F.linear(h, p["b"])


def interleaved(p: Weights, x: Tensor) -> Tensor:
    """Gates and values take turns, as in the experts of GPT-OSS."""
    h = F.linear(x, p["up"])
    return F.linear(h[..., ::2].sigmoid() * h[..., 1::2], p["b"])


def contracted(p: Weights, x: Tensor) -> Tensor:
    """Tensordot, a dimension on a diagonal, and a sum of it."""
    h = torch.tensordot(F.linear(x, p["a"]), p["c"], dims=([3], [1]))
    return F.linear(torch.diag_embed(h).sum(-1), p["b"])


FUNCTIONS: dict[str, tuple[Callable[..., Tensor], dict[str, tuple[int, ...]], str]] = {
    "windows": (
        windows,
        {"a": (8, 3), "qkv": (24, 8), "table": (9, 2), "out": (8, 8), "b": (2, 8)},
        """groups  p.a: 8  p.qkv.head: 2  p.qkv.qk: 4 under p.qkv.head  p.qkv.v: 4 under p.qkv.head  p.out: 8
           p.a      p.a 3
           p.qkv    [(p.qkv.head p.qkv.qk) | (p.qkv.head p.qkv.qk) | (p.qkv.head p.qkv.v)] p.a
           p.table  9 p.qkv.head
           p.out    p.out (p.qkv.head p.qkv.v)
           p.b      2 p.out""",
    ),
    "merging": (
        merging,
        {"a": (4, 3), "gain": (16,), "b": (2, 16)},
        """groups  p.a: 4
           p.a     p.a 3
           p.gain  [p.a | p.a | p.a | p.a]
           p.b     2 [p.a | p.a | p.a | p.a]""",
    ),
    "adapter": (
        adapted,
        {"w": (4, 3), "down": (2, 3), "up": (4, 2), "b": (2, 4)},
        """groups  p.w: 4  p.down: 2
           p.w     p.w 3
           p.down  p.down 3
           p.up    p.w p.down
           p.b     2 p.w""",
    ),
    "repeated": (
        repeated,
        {"a": (4, 3), "b": (2, 4)},
        """groups  p.a: 4
           p.a  p.a 3
           p.b  2 p.a""",
    ),
    "interleaved": (
        interleaved,
        {"up": (8, 3), "b": (2, 4)},
        """groups  p.up: 4
           p.up  (p.up 2) 3
           p.b   2 p.up""",
    ),
    "contracted": (
        contracted,
        {"a": (4, 3), "c": (5, 4), "b": (2, 5)},
        """groups  p.a: 4  p.c: 5
           p.a  p.a 3
           p.c  p.c p.a
           p.b  2 p.c""",
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    function, shapes, known = FUNCTIONS[name]
    check(Net(function, **shapes), (image(2, 4, 4, 3),), known)


MODULES: dict[str, tuple[Callable[[], nn.Module], Tensor, list[tuple[str, int]]]] = {
    "spectral norm of a linear layer": (
        lambda: nn.Sequential(spectral_norm(nn.Linear(3, 4)), nn.ReLU(), spectral_norm(nn.Linear(4, 2))),
        image(2, 3),
        [("layer0", 4)],
    ),
    "spectral norm of a convolution": (
        lambda: nn.Sequential(
            spectral_norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), spectral_norm(nn.Conv2d(4, 2, 3))
        ),
        image(2, 3, 6, 6),
        [("layer0", 4)],
    ),
    "channel shuffle": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.ChannelShuffle(2), nn.Conv2d(8, 4, 1, groups=2), nn.Conv2d(4, 2, 1)
        ),
        image(2, 3, 4, 4),
        [("layer0.within", 2), ("layer0.group", 2), ("layer0.group_2", 2), ("layer2.within", 2)],
    ),
    "local response norm tells channels apart": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.LocalResponseNorm(2), nn.Conv2d(4, 2, 1)),
        image(2, 3, 4, 4),
        [],
    ),
    "exact nearest neighbours": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.Upsample(scale_factor=2, mode="nearest-exact"), nn.Conv2d(4, 2, 1)
        ),
        image(2, 3, 4, 4),
        [("layer0", 4)],
    ),
    "bags": (
        lambda: nn.Sequential(nn.EmbeddingBag(11, 4, mode="mean"), nn.Linear(4, 2)),
        torch.arange(10).reshape(2, 5),
        [("layer0", 4)],
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str) -> None:
    factory, x, groups = MODULES[name]
    model = factory()
    spec = spec_of(model, x)
    assert [(group.name, group.size) for group in spec.groups] == groups
    assert not spec.lost
    assert verify(spec, model, x).ok


@pytest.mark.parametrize(("other", "groups"), [(torch.tanh, ["p.a"]), (lambda h: h.flip(-1), [])])
def test_both_branches_of_a_condition_are_read(other: Callable[[Tensor], Tensor], groups: list[str]) -> None:
    def chosen(p: Weights, x: Tensor) -> Tensor:
        h = F.linear(x, p["a"])
        h = torch.cond(x.sum() > 0, lambda h: h.relu(), other, (h,))
        return F.linear(h, p["b"])

    spec = spec_of(Net(chosen, a=(4, 3), b=(2, 4)), image(2, 3))
    assert [group.name for group in spec.groups] == groups
    assert not spec.lost


def test_a_loop_over_steps_is_unknown_and_named() -> None:
    def looped(p: Weights, x: Tensor) -> Tensor:
        h = F.linear(x, p["a"])
        [h] = torch._higher_order_ops.while_loop(
            lambda h: h.sum() < 0, lambda h: (F.linear(h, p["c"]) + 1,), (h,)
        )
        return F.linear(h, p["b"])

    spec = spec_of(Net(looped, a=(4, 3), c=(4, 4), b=(2, 4)), image(2, 3))
    assert not spec.groups
    assert [lost.operation for lost in spec.lost] == ["while_loop"]
