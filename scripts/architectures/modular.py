"""Policies, mixtures, adapters, hypernetworks and other compositions written as plain modules."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from architectures.family import Family, example, families, normal, tokens


class ActorCritic(nn.Module):
    """Shared trunk, policy with a free log standard deviation, value."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 8), nn.Tanh())
        self.mean, self.value, self.spread = nn.Linear(8, 2), nn.Linear(8, 1), nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.trunk(x)
        return self.mean(h), self.spread.exp().expand(x.shape[0], -1), self.value(h)


class SoftActorCritic(nn.Module):
    """Squashed policy and twin critics that read the action."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 4))
        self.critics = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = self.actor(x).chunk(2, -1)
        action = torch.tanh(mean)
        values = torch.cat([critic(torch.cat([x, action], -1)) for critic in self.critics], -1)
        return spread.clamp(-5, 2), values.amin(-1)


def nature_dqn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(4, 6, 8, 4), nn.ReLU(), nn.Conv2d(6, 8, 4, 2), nn.ReLU(), nn.Conv2d(8, 8, 2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(8 * 9, 12), nn.ReLU(), nn.Linear(12, 5)),
    )


class Dueling(nn.Module):
    """Value and advantage streams."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 9), nn.ReLU())
        self.value, self.advantage = (
            nn.Sequential(nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, n)) for n in (1, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(x)
        advantage = self.advantage(h)
        return self.value(h) + advantage - advantage.mean(-1, keepdim=True)


class QuantileNetwork(nn.Module):
    """Implicit quantile network: cosine embedding of a quantile times features."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.quantile, self.head = nn.Linear(4, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        cosines = torch.cos(tau[..., None] * torch.arange(6) * torch.pi)
        return self.head(F.relu(self.trunk(x))[:, None] * F.relu(self.quantile(cosines)))


class RecurrentPolicy(nn.Module):
    """Encoder, LSTM, policy and value."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.rnn = nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.LSTM(8, 7, batch_first=True)
        self.policy, self.value = nn.Linear(7, 3), nn.Linear(7, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, _ = self.rnn(self.encoder(x))
        return self.policy(h).log_softmax(-1), self.value(h)


class NoisyLinear(nn.Module):
    """Linear layer with a mean and a spread per weight, and fixed factorised noise (NoisyNet)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.mean, self.spread = (
            nn.Parameter(torch.randn(outputs, inputs)),
            nn.Parameter(torch.randn(outputs, inputs)),
        )
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.mean + 0.1 * self.spread, self.bias)


class DenseMixture(nn.Module):
    """Every expert runs; a softmax router weights them; the experts are stacked in one tensor."""

    def __init__(self, *, top: int = 0) -> None:
        super().__init__()
        self.router, self.top = nn.Linear(6, 4), top
        self.up, self.down = nn.Parameter(torch.randn(4, 6, 9) / 3), nn.Parameter(torch.randn(4, 9, 5) / 3)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        if self.top:
            best, places = weights.topk(self.top, -1)
            weights = torch.zeros_like(weights).scatter(-1, places, best)
        hidden = F.gelu(torch.einsum("bi,eih->beh", x, self.up))
        return torch.einsum("beh,eho,be->bo", hidden, self.down, weights)


class ListedMixture(nn.Module):
    """Experts as separate modules, stacked outputs, router."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        outputs = torch.stack([expert(x) for expert in self.experts], 1)
        return (self.router(x).softmax(-1)[..., None] * outputs).sum(1)


class LowRank(nn.Module):
    """A linear layer with a LoRA adapter."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.a, self.b = (
            nn.Linear(base.in_features, rank, bias=False),
            nn.Linear(rank, base.out_features, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * self.b(self.a(x))


class WeightDecomposed(nn.Module):
    """DoRA: a magnitude per output times the direction of base plus adapter."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.weight, self.magnitude = (
            nn.Parameter(torch.randn(outputs, inputs)),
            nn.Parameter(torch.rand(outputs)),
        )
        self.a, self.b = nn.Parameter(torch.randn(rank, inputs)), nn.Parameter(torch.randn(outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + self.b @ self.a
        return F.linear(x, self.magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True))


class HyperNetwork(nn.Module):
    """A network that writes the weights of another."""

    def __init__(self) -> None:
        super().__init__()
        self.writer = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 3 * 6 + 6))
        self.head = nn.Linear(6, 2)

    def forward(self, code: Tensor, x: Tensor) -> Tensor:
        weight, bias = self.writer(code).split([18, 6], -1)
        return self.head(torch.relu(torch.einsum("bi,boi->bo", x, weight.view(-1, 6, 3)) + bias))


class KolmogorovArnold(nn.Module):
    """A learned function on every edge, in a basis of radial functions, plus a SiLU branch (KAN)."""

    def __init__(self, inputs: int, outputs: int, count: int = 5) -> None:
        super().__init__()
        self.coefficients, self.base = (
            nn.Parameter(torch.randn(outputs, inputs, count)),
            nn.Linear(inputs, outputs, bias=False),
        )
        self.register_buffer("centres", torch.linspace(-1, 1, count))

    def forward(self, x: Tensor) -> Tensor:
        basis = torch.exp(-(((x[..., None] - self.centres) * 2) ** 2))
        return self.base(F.silu(x)) + torch.einsum("bik,oik->bo", basis, self.coefficients)


class NeuralODE(nn.Module):
    """Four Runge–Kutta steps of one small network."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.head = nn.Linear(2, 6), nn.Linear(6, 2)
        self.field = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x)
        for _ in range(2):
            a = self.field(h)
            b = self.field(h + 0.25 * a)
            c = self.field(h + 0.25 * b)
            h = h + (a + 2 * b + 2 * c + self.field(h + 0.5 * c)) / 12
        return self.head(h)


class DeepEquilibrium(nn.Module):
    """A weight-tied layer iterated with the input injected."""

    def __init__(self) -> None:
        super().__init__()
        self.inject, self.inner, self.head = nn.Linear(4, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x, z = self.inject(x), torch.zeros(())
        for _ in range(4):
            z = torch.tanh(x + (self.inner(z) if z.ndim else z))
        return self.head(z)


class FiLM(nn.Module):
    """Features scaled and shifted by a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.question = nn.Conv2d(3, 8, 3), nn.GRU(6, 7, batch_first=True)
        self.embed, self.film, self.head = nn.Embedding(61, 6), nn.Linear(7, 16), nn.Linear(8, 3)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        gamma, beta = self.film(self.question(self.embed(ids))[1][0])[..., None, None].chunk(2, 1)
        return self.head(F.relu(self.image(x) * gamma + beta).mean((2, 3)))


class FactorisationMachine(nn.Module):
    """Pairwise interactions of embedded fields beside a network (DeepFM)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first = nn.Embedding(61, 6), nn.Embedding(61, 1)
        self.deep = nn.Sequential(nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        pairs = 0.5 * (x.sum(1).square() - x.square().sum(1)).sum(-1, keepdim=True)
        return torch.sigmoid(self.first(ids).sum(1) + pairs + self.deep(x.flatten(1)))


class DeepCross(nn.Module):
    """Cross layers ``x₀ (w·x + b) + x`` (DCN v2)."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.cross, self.head = (
            nn.Linear(4, 8),
            nn.ModuleList(nn.Linear(8, 8) for _ in range(2)),
            nn.Linear(8, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = first = self.lift(x)
        for layer in self.cross:
            x = first * layer(x) + x
        return self.head(x)


_X = normal(5, 4)
_Y = normal(5, 6)

FAMILIES: list[Family] = [
    *families(
        "policies and values",
        {
            "Actor–critic": example(ActorCritic, _X),
            "Soft actor–critic": example(SoftActorCritic, _X),
            "Nature DQN": example(nature_dqn, normal(1, 4, 44, 44)),
            "Dueling DQN": example(Dueling, _X),
            "Implicit quantile network": example(QuantileNetwork, _X, normal(5, 3).sigmoid()),
            "Recurrent policy": example(RecurrentPolicy, normal(2, 5, 4)),
            "NoisyNet": example(lambda: nn.Sequential(NoisyLinear(4, 8), nn.ReLU(), NoisyLinear(8, 3)), _X),
        },
    ),
    *families(
        "mixtures, adapters, parametrisations",
        {
            "Mixture of experts (stacked, dense)": example(DenseMixture, _Y),
            "Mixture of experts (top-2 mask)": example(lambda: DenseMixture(top=2), _Y),
            "Mixture of experts (listed)": example(ListedMixture, _Y),
            "LoRA": example(
                lambda: nn.Sequential(LowRank(nn.Linear(6, 9), 3), nn.ReLU(), LowRank(nn.Linear(9, 2), 3)), _Y
            ),
            "DoRA": example(lambda: nn.Sequential(WeightDecomposed(6, 9, 3), nn.ReLU(), nn.Linear(9, 2)), _Y),
            "Weight norm": example(
                lambda: nn.Sequential(
                    parametrizations.weight_norm(nn.Linear(6, 9)),
                    nn.Tanh(),
                    parametrizations.weight_norm(nn.Linear(9, 2)),
                ),
                _Y,
            ),
            "Spectral norm": example(
                lambda: nn.Sequential(
                    parametrizations.spectral_norm(nn.Linear(6, 9)), nn.ReLU(), nn.Linear(9, 2)
                ),
                _Y,
            ),
            "Orthogonal": example(
                lambda: nn.Sequential(
                    nn.Linear(6, 8), parametrizations.orthogonal(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 2)
                ),
                _Y,
            ),
            "Hypernetwork": example(HyperNetwork, _X, normal(5, 3)),
            "KAN": example(lambda: nn.Sequential(KolmogorovArnold(4, 7), KolmogorovArnold(7, 2)), _X),
            "Neural ODE": example(NeuralODE, normal(5, 2)),
            "Deep equilibrium": example(DeepEquilibrium, _X),
            "FiLM": example(FiLM, normal(2, 3, 8, 8), tokens(2, 5)),
            "DeepFM": example(FactorisationMachine, tokens(3, 4)),
            "Deep & Cross": example(DeepCross, _X),
        },
    ),
]
