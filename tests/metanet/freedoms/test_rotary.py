"""Rotations under rotary positions, however these are written, and what takes them away."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metanet import WeightSpec, spec_of, verify

N = 2
ANGLES = torch.arange(4)[:, None] * torch.tensor([1.0, 0.3])
COS, SIN = ANGLES.cos(), ANGLES.sin()


def half(x: Tensor) -> Tensor:
    """Llama: rotate_half and tables of cat(freqs, freqs)."""
    turned = torch.cat([-x[..., N:], x[..., :N]], -1)
    return x * COS.repeat(1, 2) + turned * SIN.repeat(1, 2)


def halves(x: Tensor) -> Tensor:
    """The two halves written out."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * COS - b * SIN, b * COS + a * SIN], -1)


def interleaved(x: Tensor) -> Tensor:
    """GPT-J: rotate_every_two and repeated tables."""
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    return x * COS.repeat_interleave(2, -1) + turned * SIN.repeat_interleave(2, -1)


def complexes(x: Tensor) -> Tensor:
    """Meta's own Llama: complex numbers."""
    z = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(z * torch.polar(torch.ones_like(ANGLES), ANGLES)).flatten(-2)


def stacked(x: Tensor) -> Tensor:
    """Flux: a dimension of two, and the halves written out."""
    a, b = x.unflatten(-1, (N, 2)).unbind(-1)
    return torch.stack([a * COS - b * SIN, a * SIN + b * COS], -1).flatten(-2)


def scaled(x: Tensor) -> Tensor:
    """Long context: tables and width scaled by numbers."""
    return half(0.5 * x) / 1.2


def reflected(x: Tensor) -> Tensor:
    """No rotation: the second half has the wrong sign."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * COS - b * SIN, b * COS - a * SIN], -1)


def other_tables(x: Tensor) -> Tensor:
    """The two numbers of a pair are multiplied by different ones."""
    turned = torch.cat([-x[..., N:], x[..., :N]], -1)
    return x * COS.repeat_interleave(2, -1) + turned * SIN.repeat(1, 2)


def normed(x: Tensor) -> Tensor:
    """Queries and keys of unit length."""
    return half(F.normalize(x, dim=-1))


def shifted(x: Tensor) -> Tensor:
    return half(x + 1.0)


def gated(x: Tensor) -> Tensor:
    return half(torch.tanh(x))


class Attention(nn.Module):
    """Two key heads, two queries each, of width 4 beside a part of width 3 without positions."""

    def __init__(
        self,
        rotate: Callable[[Tensor], Tensor],
        keys: Callable[[Tensor], Tensor] | None = None,
        *,
        eager: bool = False,
        fused: bool = False,
        partial: bool = False,
    ) -> None:
        super().__init__()
        self.width = 7 if partial else 4
        rows = [4 * self.width, 2 * self.width, 10]
        self.sizes = rows
        if fused:
            self.qkv = nn.Linear(6, sum(rows))
        else:
            self.q, self.k, self.v = (nn.Linear(6, n) for n in rows)
        self.out = nn.Linear(20, 6)
        self.rotate, self.keys, self.eager, self.fused = rotate, keys or rotate, eager, fused

    def turned(self, x: Tensor, rotate: Callable[[Tensor], Tensor]) -> Tensor:
        x = x.unflatten(-1, (-1, self.width)).transpose(1, 2)
        return torch.cat([rotate(x[..., :4]), x[..., 4:]], -1) if self.width > 4 else rotate(x)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split(self.sizes, -1) if self.fused else (self.q(x), self.k(x), self.v(x))
        q, k = self.turned(q, self.rotate), self.turned(k, self.keys)
        v = v.unflatten(-1, (2, 5)).transpose(1, 2)
        if self.eager:
            k, v = (t[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for t in (k, v))
            y = (q @ k.transpose(-2, -1) / 2).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        z: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return z


X = torch.zeros(1, 4, 6)
KEPT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "half": (lambda: Attention(half), "half"),
    "halves written out": (lambda: Attention(halves), "half"),
    "interleaved": (lambda: Attention(interleaved), "interleaved"),
    "complex numbers": (lambda: Attention(complexes), "interleaved"),
    "a dimension of two": (lambda: Attention(stacked), "interleaved"),
    "scaled": (lambda: Attention(scaled), "half"),
    "two ways of writing": (lambda: Attention(half, halves), "half"),
    "eager": (lambda: Attention(half, eager=True), "half"),
    "fused": (lambda: Attention(interleaved, fused=True), "interleaved"),
    "a part of the width": (lambda: Attention(half, partial=True), "half"),
    "all at once": (lambda: Attention(halves, eager=True, fused=True, partial=True), "half"),
}
LOST: dict[str, Callable[[], nn.Module]] = {
    "a reflection": lambda: Attention(reflected),
    "different tables in a pair": lambda: Attention(other_tables),
    "normalised": lambda: Attention(normed),
    "keys alone normalised": lambda: Attention(half, normed),
    "a number added": lambda: Attention(shifted),
    "a function of each number": lambda: Attention(gated),
    "pairs of different layouts": lambda: Attention(half, interleaved),
}


def rotations(spec: WeightSpec) -> list[str]:
    return [str(action) for action in spec.actions if action.kind == "rotation"]


@pytest.mark.parametrize("name", KEPT)
def test_rotations_are_the_known_ones(name: str) -> None:
    torch.manual_seed(0)
    factory, layout = KEPT[name]
    model = factory()
    spec = spec_of(model, X)
    [action] = [action for action in spec.actions if action.kind == "rotation"]
    assert action.shape(spec.sizes) == (2, 2)
    assert action.layout == layout
    keys, queries = (len([t for t in action.terms if t.power == power]) for power in (1, -1))
    assert keys == queries == 2
    assert WeightSpec.parse(str(spec)) == spec
    verification = verify(spec, model, X, draws=1)
    assert verification.ok, str(verification)
    assert verification.errors["rotation"] < 1e-12
    assert not verification.dead
    assert not [a for a in spec.actions if a.kind == "scale" and a.axes == action.axes[:1]]


@pytest.mark.parametrize("name", LOST)
def test_what_does_not_commute_has_no_rotations(name: str) -> None:
    assert rotations(spec_of(LOST[name](), X)) == []


def test_widths_without_positions_have_none() -> None:
    assert rotations(spec_of(Attention(lambda x: x), X)) == []


class Twice(nn.Module):
    """The queries are read by something else too."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        y: Tensor = F.scaled_dot_product_attention(half(q), half(k), v) + q.sum(-1, keepdim=True)
        return y


def test_a_second_reader_of_the_queries_takes_them_away() -> None:
    assert rotations(spec_of(Twice(), X)) == []
