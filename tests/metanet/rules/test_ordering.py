"""Sorting, selecting and routing by value: what is picked stays interchangeable."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metanet import spec_of, verify
from metanet.rules import RULES
from tests.metanet.test_rules import Net, check
from tests.models import image

x23, x53 = image(2, 3), image(5, 3)


@torch.library.custom_op("metanet_tests::blocks", mutates_args=())
def blocks(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiply every block of rows by its own matrix ``[i, o]``."""
    starts = [0, *ends.tolist()]
    parts = [rows[i:j] @ w for i, j, w in zip(starts, starts[1:], weight, strict=False)]
    return torch.cat(parts)


@blocks.register_fake
def _(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return rows.new_empty(len(rows), weight.shape[2])


@pytest.fixture(autouse=True)
def _blocks_have_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "metanet_tests.blocks.default", RULES["aten._grouped_mm.default"])


def sorted_units(p: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """A hidden layer is sorted: its ranks have a meaning, its units have none."""
    return F.linear(F.linear(x, p["a"]).sort(-1).values, p["b"])


def largest_units(p: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The two largest of the units, and what another layer says of them."""
    h = F.linear(x, p["a"])
    values, places = h.topk(2, -1)
    return F.linear(values * torch.gather(F.linear(x, p["b"]), -1, places), p["c"])


def after_relu(p: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Zeros tie, and which of equal units comes first depends on their order."""
    h = torch.relu(F.linear(x, p["a"]))
    return torch.gather(F.linear(x, p["b"]), -1, h.topk(2, -1).indices)


def numbers(p: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Indices are read as numbers."""
    return F.linear(x, p["a"]).argmax(-1).float()[:, None] * x


def codebook(p: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The nearest code replaces a vector."""
    h = F.linear(x, p["a"])
    distances = (h[:, None] - p["codes"]).square().sum(-1)
    return F.linear(F.embedding(distances.argmin(-1), p["codes"]), p["b"])


def compared(p: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Labels compared with 0, 1, … are unit vectors."""
    chosen = F.linear(x, p["router"]).argmax(-1)
    hot = (chosen[:, None] == torch.arange(4)).to(x.dtype)
    return torch.matmul(hot, p["codes"])


def switched(p: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """One of four experts, whose weights are taken by index."""
    scores = F.linear(x, p["router"]).softmax(-1)
    score, chosen = scores.max(-1)
    h = torch.bmm(p["up"][chosen], x.unsqueeze(-1)).relu()
    return torch.bmm(p["down"][chosen], h).squeeze(-1) * score[:, None]


def masked(p: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Two of four experts: all of them run, a scattered mask weights them."""
    scores, chosen = F.linear(x, p["router"]).softmax(-1).topk(2, -1)
    weights = torch.zeros(x.shape[0], 4, dtype=x.dtype).scatter(1, chosen, scores)
    h = torch.einsum("bi,efi->bef", x, p["up"]).relu()
    return torch.einsum("bef,eof,be->bo", h, p["down"], weights)


def one_hot(p: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The same with unit vectors."""
    scores, chosen = F.linear(x, p["router"]).softmax(-1).topk(2, -1)
    weights = (F.one_hot(chosen, 4) * scores[..., None]).sum(1)
    h = torch.einsum("bi,efi->bef", x, p["up"]).relu()
    return torch.einsum("bef,eof,be->bo", h, p["down"], weights)


def grouped(p: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Rows sorted by expert, multiplied block by block, and put back."""
    scores, chosen = F.linear(x, p["router"]).softmax(-1).topk(2, -1)
    experts, order = chosen.reshape(-1).sort()
    counts = torch.histc(experts.float(), bins=4, min=0, max=3)
    ends = counts.cumsum(0, dtype=torch.int32)
    rows = x[order // 2]
    h = blocks(rows, p["up"].transpose(-2, -1), ends).relu()
    y: Tensor = blocks(h, p["down"].transpose(-2, -1), ends)
    y = y * scores.reshape(-1)[order][:, None]
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return y[back].view(x.shape[0], 2, -1).sum(1)


def grouped_routing(p: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Experts of the best of two nodes only, each of whose scores is the sum of its two largest."""
    scores = F.linear(x, p["router"]).sigmoid()
    nodes = scores.view(-1, 2, 3).topk(2, -1)[0].sum(-1)
    best = nodes.topk(1, -1)[1]
    mask = torch.zeros_like(nodes).scatter_(1, best, 1)
    allowed = mask[:, :, None].expand(-1, 2, 3).reshape(-1, 6)
    chosen = scores.masked_fill(allowed == 0, -torch.inf).topk(2, -1)[1]
    return (scores.gather(1, chosen)[..., None] * p["out"][chosen]).sum(1)


def zeroed(p: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Scores are zero where a mask says so, and which zero is picked depends on its place."""
    scores = F.linear(x, p["router"])
    chosen = scores.masked_fill(scores < 0.5, 0.0).topk(2, -1).indices
    return p["out"][chosen].sum(1)


def doubled(p: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """The largest unit of two copies: rounding alone decides between the copies."""
    h = F.linear(x, p["a"])
    return p["out"][torch.cat([h, h], -1).argmax(-1)]


EXPERTS = """groups  p.router: 4  p.up: 5 under p.router
             p.router  p.router 3
             p.up      p.router p.up 3
             p.down    p.router 2 p.up"""
STACKED = {"router": (4, 3), "up": (4, 5, 3), "down": (4, 2, 5)}

KNOWN: dict[str, tuple[Net, tuple[Tensor, ...], str]] = {
    "sorted units": (
        Net(sorted_units, a=(4, 3), b=(2, 4)),
        (x23,),
        """groups  p.a: 4
           p.a  p.a 3
           p.b  2 4""",
    ),
    "largest units": (
        Net(largest_units, a=(4, 3), b=(4, 3), c=(2, 2)),
        (x23,),
        """groups  p.a: 4
           p.a  p.a 3
           p.b  p.a 3
           p.c  2 2""",
    ),
    "indices after a function with ties": (
        Net(after_relu, a=(4, 3), b=(4, 3)),
        (x23,),
        """groups
           p.a  4 3
           p.b  4 3""",
    ),
    "indices read as numbers": (
        Net(numbers, a=(4, 3)),
        (x23,),
        """groups
           p.a  4 3""",
    ),
    "indices of scores that a mask makes zero": (
        Net(zeroed, router=(4, 3), out=(4, 2)),
        (x23,),
        """groups
           p.router  4 3
           p.out     4 2""",
    ),
    "indices of units that occur twice": (
        Net(doubled, a=(4, 3), out=(8, 2)),
        (x23,),
        """groups
           p.a    4 3
           p.out  8 2""",
    ),
    "a codebook": (
        Net(codebook, a=(4, 3), codes=(6, 4), b=(2, 4)),
        (x23,),
        """groups  p.a: 4  p.codes: 6
           p.a      p.a 3
           p.codes  p.codes p.a
           p.b      2 p.a""",
    ),
    "labels compared with a range": (
        Net(compared, router=(4, 3), codes=(4, 2)),
        (x23,),
        """groups  p.router: 4
           p.router  p.router 3
           p.codes   p.router 2""",
    ),
    "one expert by index": (Net(switched, **STACKED), (x53,), EXPERTS.replace(" under p.router", "")),
    "two experts by a mask": (Net(masked, **STACKED), (x53,), EXPERTS),
    "two experts by unit vectors": (Net(one_hot, **STACKED), (x53,), EXPERTS),
    "routing to nodes, then to experts": (
        Net(grouped_routing, router=(6, 3), out=(6, 2)),
        (x53,),
        """groups  p.router.0: 2  p.router.1: 3
           p.router  (p.router.0 p.router.1) 3
           p.out     (p.router.0 p.router.1) 2""",
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_groups(name: str) -> None:
    model, inputs, known = KNOWN[name]
    check(model, inputs, known)


def test_rows_in_blocks_of_experts() -> None:
    shapes = {"router": (4, 4), "up": (4, 8, 4), "down": (4, 4, 8)}
    model, x = Net(grouped, **shapes), image(6, 4)
    spec = spec_of(model, x)
    assert [(group.name, group.size) for group in spec.groups] == [("p.router", 4), ("p.up", 8)]
    assert spec.group["p.up"].parent == "p.router"
    assert not spec.lost
    assert verify(spec, model, x).ok


def test_rows_in_blocks_that_are_told_apart_cost_the_experts() -> None:
    def ramp(p: Mapping[str, Tensor], x: Tensor) -> Tensor:
        experts, order = F.linear(x, p["router"]).argmax(-1).sort()
        ends = torch.histc(experts.float(), bins=4, min=0, max=3).cumsum(0, dtype=torch.int32)
        y: Tensor = blocks(x[order], p["up"], ends)
        return y * torch.arange(1.0, 7.0)[:, None]

    model, x = Net(ramp, router=(4, 4), up=(4, 4, 8)), image(6, 4)
    spec = spec_of(model, x)
    assert not spec.groups
    assert verify(spec, model, x).ok
