"""Every learned optimizer and every kind of network that the contract of an optimizer is tested on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metanet import WeightSpec, spec_of
from metanet.optim import Forecaster, LearnedOptimizer, Nowcaster
from metanet.optim.pretrained import RULES
from tests.metanet.optim.networks import Tied, cnn, mlp, weights
from tests.metanet.optim.test_stacked import SPEC as MIXTURE
from tests.metanet.optim.test_stacked import Mixture

TOTAL = 20
"""Steps that the optimizers are made for."""
NOWCASTERS = ("nowcaster linear", "nowcaster graph", "nowcaster learned")
OPTIMIZERS = (*RULES, *NOWCASTERS)


class Attention(nn.Module):
    """A transformer block over the five numbers of an input."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(1, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[batch, 3]`` logits of ``[batch, 5]`` numbers."""
        logits: Tensor = self.head(self.block(self.embedding(x[..., None])).mean(1))
        return logits


@dataclass(frozen=True)
class Kind:
    """A kind of network.

    Args:
        build: makes one.
        inputs: shape of a batch.
        tokens: size of the vocabulary; 0 for inputs of numbers.
        spec: of the network, where it cannot be derived.
    """

    build: Callable[[], nn.Module]
    inputs: tuple[int, ...]
    tokens: int = 0
    spec: WeightSpec | None = None

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the inputs and classes of a step."""
        generator = torch.Generator().manual_seed(step)
        if self.tokens:
            x = torch.randint(self.tokens, self.inputs, generator=generator)
        else:
            x = torch.randn(self.inputs, generator=generator)
        return x, (x.flatten(1) if x.ndim > 1 else x[:, None]).sum(1).long() % 3


KINDS = {
    "mlp": Kind(mlp, (16, 5)),
    "cnn": Kind(cnn, (16, 1, 6, 6)),
    "attention": Kind(Attention, (16, 5)),
    "tied": Kind(Tied, (16, 3), tokens=11),
    "experts": Kind(Mixture, (16,), tokens=7, spec=MIXTURE),
}


def network(kind: str) -> nn.Module:
    """Return a network of a kind, with the same weights whenever it is called."""
    torch.manual_seed(0)
    return KINDS[kind].build()


@cache
def spec_for(kind: str) -> WeightSpec:
    """Return the spec of a kind of network."""
    return KINDS[kind].spec or spec_of(network(kind), KINDS[kind].batch(0)[0])


def forecaster(form: str, seed: int = 0) -> Forecaster:
    """Return a forecaster drawn around its start."""
    made = Forecaster.initial(form)
    generator = torch.Generator().manual_seed(seed)
    metas = {k: m + 0.1 * torch.randn(m.shape, generator=generator) for k, m in made.metas.items()}
    return Forecaster(form, metas)


def optimizer_for(name: str, model: nn.Module, spec: WeightSpec | None, lr: float = 1.0) -> Optimizer:
    """Return an optimizer of a network; ``lr`` is a multiple of what it has by default."""
    if name in RULES:
        return LearnedOptimizer.from_pretrained(weights(name), model, total_steps=TOTAL, spec=spec, lr=lr)
    form, base = "linear", None
    if name == "nowcaster learned":
        base = optimizer_for("structured", model, spec, lr)
    elif name == "nowcaster graph":
        form = "graph"
    base = base or torch.optim.AdamW(model.parameters(), lr=0.01 * lr)
    return Nowcaster(forecaster(form), base, model, total_steps=TOTAL, every=5, ahead=6, spec=spec)


def loss_of(model: nn.Module, kind: str, step: int) -> Tensor:
    """Return the loss on the batch of a step."""
    x, y = KINDS[kind].batch(step)
    return nn.functional.cross_entropy(model(x), y)


def train(model: nn.Module, optimizer: Optimizer, kind: str, steps: Sequence[int]) -> list[float]:
    """Take steps on the batches of their numbers; return the losses."""
    losses = []
    for step in steps:
        optimizer.zero_grad()
        loss = loss_of(model, kind, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_same(first: nn.Module, second: nn.Module) -> None:
    """Assert that two networks agree to the bit."""
    for (name, mine), theirs in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
