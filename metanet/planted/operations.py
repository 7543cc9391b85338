"""The operations that random networks with a known group are drawn from, and what they do to the units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metanet.planted.network import LENGTH, SIDE, Feature, Operation, PlantedNetwork, Step, pooled
from metanet.planted.slots import Label, alike, cut, factored, fresh, grid, resolve, unite

Unary: TypeAlias = Callable[[Tensor], Tensor]
Binary: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def random_network(seed: int) -> PlantedNetwork:
    """Draw a small network of linear, convolutional, recurrent and attention layers, and their like."""
    return PlantedNetwork(seed, OPERATIONS)


class Stack(nn.Module):
    """One matrix per head: ``y_ho = sum_i w_hoi x_hi``.

    Args:
        heads: h.
        width: i.
        out: o.
    """

    def __init__(self, heads: int, width: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(heads, out, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[…, (h i)]`` to ``[…, (h o)]``."""
        x = x.unflatten(-1, (self.weight.shape[0], -1))
        return torch.einsum("...hi,hoi->...ho", x, self.weight).flatten(-2)


def weigh(network: PlantedNetwork, x: Feature) -> None:
    """A linear layer or a convolution."""
    out = fresh(network.draw.choice([2, 4, 6, 6, 8]))
    bias = network.draw.random() < 0.7
    module: nn.Module
    if x.kind == "image":
        kernel = network.draw.choice([1, 3])
        if network.draw.random() < 0.25:
            module = nn.ConvTranspose2d(x.width, len(out), kernel, padding=kernel // 2, bias=bias)
            name = network.layer(module, weight=[x.labels, out], bias=[out])
        else:
            module = nn.Conv2d(x.width, len(out), kernel, padding=kernel // 2, bias=bias)
            name = network.layer(module, weight=[out, x.labels], bias=[out])
    else:
        module = nn.Linear(x.width, len(out), bias=bias)
        name = network.layer(module, weight=[out, x.labels], bias=[out])
    network.add(x.kind, out, lambda v, m: m[name](v[x.index]), x, side=x.side)


def grouped(network: PlantedNetwork, x: Feature) -> None:
    """A grouped or depthwise convolution."""
    groups = network.draw.choice([2, 3, x.width])
    if x.kind != "image" or x.width % groups or x.index == 0:
        return
    each = network.draw.choice([1, 2])
    if groups == x.width:
        outer, inner = x.labels, fresh(1, fixed=True)
    else:
        found = factored(x.labels, groups)
        if found is None:
            return
        outer, inner = found
    each_out: list[Label] = fresh(each) if each > 1 else [()]
    out = grid(outer, each_out)
    network.mixed += [(outer, inner), (outer, each_out)]
    module = nn.Conv2d(x.width, groups * each, 3, padding=1, groups=groups)
    name = network.layer(module, {1: outer}, weight=[out, inner], bias=[out])
    network.add("image", out, lambda v, m: m[name](v[x.index]), x, side=x.side)


def norm(network: PlantedNetwork, x: Feature) -> None:
    """A normalisation over all channels, per channel, or per group of channels."""
    groups = network.draw.choice([1, 2, 3])
    if x.kind != "image":
        kind = network.draw.choice([nn.LayerNorm, nn.RMSNorm])
        name = network.per_unit(kind(x.width), x.labels)
    elif groups > 1 and x.width % groups == 0 and x.width > groups:
        found = factored(x.labels, groups)
        if found is None:
            return
        network.mixed.append(found)
        name = network.per_unit(nn.GroupNorm(groups, x.width), x.labels)
    else:
        name = network.per_unit(nn.BatchNorm2d(x.width), x.labels)
    network.add(x.kind, x.labels, lambda v, m: m[name](v[x.index]), x, side=x.side)


def activation(network: PlantedNetwork, x: Feature) -> None:
    """A function of every unit alone."""
    function: Unary = network.draw.choice([torch.relu, torch.tanh, F.gelu, F.silu, torch.sin])
    network.add(x.kind, x.labels, lambda v, _: function(v[x.index]), x, side=x.side)


def merge(network: PlantedNetwork, x: Feature) -> None:
    """A residual sum or a gate with an earlier value; a vector gates an image's channels."""
    fitting = [
        y
        for y in network.features
        if y.width == x.width
        and y is not x
        and (y.kind == x.kind or {x.kind, y.kind} == {"image", "vector"})
        and (y.side == x.side or "vector" in (x.kind, y.kind))
        and alike(x.labels, y.labels)
    ]
    if not fitting:
        return
    y = network.draw.choice(fitting)
    unite(x.labels, y.labels)
    wide, other = (y, x) if x.kind == "vector" else (x, y)
    choices: list[Binary] = [torch.add, torch.mul]
    operation = network.draw.choice(choices)

    def step(v: Sequence[Tensor], m: nn.ModuleDict) -> Tensor:
        second = v[other.index]
        return operation(v[wide.index], second if wide.kind == other.kind else second[:, :, None, None])

    network.add(wide.kind, wide.labels, step, x, y, side=wide.side)


def concat(network: PlantedNetwork, x: Feature) -> None:
    """The channels of an earlier value before those of this one."""
    fitting = [
        y for y in network.features if y.kind == x.kind and y.side == x.side and y.width + x.width < 20
    ]
    if not fitting:
        return
    y = network.draw.choice(fitting)
    dim = 1 if x.kind == "image" else -1
    labels = [*y.labels, *x.labels]
    network.add(x.kind, labels, lambda v, _: torch.cat([v[y.index], v[x.index]], dim), x, y, side=x.side)


def halves(network: PlantedNetwork, x: Feature) -> None:
    """Two parts of the channels: one gates the other, or each goes its own way."""
    dim = 1 if x.kind == "image" else -1
    half = x.width // 2
    first, second = x.labels[:half], x.labels[half : 2 * half]
    if x.width < 4 or any(len(label) != 1 for label in map(resolve, x.labels)):
        return
    gated = network.draw.random() < 0.5 and x.width % 2 == 0
    cut(x.labels)
    if gated:
        unite(first, second)
        network.add(x.kind, first, lambda v, _: F.glu(v[x.index], dim), x, side=x.side)
        return
    at = network.draw.randrange(1, x.width - 1)
    for start, stop in ((0, at), (at, x.width)):
        part = x.labels[start:stop]
        network.mark(part)
        network.add(x.kind, part, _narrow(x, dim, start, stop), x, side=x.side)


def _narrow(x: Feature, dim: int, start: int, stop: int) -> Step:
    return lambda v, _: v[x.index].narrow(dim, start, stop - start)


def pad(network: PlantedNetwork, x: Feature) -> None:
    """New channels of zeros on both sides, as in a zero-padded shortcut."""
    if x.width > 12:
        return
    before, after = network.draw.choice([1, 2]), network.draw.choice([0, 2])
    last = (0, 0, 0, 0) if x.kind == "image" else ()
    first, last_ones = fresh(before), fresh(after)
    for zeros in (first, last_ones):
        network.mark(zeros)
    labels = [*first, *x.labels, *last_ones]
    network.add(x.kind, labels, lambda v, _: F.pad(v[x.index], (*last, before, after)), x, side=x.side)


def pool(network: PlantedNetwork, x: Feature) -> None:
    """A smaller image, or the mean over positions."""
    if x.kind == "image" and x.side == SIDE and network.draw.random() < 0.5:
        choices: list[Callable[[Tensor, int], Tensor]] = [F.max_pool2d, F.avg_pool2d]
        function = network.draw.choice(choices)
        network.add("image", x.labels, lambda v, _: function(v[x.index], 2), x, side=x.side // 2)
    elif x.kind != "vector":
        network.add("vector", x.labels, lambda v, _: pooled(v[x.index], x), x)


def flatten(network: PlantedNetwork, x: Feature) -> None:
    """All positions of all channels as one vector."""
    if x.kind == "vector" or x.width * max(x.side**2, LENGTH) > 64:
        return
    positions = fresh(x.side**2 if x.kind == "image" else LENGTH, fixed=True)
    labels = grid(x.labels, positions) if x.kind == "image" else grid(positions, x.labels)
    network.add("vector", labels, lambda v, _: v[x.index].flatten(1), x)


def unflatten(network: PlantedNetwork, x: Feature) -> None:
    """A vector as a table, averaged over its rows or columns."""
    rows = network.draw.choice([2, 3])
    if x.kind != "vector" or x.width % rows or x.width <= rows:
        return
    found = factored(x.labels, rows)
    if found is None:
        return
    which = network.draw.choice([0, 1])
    network.add("vector", found[which], lambda v, _: v[x.index].unflatten(1, (rows, -1)).mean(2 - which), x)


def attention(network: PlantedNetwork, x: Feature) -> None:
    """Heads with grouped queries, or with a fixed order of the widths of queries and keys."""
    if x.kind != "sequence":
        return
    shared, heads = network.draw.choice([1, 2]), network.draw.choice([1, 2, 3])
    width, value = network.draw.choice([2, 4]), network.draw.choice([2, 3])
    placed = network.draw.random() < 0.3
    h, r = fresh(heads), fresh(shared)
    e, f = fresh(width, fixed=placed), fresh(value)
    network.mixed += [(h, [*r, *e, *f]), (r, e)]
    names = [
        network.layer(nn.Linear(x.width, len(out)), weight=[out, x.labels], bias=[out])
        for out in (grid(h, r, e), grid(h, e), grid(h, f))
    ]

    def step(v: Sequence[Tensor], m: nn.ModuleDict) -> Tensor:
        y = v[x.index]
        parts = [
            m[name](y).unflatten(-1, (n, -1)).transpose(1, 2)
            for name, n in zip(names, (heads * shared, heads, heads), strict=True)
        ]
        if placed:
            turn = torch.arange(1.0, width + 1).to(y.dtype)
            parts[0] = parts[0] * turn
        out = F.scaled_dot_product_attention(parts[0], parts[1], parts[2], enable_gqa=True)
        return out.transpose(1, 2).flatten(2)

    network.add("sequence", grid(h, r, f), step, x)


def again(network: PlantedNetwork, x: Feature) -> None:
    """A linear layer that was used before."""
    if x.kind == "image":
        return
    known = [
        (name, layer)
        for name, layer in network.layers.items()
        if isinstance(layer, nn.Linear)
        and layer.in_features == x.width
        and alike(x.labels, network.entries[f"layers.{name}.weight"][1])
    ]
    if not known:
        return
    name, _ = network.draw.choice(known)
    out, read = network.entries[f"layers.{name}.weight"]
    unite(x.labels, read)
    network.add(x.kind, out, lambda v, m: m[name](v[x.index]), x)


def stacked(network: PlantedNetwork, x: Feature) -> None:
    """One matrix per head, in one tensor."""
    heads = network.draw.choice([2, 3])
    if x.kind == "image" or x.width % heads or (found := factored(x.labels, heads)) is None:
        return
    outer, inner = found
    out = fresh(network.draw.choice([2, 4]))
    module = Stack(heads, len(inner), len(out))
    network.mixed += [(outer, inner), (outer, out)]
    name = network.layer(module, {1: outer, 2: outer}, weight=[outer, out, inner])
    network.add(x.kind, grid(outer, out), lambda v, m: m[name](v[x.index]), x)


def shuffle(network: PlantedNetwork, x: Feature) -> None:
    """Heads times widths become widths times heads."""
    heads = network.draw.choice([2, 3])
    if x.kind == "image" or x.width % heads or (found := factored(x.labels, heads)) is None:
        return
    labels = grid(*found[::-1])
    network.add(
        x.kind, labels, lambda v, _: v[x.index].unflatten(-1, (heads, -1)).transpose(-1, -2).flatten(-2), x
    )  # fmt: skip


def outer(network: PlantedNetwork, x: Feature) -> None:
    """Every unit of one vector times every one of another."""
    fitting = [y for y in network.features if y.kind == "vector" and y.width * x.width <= 40]
    if x.kind != "vector" or not fitting:
        return
    y = network.draw.choice(fitting)
    labels = grid(x.labels, y.labels)
    network.add(
        "vector", labels, lambda v, _: (v[x.index][:, :, None] * v[y.index][:, None]).flatten(1), x, y
    )  # fmt: skip


def ordered(network: PlantedNetwork, x: Feature) -> None:
    """Something that tells all channels apart."""
    if x.kind == "image" or network.draw.random() < 0.6:
        return
    for label in x.labels:
        for unit in resolve(label):
            unit.fixed = True
    ramp = torch.arange(1.0, x.width + 1)
    operation: Unary = network.draw.choice(
        [lambda y: y * ramp.to(y.dtype), lambda y: y.cumsum(-1), lambda y: y + y.flip(-1)]
    )
    network.add(x.kind, x.labels, lambda v, _: operation(v[x.index]), x)


def symmetric(network: PlantedNetwork, x: Feature) -> None:
    """A function of all channels that knows no order of them."""
    dim = 1 if x.kind == "image" else -1
    operation: Unary = network.draw.choice(
        [
            lambda y: y.softmax(dim),
            lambda y: y - y.mean(dim, keepdim=True),
            lambda y: y / (1 + y.square().sum(dim, keepdim=True)).sqrt(),
            lambda y: y * (y.amax(dim, keepdim=True) > 1),
        ]
    )
    network.add(x.kind, x.labels, lambda v, _: operation(v[x.index]), x, side=x.side)


def recurrent(network: PlantedNetwork, x: Feature) -> None:
    """A recurrent layer, in one direction or in both."""
    if x.kind != "sequence":
        return
    kind, gates = network.draw.choice([(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
    size = network.draw.choice([2, 3, 5])
    both = network.draw.random() < 0.4
    module = kind(x.width, size, batch_first=True, bidirectional=both)
    entries = {}
    out = []
    for suffix in ("", "_reverse") if both else ("",):
        units = fresh(size)
        out += units
        entries[f"weight_ih_l0{suffix}"] = [units * gates, x.labels]
        entries[f"weight_hh_l0{suffix}"] = [units * gates, units]
        entries[f"bias_ih_l0{suffix}"] = entries[f"bias_hh_l0{suffix}"] = [units * gates]
    name = network.layer(module, None, **entries)
    network.add("sequence", out, lambda v, m: m[name](v[x.index])[0], x)


OPERATIONS: tuple[Operation, ...] = (
    weigh, weigh, weigh, grouped,
    norm, activation, activation, merge,
    merge, merge, concat, halves,
    pad, pool, flatten, unflatten,
    attention, attention, recurrent, again,
    again, stacked, shuffle, outer,
    ordered, symmetric,
)  # fmt: skip
