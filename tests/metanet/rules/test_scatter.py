"""Writing to listed places, and places whose number depends on the values."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.metanet.test_rules import Net, check
from tests.models import image

Weights = Mapping[str, Tensor]
EDGES = torch.tensor([[0, 1, 2, 3, 3], [1, 2, 3, 0, 1]])


def messages(p: Weights, x: Tensor) -> Tensor:
    """A graph layer: sums and maxima over neighbours."""
    h = F.linear(x, p["a"])
    sent = F.linear(h[EDGES[0]], p["c"])
    total = torch.zeros_like(h).index_add(0, EDGES[1], sent)
    places = EDGES[1][:, None].expand_as(sent)
    largest = torch.zeros_like(h).scatter_reduce(0, places, sent, "amax")
    return F.linear(torch.relu(h + total + largest.scatter_add(0, places, sent)), p["b"])


def some_rows(p: Weights, x: Tensor) -> Tensor:
    """Another layer for the rows that a condition chooses."""
    h = F.linear(x, p["a"])
    rows = (x[:, 0] > 0).nonzero().squeeze(-1)
    return F.linear(torch.zeros_like(h).index_add(0, rows, F.linear(h[rows], p["c"])) + h, p["b"])


def masked_rows(p: Weights, x: Tensor) -> Tensor:
    """The same with a mask of truth values, in place."""
    h = F.linear(x, p["a"])
    chosen = x[:, 0] > 0
    h[chosen] = F.linear(h[chosen], p["c"])
    return F.linear(h, p["b"])


def placed_rows(p: Weights, x: Tensor) -> Tensor:
    """Rows of one layer take the places of another's, as images do in a text."""
    h = F.linear(x, p["a"])
    mask = torch.tensor([True, False, True, False])[:, None].expand_as(h)
    return F.linear(h.masked_scatter(mask, F.linear(x[:2], p["d"])), p["b"])


def masked_units(p: Weights, x: Tensor) -> Tensor:
    """A mask that tells units apart."""
    h = F.linear(x, p["a"])
    mask = torch.tensor([True, False, True, False]).expand_as(h)
    return F.linear(h.masked_scatter(mask, x), p["b"])


def written_columns(p: Weights, x: Tensor) -> Tensor:
    """Single units are written over."""
    h = F.linear(x, p["a"])
    return F.linear(h.index_fill(1, torch.tensor([1, 2]), 0.5), p["b"])


STREAM = """groups  p.a: 4
            p.a  p.a 3
            p.c  p.a p.a
            p.b  2 p.a"""
NOTHING = """groups
             p.a  4 3
             p.b  2 4"""
KNOWN: dict[str, tuple[Callable[..., Tensor], dict[str, tuple[int, ...]], str]] = {
    "messages": (messages, {"a": (4, 3), "c": (4, 4), "b": (2, 4)}, STREAM),
    "some rows": (some_rows, {"a": (4, 3), "c": (4, 4), "b": (2, 4)}, STREAM),
    "masked rows": (masked_rows, {"a": (4, 3), "c": (4, 4), "b": (2, 4)}, STREAM),
    "placed rows": (
        placed_rows,
        {"a": (4, 3), "d": (4, 3), "b": (2, 4)},
        """groups  p.a: 4
           p.a  p.a 3
           p.d  p.a 3
           p.b  2 p.a""",
    ),
    "masked units": (masked_units, {"a": (4, 3), "b": (2, 4)}, NOTHING),
    "written columns": (written_columns, {"a": (4, 3), "b": (2, 4)}, NOTHING),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_groups(name: str) -> None:
    function, shapes, known = KNOWN[name]
    check(Net(function, **shapes), (image(4, 3),), known)
