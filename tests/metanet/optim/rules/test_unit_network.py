"""Messages between units, against a loop over every unit and every weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metanet import WeightSpec
from metanet.optim.rule import ROLES
from metanet.optim.rules import unit_network
from metanet.optim.rules.links import Links
from metanet.optim.rules.unit_network import Edges, UnitNetwork

SPEC = WeightSpec.parse(
    """groups h: 4  k: 3
    in.weight h 5
    in.bias h
    mid.weight k h
    mid.bias k
    out.weight 2 k"""
)
UNITS: dict[str, tuple[str | None, ...]] = {
    "in.weight": ("h", None),
    "in.bias": ("h",),
    "mid.weight": ("k", "h"),
    "mid.bias": ("k",),
    "out.weight": (None, "k"),
}
NETWORK = UnitNetwork(features=3, context=2, hidden=4, rounds=2)
CONTEXT = (0.3, -0.7)


def drawn() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return parameters of the network, and features ``[3, *shape]`` of all weights."""
    generator = torch.Generator().manual_seed(0)
    metas = {
        name: torch.randn(1, len(meta.initial), generator=generator, dtype=torch.float64) * 0.6
        for name, meta in NETWORK.metas().items()
    }
    features = {
        name: torch.randn(3, *shape, generator=generator, dtype=torch.float64)
        for name, shape in SPEC.shapes.items()
    }
    return metas, features


def role(name: str) -> str:
    return "vector" if name.endswith("bias") else "output" if name.startswith("out") else "hidden"


def edges(features: dict[str, Tensor]) -> list[Edges]:
    def of(name: str, own: Tensor) -> Edges:
        flat = own.flatten(1)[None]
        sizes = torch.tensor([[1.0, 2.0, 0.5]], dtype=torch.float64)
        numbers = flat * sizes[:, :, None]
        return Edges(own[:1], lambda at: numbers[:, :, at[1]], sizes, role(name), {name: slice(0, 1)})

    return [of(name, own) for name, own in features.items()]


def oracle(metas: dict[str, Tensor], features: dict[str, Tensor]) -> dict[str, Tensor]:
    c = NETWORK.hidden

    def matrix(name: str, columns: int) -> Tensor:
        return metas[name][0].view(c, columns)

    def side(name: str, dim: int) -> str:
        return "vector" if len(UNITS[name]) == 1 else ("row", "column")[dim]

    states = {}
    for name, own in features.items():
        start = matrix("first_context", 2) @ torch.tensor(CONTEXT, dtype=torch.float64)
        start = start + metas["first_role"][0].view(len(ROLES), c)[ROLES.index(role(name))]
        shift = start.view(-1, *(1,) * (own.ndim - 1))
        states[name] = torch.tanh(torch.tensordot(matrix("first", 3), own, 1) + shift)
    for i in range(NETWORK.rounds):
        heard: dict[tuple[str, int], list[Tensor]] = {}
        for name, state in states.items():
            for dim, group in enumerate(UNITS[name]):
                for unit in range(state.shape[dim + 1]):
                    mean = state.select(dim + 1, unit).reshape(c, -1).mean(1)
                    if group is not None:
                        message = matrix(f"send_{side(name, dim)}_{i}", c) @ mean
                        heard.setdefault((group, unit), []).append(message)
        units = {
            key: torch.tanh(metas[f"unit_{i}"][0] + torch.stack(messages).mean(0))
            for key, messages in heard.items()
        }
        after = {}
        for name, state in states.items():
            total = state + torch.tensordot(matrix(f"edge_{i}", c), state, 1)
            for dim, group in enumerate(UNITS[name]):
                for unit in range(state.shape[dim + 1]):
                    mean = state.select(dim + 1, unit).reshape(c, -1).mean(1)
                    back = matrix(f"private_{side(name, dim)}_{i}", c) @ mean
                    if group is not None:
                        back = back + matrix(f"receive_{side(name, dim)}_{i}", c) @ units[group, unit]
                    place = total.select(dim + 1, unit)
                    place += back.view(-1, *(1,) * (place.ndim - 1))
            after[name] = torch.tanh(total)
        states = after
    return {name: torch.tensordot(metas["last"][0], state, 1) for name, state in states.items()}


@pytest.mark.parametrize("chunk", [1, 40, 1 << 14])
def test_messages_are_those_of_a_loop_over_units(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_network, "CHUNK", chunk)
    metas, features = drawn()
    found = NETWORK(metas, CONTEXT, edges(features), Links(SPEC))
    for (name, expected), mine in zip(oracle(metas, features).items(), found, strict=True):
        assert torch.allclose(mine, expected.reshape(1, -1), rtol=1e-9, atol=1e-11), name


def test_it_starts_as_zero_and_learns_every_parameter() -> None:
    _, features = drawn()
    initial = {
        name: torch.tensor([meta.initial], dtype=torch.float64) for name, meta in NETWORK.metas().items()
    }
    found = NETWORK(initial, CONTEXT, edges(features), Links(SPEC))
    assert all(bool((output == 0).all()) for output in found)
    metas = {name: meta.requires_grad_() for name, meta in drawn()[0].items()}
    outputs = NETWORK(metas, CONTEXT, edges(features), Links(SPEC))
    torch.cat(outputs, 1).square().sum().backward()
    for name, meta in metas.items():
        assert meta.grad is not None, name
        assert bool((meta.grad != 0).any()), name
