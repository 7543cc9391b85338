"""Nested groups: derived to their full extent, and not one too many."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod

import pytest
import torch
from torch import Tensor, nn

from metanet import GroupElement, WeightSpec, spec_of, testing, verify
from metanet.axis import Perm, bound_to, parse_axes
from metanet.elements.wreath import permute_block
from metanet.features import WeightFeatures
from metanet.graphs.conversion import edge_values, graph_schema
from metanet.nesting.analysis import with_nesting
from metanet.nesting.labels import READERS, Step, Tensors, lines, numbered
from metanet.nesting.readers import labels_of
from metanet.skeleton import Operation
from metanet.verification import NESTED
from tests.models import ARCHITECTURES, image


class Heads(nn.Module):
    """Attention on ``[b, s, 6]`` with 2 kv heads, 2 queries each, widths 3 and 5, and a variation of it."""

    def __init__(
        self, change: Callable[[Heads, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    ) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 12), nn.Linear(6, 6), nn.Linear(6, 10)
        self.o = nn.Linear(20, 6)
        self.gain, self.slope = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4))
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = (
            layer(x).view(b, s, -1, w).transpose(1, 2) for layer, w in ((self.q, 3), (self.k, 3), (self.v, 5))
        )
        if self.change is not None:
            q, k = self.change(self, q, k)
        k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.o(y.transpose(1, 2).reshape(b, s, -1))
        return out


def rms(module: Heads, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return nn.functional.rms_norm(q, (3,)), nn.functional.rms_norm(k, (3,))


def rms_gain(module: Heads, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return nn.functional.rms_norm(q, (3,)) * module.gain, k


def softmax_of_heads(module: Heads, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return torch.softmax(q, 1), k


def softmax_of_width(module: Heads, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return torch.softmax(q, -1), k


def mean_of_heads(module: Heads, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return q + k.mean(1, keepdim=True), k


def bias_of_heads(module: Heads, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    return q * module.slope[:, None, None], k


def nesting(spec: WeightSpec) -> dict[str, str]:
    """Return the parents of nested groups."""
    return {group.name: group.parent for group in spec.groups if group.parent is not None}


FULL = {"q.query": "q.head", "q.qk": "q.head", "v.v": "q.head"}
SHARED = {"q.query": "q.head", "v.v": "q.head"}
ATTENTION: dict[
    str, tuple[Callable[[Heads, Tensor, Tensor], tuple[Tensor, Tensor]] | None, dict[str, str]]
] = {
    "plain": (None, FULL),
    "norm over widths": (rms, FULL),
    "gain shared by heads": (rms_gain, SHARED),
    "softmax over heads": (softmax_of_heads, SHARED),
    "softmax over widths": (softmax_of_width, FULL),
    "mean over heads": (mean_of_heads, SHARED),
    "slope of every head": (bias_of_heads, FULL),
}


def assert_full(model: nn.Module, *inputs: Tensor, expected: dict[str, str]) -> WeightSpec:
    """Derive, compare what is nested, verify, and hold elements to the group laws on the real weights."""
    spec = spec_of(model, *inputs)
    assert nesting(spec) == expected, str(spec)
    verification = verify(spec, model, *inputs)
    assert verification.ok, str(verification)
    assert not verification.dead, str(verification)
    assert (NESTED in verification.errors) == bool(expected)
    model = model.double()
    weights = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    testing.assert_group_laws(spec.select(weights), weights, tolerance=1e-8)
    return spec


@pytest.mark.parametrize("name", ATTENTION)
def test_widths_and_queries_are_permuted_in_every_head_on_their_own(name: str) -> None:
    change, expected = ATTENTION[name]
    spec = assert_full(Heads(change), image(2, 4, 6), expected=expected)
    assert not spec.lost


class Multiquery(nn.Module):
    """Attention by einsum, in which the width of values belongs to a query: a chain of three."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Parameter(torch.randn(2, 3, 4, 6)), nn.Parameter(torch.randn(2, 4, 6))
        self.v, self.o = nn.Parameter(torch.randn(2, 3, 5, 6)), nn.Linear(30, 2)

    def forward(self, x: Tensor) -> Tensor:
        q = torch.einsum("bsd,hgwd->bhgsw", x, self.q)
        k, v = torch.einsum("bsd,hwd->bhsw", x, self.k), torch.einsum("bsd,hgwd->bhgsw", x, self.v)
        scores = torch.softmax(torch.einsum("bhgsw,bhtw->bhgst", q, k), -1)
        y = torch.relu(torch.einsum("bhgst,bhgtw->bshgw", scores, v))
        out: Tensor = self.o(y.flatten(2))
        return out


class Experts(nn.Module):
    """Stacked gated experts with a dense router; ``mix`` makes the hidden units of experts one."""

    def __init__(self, mix: str = "") -> None:
        super().__init__()
        self.router = nn.Linear(6, 3)
        self.up, self.down = nn.Parameter(torch.randn(3, 8, 6)), nn.Parameter(torch.randn(3, 6, 4))
        self.embed, self.gain, self.head = nn.Linear(5, 6), nn.Parameter(torch.ones(4)), nn.Linear(6, 2)
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        gate, up = torch.matmul(x.expand(3, *x.shape), self.up.transpose(1, 2)).chunk(2, -1)
        y = nn.functional.silu(gate) * up
        if self.mix == "gain":
            y = y * self.gain
        if self.mix == "max":
            y = y - y.amax(0, keepdim=True)
        z = torch.bmm(y, self.down.transpose(1, 2))
        weights = torch.softmax(self.router(x), -1)
        out: Tensor = self.head(torch.einsum("ebd,be->bd", z, weights))
        return out


class Cells(nn.Module):
    """A recurrent network whose recurrence stays within each of three heads, as in an sLSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(5, 12), nn.Linear(12, 2)
        self.recurrent, self.bias = nn.Parameter(torch.randn(3, 4, 4)), nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(x.shape[0], 3, 4)
        for step in range(x.shape[1]):
            fed = self.inp(x[:, step]).view(-1, 3, 4)
            state = torch.tanh(fed + torch.einsum("bhi,hoi->bho", state, self.recurrent) + self.bias)
        out: Tensor = self.out(state.flatten(1))
        return out


def channels(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 2))


CHANNELS: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "group norm": (
        lambda: channels(nn.Conv2d(3, 12, 3), nn.GroupNorm(3, 12), nn.ReLU()),
        {"layer0.within": "layer0.group"},
    ),
    "instance norm": (
        lambda: channels(
            nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 1, groups=4), nn.InstanceNorm2d(12, affine=True), nn.ReLU()
        ),
        {"layer0.within": "layer0.group", "layer1.within": "layer0.group"},
    ),
    "transposed": (
        lambda: channels(
            nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 12, 2, groups=2), nn.BatchNorm2d(12), nn.GELU()
        ),
        {"layer0.within": "layer0.group", "layer1": "layer0.group"},
    ),
    "shuffled": (
        lambda: channels(nn.Conv2d(3, 8, 3), nn.ChannelShuffle(2), nn.Conv2d(8, 12, 1, groups=2), nn.GELU()),
        {
            "layer0.within": "layer0.group_2",
            "layer0.group_2": "layer0.group",
            "layer2.within": "layer0.group",
        },
    ),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_channels_are_permuted_in_every_group_on_their_own(name: str) -> None:
    factory, expected = CHANNELS[name]
    assert_full(factory(), image(2, 3, 6, 6), expected=expected)


def test_a_chain_of_three() -> None:
    spec = assert_full(Multiquery(), image(2, 4, 6), expected={"q_2": "q", "q_3": "q", "v": "q_2"})
    assert spec.ancestors("v") == ("q", "q_2")
    assert spec.copies("v") == 6


def test_hidden_units_of_stacked_experts_are_permuted_in_every_expert() -> None:
    spec = assert_full(Experts(), image(4, 5), expected={"up_2": "up"})
    assert [str(axis).rstrip("'") for axis in spec.axes["down"]] == ["up", "down", "up_2"]
    for mix in ("gain", "max"):
        assert_full(Experts(mix), image(4, 5), expected={})


def test_cells_are_permuted_in_every_head() -> None:
    spec = assert_full(Cells(), image(2, 3, 5), expected={"inp.1": "inp.0"})
    assert [str(axis).rstrip("'+") for axis in spec.axes["recurrent"]] == ["inp.0", "inp.1", "inp.1"]


def skeleton(rows: str, *operations: Operation) -> WeightSpec:
    """Return a spec with a skeleton of its own."""
    parsed = WeightSpec.parse(rows)
    return WeightSpec(parsed.groups, parsed.entries, operations)


def value(entry: str, spec: str) -> Operation:
    return Operation("parameter", (), (("value", entry),), (), parse_axes(spec))


def test_what_goes_with_another_index_of_the_same_group_is_not_nested() -> None:
    rows = "groups  p: 2   q: 3   o: 4\nx  p q\nw  (p o) q"
    spec = skeleton(
        rows,
        value("x", "p q"),
        Operation("linear", (0,), (("weight", "w"),), (), parse_axes("p (p o)")),
    )
    assert nesting(with_nesting(spec)) == {"o": "p"}
    equation = (("equation", "pq,poq->po"),)
    spec = skeleton(
        rows.replace("(p o) q", "p o q"),
        value("x", "p q"),
        value("w", "p o q"),
        Operation("einsum", (0, 1), (), equation, parse_axes("p o")),
    )
    assert nesting(with_nesting(spec)) == {"q": "p", "o": "p"}


@pytest.mark.parametrize(("ends", "expected"), [(3, {"f": "e"}), (4, {})])
def test_rows_of_the_same_blocks_carry_their_experts(ends: int, expected: dict[str, str]) -> None:
    up, down = value("up", "e d f"), value("down", "e f d")
    spec = skeleton(
        "groups  e: 3   f: 4   d: 2\nup  e d f\ndown  e f d",
        Operation("input", (), (), (), parse_axes("12 d")),
        up,
        down,
        Operation("cumsum", (), (), (), parse_axes("3")),
        Operation("cumsum", (), (), (), parse_axes("3")),
        Operation("grouped_mm", (0, 1, 3), (), (), parse_axes("12 f")),
        Operation("relu", (5,), (), (), parse_axes("12 f")),
        Operation("grouped_mm", (6, 2, ends), (), (), parse_axes("12 d")),
    )
    found = with_nesting(spec)
    assert {child: parent for child, parent in nesting(found).items() if child == "f"} == expected
    rows = [str(found.operations[i].axes[0]) for i in (5, 6, 7)]
    assert rows == (["e"] * 3 if expected else ["12"] * 3)


@pytest.mark.parametrize("kind", ["sort", "mylib.mix.default", "lstm", "argmax"])
def test_an_operation_that_is_not_known_keeps_what_it_meets_from_being_nested(kind: str) -> None:
    rows = "groups  p: 2   q: 3   r: 4\nx  p q\ny  p r"
    operation = Operation(kind, (0,), (), (), parse_axes("p q"))
    spec = skeleton(rows, value("x", "p q"), operation, value("y", "p r"))
    assert nesting(with_nesting(spec)) == {"r": "p"}
    assert labels_of(spec, operation) is None


def test_the_form_of_an_operation_that_is_not_foreseen_is_not_read() -> None:
    spec = skeleton("groups  p: 2   q: 3\nx  p q", value("x", "p q"))
    for kind, attributes in (("mean", ()), ("transpose", ()), ("max", (("dims", (1,)), ("keepdim", False)))):
        operation = Operation(kind, (0,), (), attributes, parse_axes("p"))
        assert labels_of(spec, operation) is None, kind


def on_images(factory: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor]:
    return factory(), image(2, 3, 6, 6)


GRAPHS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "heads": lambda: (Heads(), image(2, 4, 6)),
    "attention": lambda: (ARCHITECTURES["mha"][0](), ARCHITECTURES["mha"][1][0]),
    "grouped": lambda: (ARCHITECTURES["grouped_cnn"][0](), ARCHITECTURES["grouped_cnn"][1][0]),
    "experts": lambda: (Experts(), image(4, 5)),
    "chain": lambda: (Multiquery(), image(2, 4, 6)),
    "cells": lambda: (Cells(), image(2, 2, 5)),
    **{name: partial(on_images, factory) for name, (factory, _) in CHANNELS.items()},
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_nested_permutation_only_relabels_the_nodes_of_the_graph(name: str) -> None:
    model, x = GRAPHS[name]()
    spec = spec_of(model, x)
    weights = WeightFeatures.from_state_dict(spec, testing.random_weights(spec))
    element = GroupElement.random(weights.spec, torch.Generator().manual_seed(0))
    assert any(group.parent for group in spec.groups)
    schema = graph_schema(weights.spec)
    origin = torch.arange(schema.num_nodes)
    for block, start in zip(schema.nodes, schema.node_starts, strict=False):
        parents = []
        for at, atom in enumerate(block.atoms):
            parent = spec.group[atom.group].parent if isinstance(atom, Perm) else None
            place = -1 if parent is None else bound_to(at, parent, block.atoms, [0] * len(block.atoms))
            assert place is not None, f"{atom} without {parent} on {block}"
            parents.append(place)
        units = torch.arange(prod(block.shape))
        moved = permute_block(units.reshape(block.shape), block.atoms, parents, element.permutations, start=0)
        origin[start : start + units.numel()] = start + moved.flatten()
    structure = schema.tensors()
    source, target = structure["edge_index"]

    def edges(values: Tensor, names: Tensor) -> list[tuple[float, ...]]:
        columns = [names[source], names[target], structure["edge_block"], values[0, :, 0]]
        rows = torch.cat(
            [torch.stack([c.double() for c in columns], 1), structure["edge_position"].double()], 1
        )
        return sorted(map(tuple, rows.tolist()))

    before, after = edge_values(schema, weights), edge_values(schema, element @ weights)
    assert not torch.equal(before, after)
    assert edges(before, torch.arange(schema.num_nodes)) == edges(after, origin)


def test_a_reader_of_your_own_lets_an_operation_keep_nested_units(monkeypatch: pytest.MonkeyPatch) -> None:
    def scale_channels(t: Tensors) -> list[Step]:
        given = t.named("input", "gain")
        labels = numbered("d", 3)
        tensors = given["input"], t.result
        return [Step((*(lines(axes, labels) for axes in tensors), lines(given["gain"], labels[1:2])))]

    operation = Operation("scale_channels", (0,), (("gain", "g"),), (), parse_axes("2 (p q) 5"))
    spec = skeleton("groups  p: 2   q: 3\nx  2 (p q) 5\ng  (p q)", value("x", "2 (p q) 5"), operation)
    assert nesting(with_nesting(spec)) == {}
    monkeypatch.setitem(READERS, "scale_channels", scale_channels)
    assert nesting(with_nesting(spec)) == {"q": "p"}
