"""Random functions of hidden layers: what is derived keeps the function and has a canonical form."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metanet import GroupElement, canonical_form, canonicalize, spec_of, testing, verify
from metanet.units import FREEDOM_KINDS
from tests.metanet.derivation.test_soundness import Parameters
from tests.models import image

UNARY: list[Callable[[Tensor], Tensor]] = [
    torch.relu, torch.neg, torch.abs, torch.square, torch.tanh, torch.sin, torch.cos, torch.sign,
    F.leaky_relu,
    lambda h: h * 0.7, lambda h: h.clamp(min=0), lambda h: h.clamp(-1, 1), lambda h: h.square().sqrt(),
    lambda h: h**3, lambda h: h.reciprocal() / 3, lambda h: h + 0 * h, lambda h: h / (1 + h.abs()),
    lambda h: h * torch.rsqrt(h.square().mean(-1, keepdim=True) + 1e-5), lambda h: F.rms_norm(h, (4,)),
    lambda h: F.normalize(h, dim=-1), lambda h: F.max_pool1d(h.T[None], 2, 1).mean(-1).expand(2, 4),
    lambda h: h - h.mean(0, keepdim=True), lambda h: h.norm(dim=0, keepdim=True) - h,
    lambda h: h.std(0, keepdim=True) * h, lambda h: h.var(0, keepdim=True) + h.square(),
    lambda h: h.amax(0, keepdim=True) + h, lambda h: torch.logsumexp(h, 0, keepdim=True) + h,
    lambda h: h.softmax(0) * h, lambda h: h.cumsum(0), lambda h: h.flip(0),
    lambda h: h.unsqueeze(1).expand(2, 3, 4).mean(1), lambda h: torch.stack([h, h]).sum(0),
    lambda h: h.reshape(2, 2, 2).transpose(1, 2).reshape(2, 4), lambda h: torch.cat([h, h], 0)[:2],
    lambda h: torch.cat([h, h], -1).chunk(2, -1)[1], lambda h: F.glu(torch.cat([h, h], -1), -1),
    lambda h: torch.where(h > 0, h, 0 * h), lambda h: h.gather(0, h.argsort(0)),
    lambda h: h.masked_fill(torch.tensor([[True], [False]]), 0.0),
]  # fmt: skip
BINARY: list[Callable[[Tensor, Tensor], Tensor]] = [
    torch.add, torch.mul, torch.sub, torch.maximum, lambda a, b: a / (1 + b.square()),
]  # fmt: skip
VECTOR: list[Callable[[Tensor, Tensor], Tensor]] = [
    torch.mul, torch.add, torch.div, lambda a, v: a * v.abs()
]  # fmt: skip


class RandomLayers(nn.Module):
    """A row, some random functions of the four units and of vectors and matrices of them, and a reader."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.p = Parameters()
        self.norm = nn.BatchNorm1d(4)
        self(image(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        r = random.Random(self.seed)
        self.p.next = 0
        values = [F.linear(x, self.p.take(4, 3), self.p.take(4))]
        for _ in range(r.choice([2, 3, 4, 6])):
            values.append(self.step(r, values[-1], r.choice(values)))
        y = F.linear(values[-1], self.p.take(2, 4))
        return y / (1 + y.abs().mean())

    def step(self, r: random.Random, h: Tensor, other: Tensor) -> Tensor:
        """Return a random function of a value and an earlier one."""
        take = self.p.take
        choice = r.random()
        if choice < 0.45:
            return r.choice(UNARY)(h)
        if choice < 0.6:
            return r.choice(BINARY)(h, other)
        if choice < 0.75:
            return r.choice(VECTOR)(h, take(4))
        steps: list[Callable[[], Tensor]] = [
            lambda: F.linear(h, take(4, 4), take(4)),
            lambda: h @ take(4, 4),
            lambda: self.norm(h),
            lambda: F.layer_norm(h, (4,), take(4), take(4)),
            lambda: F.scaled_dot_product_attention(h[None], other[None], h[None])[0],
            lambda: torch.einsum("bi,bj,j->bi", h, other, take(4)),
        ]
        return r.choice(steps)()


def real(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if tensor.is_floating_point()}


@pytest.mark.parametrize("seed", range(25))
def test_random_layers(seed: int) -> None:
    model, x = RandomLayers(seed), image(2, 3)
    spec = spec_of(model, x)
    verification = verify(spec, model, x, draws=2)
    assert verification.ok, f"{verification}\n{spec}"
    weights = {name: t.double() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    form = canonical_form(spec, weights)
    generator = torch.Generator().manual_seed(seed)
    permuted = GroupElement.random(spec, generator)
    testing.assert_close(
        real(canonicalize(spec, permuted @ weights)), real(permuted @ form.weights), tolerance=1e-7
    )
    if not form.left:
        element = GroupElement.random(spec, generator, kinds=FREEDOM_KINDS, permute=False)
        testing.assert_close(
            real(canonicalize(spec, element @ weights)), real(form.weights), tolerance=1e-7, what="orbit"
        )
