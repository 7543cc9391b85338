"""Shifts: what a LayerNorm or a softmax takes away again, and where nothing may be added."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metanet import WeightSpec, spec_of, verify


class CentredNorm(nn.Module):
    """LayerNorm without gains, written by hand."""

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        y: Tensor = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return y


class Uncentred(nn.Module):
    """A norm that subtracts half of the mean."""

    def forward(self, x: Tensor) -> Tensor:
        x = x - 0.5 * x.mean(-1, keepdim=True)
        return F.normalize(x, dim=-1)


class Stream(nn.Module):
    """A residual stream with two blocks; what reads it is to be chosen."""

    def __init__(self, norm: Callable[[], nn.Module], *, raw_head: bool = False) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(7, 6), nn.Parameter(torch.randn(1, 4, 6))
        self.norm, self.up, self.down = norm(), nn.Linear(6, 5), nn.Linear(5, 6)
        self.last, self.head = norm(), nn.Linear(6, 3)
        self.raw_head = raw_head

    def forward(self, tokens: Tensor) -> Tensor:
        x = 2 * self.embed(tokens) + self.place
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        y: Tensor = self.head(x if self.raw_head else self.last(x))
        return y


class PostNorm(Stream):
    """The norm stands behind the sum, as in BERT."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.last(self.embed(tokens) + self.place)
        y: Tensor = self.head(self.norm(x + self.down(F.gelu(self.up(x)))))
        return y


class Attention(nn.Module):
    """Fused or separate projections, with or without rotary positions, one fused kernel or written out."""

    def __init__(
        self, *, rotary: bool = False, eager: bool = False, cosine: bool = False, merged: bool = False
    ) -> None:
        super().__init__()
        self.merged = merged
        self.qkv, self.out = nn.Linear(6, 24), nn.Linear(8, 6)
        self.rotary, self.eager, self.cosine = rotary, eager, cosine

    def forward(self, x: Tensor) -> Tensor:
        rows = self.qkv(x.flatten(0, 1)).view(*x.shape[:2], -1) if self.merged else self.qkv(x)
        q, k, v = rows.unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        if self.rotary:
            angle = torch.arange(x.shape[1])[:, None] * torch.tensor([1.0, 0.1]).repeat(2)
            q, k = (t * angle.cos() + torch.cat([-t[..., 2:], t[..., :2]], -1) * angle.sin() for t in (q, k))
        if self.cosine:
            k = F.normalize(k, dim=-1)
        if self.eager:
            y = (q @ k.transpose(-2, -1) / 2).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        z: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return z


class RepeatedKeys(nn.Module):
    """Each of two keys and values serves two queries, by copies of it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(a, b) for a, b in ((6, 12), (6, 6), (6, 6), (12, 6)))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (-1, 3)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
        y: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return y


class Patches(nn.Module):
    """A convolution that writes tokens, with a class token in front."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 6, 2, stride=2), nn.Parameter(torch.randn(1, 1, 6))
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        y: Tensor = self.head(self.norm(x)[:, 0])
        return y


class TiedHead(Stream):
    """The embedding reads the normalised stream too."""

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place
        return F.linear(self.last(x + self.down(F.gelu(self.up(self.norm(x))))), self.embed.weight)


TOKENS, VALUES, IMAGE = torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 3, 6), torch.zeros(1, 3, 4, 4)
STREAM = {
    "embed.weight": "shift 7",
    "place": "shift 4",
    "down.weight": "shift up",
    "down.bias": "shift",
}
CASES: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, str]]] = {
    "LayerNorm": (lambda: Stream(lambda: nn.LayerNorm(6)), TOKENS, STREAM),
    "LayerNorm by hand": (lambda: Stream(CentredNorm), TOKENS, STREAM),
    "a norm of other groups": (lambda: Stream(lambda: nn.GroupNorm(2, 4)), TOKENS, {}),
    "half of the mean": (lambda: Stream(Uncentred), TOKENS, {}),
    "RMSNorm": (lambda: Stream(lambda: nn.RMSNorm(6)), TOKENS, {}),
    "an unnormalised head": (lambda: Stream(lambda: nn.LayerNorm(6), raw_head=True), TOKENS, {}),
    "a tied head": (
        lambda: TiedHead(lambda: nn.LayerNorm(6)),
        TOKENS,
        {name: shift for name, shift in STREAM.items() if name != "embed.weight"},
    ),
    "post norm": (lambda: PostNorm(lambda: nn.LayerNorm(6)), TOKENS, STREAM),
    "patches": (
        Patches,
        IMAGE,
        {"token": "shift", "patch.weight": "shift 3 2 2", "patch.bias": "shift"},
    ),
    "key bias": (Attention, VALUES, {"qkv.bias": "shift qkv.head qkv.qk"}),
    "key bias, eager": (lambda: Attention(eager=True), VALUES, {"qkv.bias": "shift qkv.head qkv.qk"}),
    "key bias, batch and positions merged": (
        lambda: Attention(merged=True), torch.zeros(2, 3, 6), {"qkv.bias": "shift qkv.head qkv.qk"}
    ),
    "key bias, repeated heads": (
        RepeatedKeys, VALUES, {"k.bias": "shift q.head q.qk"}
    ),
    "key bias, rotary": (lambda: Attention(rotary=True), VALUES, {}),
    "key bias, normalised": (lambda: Attention(cosine=True), VALUES, {}),
}  # fmt: skip


def shifts(spec: WeightSpec) -> dict[str, str]:
    return {
        ", ".join(term.entry for term in action.terms): str(action)
        for action in spec.actions
        if action.kind == "shift"
    }


@pytest.mark.parametrize("name", CASES)
def test_shifts_are_the_known_ones(name: str) -> None:
    torch.manual_seed(0)
    factory, x, expected = CASES[name]
    model = factory()
    spec = spec_of(model, x)
    assert shifts(spec) == expected
    assert WeightSpec.parse(str(spec)) == spec
    verification = verify(spec, model, x, draws=1)
    assert verification.ok, str(verification)
    assert ("shift" in verification.errors) == bool(expected)


def test_the_shift_of_a_key_bias_is_its_part_of_the_fused_one() -> None:
    spec = spec_of(Attention(), VALUES)
    [action] = [action for action in spec.actions if action.kind == "shift"]
    [term] = action.terms
    assert action.shape(spec.sizes) == (2, 4)
    assert term.leaves == (2, 3)
