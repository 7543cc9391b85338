"""Small networks whose training the tests of learned optimizers follow."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from metanet import GroupElement, WeightSpec, spec_of
from metanet.optim import MetaWeights
from metanet.optim.pretrained import RULES


class Tied(nn.Module):
    """A bag of tokens whose embedding is its head too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.hidden = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ``[batch, 11]`` logits of ``[batch, length]`` tokens."""
        hidden: Tensor = torch.tanh(self.hidden(self.embedding(tokens).mean(1)))
        logits: Tensor = self.head(hidden * self.scale)
        return logits


def mlp() -> nn.Module:
    """Return an MLP with two tensors of one shape, a LayerNorm and a frozen layer."""
    torch.manual_seed(0)
    layers = [nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)]
    return nn.Sequential(*layers, nn.Tanh(), nn.Linear(8, 3))


@cache
def mlp_spec() -> WeightSpec:
    """Return the spec of `mlp`."""
    return spec_of(mlp(), torch.zeros(2, 5))


def cnn() -> nn.Module:
    """Return a small convolutional network with BatchNorm."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(4 * 4, 12),
        nn.Tanh(),
        nn.Linear(12, 3),
    )


def permuted_pair(build: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module, GroupElement]:
    """Return `mlp` or `cnn` in float64, the same one permuted, and the element that does so."""
    model, moved = build().double(), build().double()
    x = torch.zeros(2, 1, 6, 6).double() if build is cnn else torch.zeros(2, 5).double()
    element = GroupElement.random(spec_of(model, x), torch.Generator().manual_seed(0))
    moved.load_state_dict(element @ moved.state_dict())
    return model, moved, element


def assert_permuted(model: nn.Module, moved: nn.Module, element: GroupElement) -> None:
    """Assert that a network is another one permuted."""
    expected = element @ model.state_dict()
    for name, tensor in moved.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-7, atol=1e-8)


def weights(rule: str, seed: int = 3) -> MetaWeights:
    """Return meta-weights drawn around a rule's start, so that every term of it takes part."""
    made = RULES[rule]()
    changes = torch.randn(1, made.size, generator=torch.Generator().manual_seed(seed))
    return MetaWeights(f"random {rule}", made, made.unpack(changes * 0.5))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> list[float]:
    """Train on random inputs, a batch per step from the step's own seed; return the losses."""
    losses = []
    width = next(iter(model.parameters())).dtype
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        shape = (16, 1, 6, 6) if isinstance(model[0], nn.Conv2d) else (16, 5)  # type: ignore[index]
        x = torch.randn(shape, generator=generator, dtype=torch.float64).to(width)
        y = (x.flatten(1).sum(1) > 0).long()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
