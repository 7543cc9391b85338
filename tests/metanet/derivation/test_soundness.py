"""Random networks of random operations: whatever is derived keeps the function."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeAlias

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metanet import spec_of, verify
from tests.models import image


class Parameters(nn.Module):
    """Parameters that are made the first time a network runs."""

    def __init__(self) -> None:
        super().__init__()
        self.made = nn.ParameterList()
        self.next = 0

    def take(self, *shape: int) -> Tensor:
        """Return the next parameter."""
        if self.next == len(self.made):
            self.made.append(nn.Parameter(torch.randn(*shape)))
        self.next += 1
        parameter: Tensor = self.made[self.next - 1]
        return parameter


Step: TypeAlias = Callable[[random.Random, Parameters, list[Tensor]], Tensor]


def linear(r: random.Random, p: Parameters, xs: list[Tensor]) -> Tensor:
    x, out = xs[-1], r.choice([2, 4, 6, 8, 12])
    return F.linear(x, p.take(out, x.shape[-1]), p.take(out) if r.random() < 0.7 else None)


def activation(r: random.Random, p: Parameters, xs: list[Tensor]) -> Tensor:
    functions: list[Callable[[Tensor], Tensor]] = [
        torch.relu, torch.tanh, torch.sin, torch.abs, F.gelu, lambda x: torch.sin(3 * x), torch.square,
        lambda x: x.clamp(-1, 1), lambda x: x * torch.sigmoid(x), lambda x: torch.sin(2 * x + 1), torch.neg,
        lambda x: x * 0.5 + 1, lambda x: x / (1 + x.abs()), lambda x: torch.where(x > 0, x, x.tanh()),
    ]  # fmt: skip
    return r.choice(functions)(xs[-1])


def binary(r: random.Random, p: Parameters, xs: list[Tensor]) -> Tensor:
    x = xs[-1]
    same = [y for y in xs if y.shape == x.shape]
    y = r.choice(same)
    functions: list[Callable[[Tensor, Tensor], Tensor]] = [torch.add, torch.mul, torch.sub, torch.maximum]
    return r.choice(functions)(x, y)


def with_parameter(r: random.Random, p: Parameters, xs: list[Tensor]) -> Tensor:
    x = xs[-1]
    shape = [n if r.random() < 0.6 else 1 for n in x.shape]
    functions: list[Callable[[Tensor, Tensor], Tensor]] = [torch.add, torch.mul]
    return r.choice(functions)(x, p.take(*shape))


def with_constant(r: random.Random, p: Parameters, xs: list[Tensor]) -> Tensor:
    x = xs[-1]
    n = x.shape[-1]
    return x * r.choice([torch.ones(n), torch.arange(1.0, n + 1), torch.full((1, n), 2.0), torch.zeros(n)])


def swap(r: random.Random, p: Parameters, xs: list[Tensor]) -> Tensor:
    return xs[-1].transpose(-1, r.choice([-2, -1]))


def regroup(r: random.Random, p: Parameters, xs: list[Tensor]) -> Tensor:
    """Split the last dimension, shuffle the parts, and put them together again."""
    x = xs[-1]
    n = x.shape[-1]
    a = r.choice([d for d in range(1, n + 1) if n % d == 0])
    y = x.reshape(*x.shape[:-1], a, n // a)
    if r.random() < 0.5:
        y = y.transpose(-1, -2)
    options = [y[..., r.randrange(y.shape[-2]), :], torch.cat(y.unbind(-2)[::-1], -1), y.mean(-1)]
    return r.choice([*options, y.flatten(-2), y.flatten(-2)])


def fold_positions(r: random.Random, p: Parameters, xs: list[Tensor]) -> Tensor:
    x = xs[-1]
    y = x.flatten(1)
    n = y.shape[1]
    a = r.choice([d for d in range(1, n + 1) if n % d == 0])
    return y.reshape(2, a, n // a)


def halves(r: random.Random, p: Parameters, xs: list[Tensor]) -> Tensor:
    x = xs[-1]
    if x.shape[-1] % 2:
        return x[..., : max(1, x.shape[-1] // 2)]
    a, b = x.chunk(2, -1)
    return r.choice([a * b, torch.cat([b, a], -1), torch.cat([-b, a], -1) + x, a, F.glu(x, -1)])


def pieces(r: random.Random, p: Parameters, xs: list[Tensor]) -> Tensor:
    x = xs[-1]
    n = x.shape[-1]
    i, j = sorted((r.randrange(n), r.randrange(n)))
    options = [x[..., i : j + 1], x[..., i, None] * x, x.roll(1, -1), x.flip(-1), F.pad(x, (i % 3, j % 2))]
    return r.choice(options)


def join(r: random.Random, p: Parameters, xs: list[Tensor]) -> Tensor:
    x = xs[-1]
    fitting = [y for y in xs if y.shape[:-1] == x.shape[:-1] and y.shape[-1] + x.shape[-1] <= 24]
    if not fitting:
        return x
    return torch.cat([r.choice(fitting), x], -1)


def along(r: random.Random, p: Parameters, xs: list[Tensor]) -> Tensor:
    x = xs[-1]
    dim = r.choice([-1, -2])
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda x: x.softmax(dim), lambda x: x.cumsum(dim), lambda x: x - x.mean(dim, keepdim=True),
        lambda x: x.amax(dim, keepdim=True) + x, lambda x: x.sum(dim, keepdim=True).expand_as(x) * x,
        lambda x: F.layer_norm(x, x.shape[-1:]), lambda x: x.sort(dim).values,
    ]  # fmt: skip
    return r.choice(functions)(x)


def norm(r: random.Random, p: Parameters, xs: list[Tensor]) -> Tensor:
    x = xs[-1]
    n = x.shape[-1]
    if r.random() < 0.5:
        return F.layer_norm(x, (n,), p.take(n), p.take(n))
    groups = r.choice([d for d in range(1, n + 1) if n % d == 0 and n * x.shape[-2] > d])
    return F.group_norm(x.transpose(1, 2), groups, p.take(n), p.take(n)).transpose(1, 2)


def convolution(r: random.Random, p: Parameters, xs: list[Tensor]) -> Tensor:
    x = xs[-1].transpose(1, 2)
    n = x.shape[1]
    groups = r.choice([d for d in range(1, n + 1) if n % d == 0])
    weight = p.take(groups * r.choice([1, 2]), n // groups, 1)
    return F.conv1d(x, weight, groups=groups).transpose(1, 2)


def attention(r: random.Random, p: Parameters, xs: list[Tensor]) -> Tensor:
    x = xs[-1]
    n = x.shape[-1]
    if r.random() < 0.5 or n % 2:
        return (x @ x.transpose(-1, -2)).softmax(-1) @ x
    qkv = F.linear(x, p.take(3 * n, n)).reshape(*x.shape[:2], 3, 2, n // 2).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=r.random() < 0.3)
    return y.transpose(1, 2).flatten(2)


def picked(r: random.Random, p: Parameters, xs: list[Tensor]) -> Tensor:
    """Sort, pick, count or write by value, along units or along positions."""
    x, dim = xs[-1], r.choice([-1, -2])
    others = [y for y in xs if y.shape == x.shape]
    y, k = r.choice(others), min(2, x.shape[dim])
    places = x.topk(k, dim).indices
    first = x.argmax(dim)
    options: list[Callable[[], Tensor]] = [
        lambda: torch.gather(y, dim, places),
        lambda: x.topk(k, dim).values,
        lambda: x.median(dim).values[..., None],
        lambda: torch.zeros_like(x).scatter(dim, places, x.topk(k, dim).values) + y,
        lambda: torch.gather(y, dim, x.argsort(dim)),
        lambda: y.take_along_dim(x.argsort(dim).argsort(dim), dim),
        lambda: F.one_hot(first, x.shape[dim]).to(x.dtype),
        lambda: F.embedding(first, p.take(x.shape[dim], 6)),
        lambda: (first[..., None] == torch.arange(x.shape[dim])).to(x.dtype),
        lambda: p.take(x.shape[dim], 3)[first] + first[..., None],
        lambda: y.scatter_add(dim, places, y.narrow(dim, 0, k)),
        lambda: y.masked_fill(x > 0, 0.0),
        lambda: y[:, :, ::2],
        lambda: torch.fft.rfft(x, dim=dim).abs(),
    ]
    return r.choice(options)()


STEPS: list[Step] = [
    linear, linear, linear, activation, activation, binary, with_parameter, with_constant, swap, regroup,
    regroup, fold_positions, halves, pieces, join, along, norm, convolution, attention,
    picked, picked,
]  # fmt: skip


class RandomNetwork(nn.Module):
    """Operations drawn by a seed, on values [2, positions, channels]; each reads the latest value or any."""

    def __init__(self, seed: int, length: int) -> None:
        super().__init__()
        self.seed, self.length = seed, length
        self.p = Parameters()
        self(image(2, 4, 6))

    def forward(self, x: Tensor) -> Tensor:
        r = random.Random(self.seed)
        self.p.next = 0
        xs = [x, linear(r, self.p, [x])]
        for _ in range(self.length):
            if r.random() < 0.15:
                xs.append(r.choice(xs))
            y = r.choice(STEPS)(r, self.p, xs)
            if y.ndim == 3 and 1 <= y.shape[-1] <= 48 and 1 <= y.shape[-2] <= 48:
                xs.append(y)
        last = linear(r, self.p, xs)
        return last / (1 + last.abs().mean())


@pytest.mark.parametrize("seed", range(40))
def test_random_networks(seed: int) -> None:
    model, x = RandomNetwork(seed, 8), image(2, 4, 6)
    spec = spec_of(model, x)
    try:
        verification = verify(spec, model, x, draws=2)
    except ValueError as error:
        if "not finite" in str(error):
            pytest.skip("this network overflows")
        raise
    assert verification.ok, f"{verification}\n{spec}"
