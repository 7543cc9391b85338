"""Gains folded into their readers, and the orthogonal freedom of the stream that is left."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metanet import WeightSpec, fold_gains, spec_of, verify


class HandNorm(nn.Module):
    """RMSNorm as transformers writes it; ``offset`` is Gemma's."""

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        self.weight, self.offset = nn.Parameter(torch.ones(6)), offset

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (self.offset + self.weight) * x if self.offset else self.weight * x


class Block(nn.Module):
    """A gated block and attention on one stream."""

    def __init__(
        self, norm: Callable[[], nn.Module], *, post: bool = False, sandwich: bool = False, tied: bool = False
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.norms = nn.ModuleList([norm() for _ in range(4)])
        self.qkv, self.out = nn.Linear(6, 24), nn.Linear(8, 6)
        self.gate, self.up, self.down = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 6, bias=False)
        self.head = nn.Linear(6, 7, bias=False)
        self.post, self.sandwich = post, sandwich
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        n = self.norms[0](x)
        q, k, v = self.qkv(n).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        y = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + (self.norms[3](y) if self.sandwich else y)
        n = x if self.post else self.norms[1](x)
        x = x + self.down(F.silu(self.gate(n)) * self.up(n))
        if self.post:
            x = self.norms[1](x) + y
        z: Tensor = self.head(self.norms[2](x))
        return z


def rms_norm() -> nn.Module:
    return nn.RMSNorm(6)


NORMS: dict[str, Callable[[], nn.Module]] = {
    "one node": rms_norm,
    "by hand": HandNorm,
    "with an offset": lambda: HandNorm(1.0),
}
TOKENS = torch.tensor([[1, 4, 2, 6]])


def generic(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.2)
    return model.double()


def orthogonal(spec: WeightSpec) -> list[str]:
    return [str(action) for action in spec.actions if action.kind == "orthogonal"]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_folded_model_is_the_same_function_and_has_rotations(norm: str, tied: bool) -> None:
    model = generic(Block(NORMS[norm], tied=tied))
    spec = spec_of(model, TOKENS)
    assert orthogonal(spec) == []
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold_gains(model, spec, untie=tied)
    assert torch.allclose(folded(TOKENS), model(TOKENS), rtol=1e-12)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert set(before) - set(folded.state_dict()) == {f"norms.{i}.weight" for i in range(3)}
    assert folded.get_parameter("head.weight") is not folded.get_parameter("embed.weight")
    found = spec_of(folded, TOKENS)
    assert orthogonal(found) == ["orthogonal embed"]
    assert not found.group["embed"].freedoms
    verification = verify(found, folded, TOKENS, draws=1)
    assert verification.ok, str(verification)
    assert "orthogonal" in verification.errors
    assert not verification.dead


def test_a_state_dict_is_folded_for_the_same_architecture() -> None:
    model = generic(Block(HandNorm))
    spec = spec_of(model, TOKENS)
    expected = model(TOKENS)
    state = fold_gains(model.state_dict(), spec)
    assert bool((state["norms.0.weight"] == 1).all())
    model.load_state_dict(state)
    assert torch.allclose(model(TOKENS), expected, rtol=1e-12)
    stacked = {name: torch.stack([tensor, 2 * tensor]) for name, tensor in before_folding().items()}
    both = fold_gains(stacked, spec)
    alone = fold_gains({name: tensor[1] for name, tensor in stacked.items()}, spec)
    assert all(torch.equal(both[name][1], alone[name]) for name in both)


def before_folding() -> dict[str, Tensor]:
    return dict(generic(Block(HandNorm)).state_dict())


class TwoNorms(nn.Module):
    """One matrix reads two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.second = nn.Embedding(7, 6), nn.RMSNorm(6), nn.RMSNorm(6)
        self.up = nn.Linear(6, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return torch.tanh(self.up(self.first(x)) + self.up(self.second(x)))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a tied head": (lambda: Block(rms_norm, tied=True), "untie=True"),
    "sandwich norms": (lambda: Block(rms_norm, sandwich=True), "Sandwich norms and post norms keep"),
    "post norms": (lambda: Block(rms_norm, post=True), "Sandwich norms and post norms keep"),
    "no gain": (lambda: Block(lambda: nn.RMSNorm(6, elementwise_affine=False)), "no gain to fold"),
    "LayerNorm": (lambda: Block(lambda: nn.LayerNorm(6)), "no gain to fold"),
    "one matrix for two gains": (TwoNorms, "reads in 2 places"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_folded_is_refused(name: str) -> None:
    factory, message = REFUSED[name]
    model = factory()
    with pytest.raises(ValueError, match=message):
        fold_gains(model, spec_of(model, TOKENS))


def test_what_a_spec_or_a_state_dict_does_not_tell_is_refused() -> None:
    model = Block(rms_norm, tied=True)
    spec = spec_of(model, TOKENS)
    with pytest.raises(ValueError, match="pass the model"):
        fold_gains(model.state_dict(), spec, untie=True)
    with pytest.raises(ValueError, match="no skeleton"):
        fold_gains(model, WeightSpec.parse(str(spec)))


class Reads(Block):
    """A stream without gains that something beside norms and matrices reads."""

    def __init__(self, reads: Callable[[Tensor], Tensor]) -> None:
        super().__init__(lambda: nn.RMSNorm(6, elementwise_affine=False))
        self.reads = reads

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + self.down(F.silu(self.gate(self.norms[0](x))) * self.up(self.norms[0](x)))
        y: Tensor = self.head(self.reads(x))
        return y


READS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "nothing": (lambda x: x, True),
    "a number times it": (lambda x: 0.5 * x, True),
    "a mean over positions": (lambda x: x.mean(1, keepdim=True), True),
    "its direction": (lambda x: F.normalize(x, dim=-1), True),
    "its products": (lambda x: (x @ x.transpose(1, 2)) @ x, True),
    "relu": (torch.relu, False),
    "a sum with a number": (lambda x: x + 1.0, False),
    "its mean": (lambda x: x - x.mean(-1, keepdim=True), False),
    "its first norm": (lambda x: x / x.norm(p=1, dim=-1, keepdim=True), False),
    "LayerNorm": (lambda x: F.layer_norm(x, (6,)), False),
    "softmax": (lambda x: x.softmax(-1), False),
}


@pytest.mark.parametrize("name", READS)
def test_orthogonal_freedoms_are_the_known_ones(name: str) -> None:
    reads, expected = READS[name]
    model = Reads(reads)
    spec = spec_of(model, TOKENS)
    assert orthogonal(spec) == ["orthogonal embed"] * expected
    if expected:
        verification = verify(spec, model, TOKENS, draws=1)
        assert verification.ok, str(verification)
