"""Hand-written actions on real modules: the function is kept, and every term is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metanet import WeightSpec, spec_of, verify
from metanet.action import Action


def acted(model: nn.Module, inputs: tuple[Tensor, ...], actions: str) -> WeightSpec:
    """Return the derived spec of a model with these actions in place of derived ones."""
    spec = replace(spec_of(model, *inputs), actions=())
    written = WeightSpec.parse(f"{spec}\nactions\n{actions}")
    return replace(spec, actions=written.actions)


class Attention(nn.Module):
    """Grouped-query attention without positions, all biases, fused queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 4 * 5 + 2 * 5 + 2 * 3), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split([20, 10, 6], -1)
        q, k, v = (t.unflatten(-1, (n, -1)).transpose(1, 2) for t, n in ((q, 4), (k, 2), (v, 2)))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        z: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return x + z


H, Q, QK, V = "qkv.head", "qkv.query", "qkv.qk", "qkv.v"


def parts(head: str, qk: str, q: str = "", k: str = "", v: str = "") -> str:
    """Return the rows of the fused projection with marks on its leaves."""
    rows = [f"({H}{{}} {Q} {QK}{{}})", f"({H}{{}} {QK}{{}})", f"({H}{{}} {V}{{}})"]
    filled = [row.format(head if m else "", m) for row, m in zip(rows, (q, k, v), strict=True)]
    return f"[{' | '.join(filled)}]"


ATTENTION = f"""
linear {H} {QK}
- qkv.weight   {parts("^", QK, q="^-1")} 6
- qkv.bias     {parts("^", QK, q="^-1")}
- qkv.weight   {parts("^", QK, k="^")} 6
- qkv.bias     {parts("^", QK, k="^")}
linear {H} {V}
- qkv.weight   {parts("^", V, v="^")} 6
- qkv.bias     {parts("^", V, v="^")}
- out.weight   6 ({H}^ {Q} {V}^-1)
shift {H} {QK}
- qkv.bias   {parts("^", QK, k="^")}
"""


class Gated(nn.Module):
    """A gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(3, 5), nn.Linear(3, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return y


class Normed(nn.Module):
    """A residual stream that only LayerNorms read."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(7, 6), nn.Parameter(torch.randn(4, 6))
        self.norm, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 5), nn.Linear(5, 6)
        self.last, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        y: Tensor = self.head(self.last(x))
        return y


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], str]] = {
    "attention": (Attention, (torch.zeros(1, 3, 6),), ATTENTION),
    "gated MLP": (
        Gated,
        (torch.zeros(2, 3),),
        "scale gate\n- up.weight  gate^ 3\n- up.bias  gate^\n- down.weight  3 gate^-1",
    ),
    "LayerNorm": (
        Normed,
        (torch.zeros(1, 4, dtype=torch.long),),
        "shift 7\n- embed.weight  7^ embed\nshift 4\n- place  4^ embed\nshift\n- down.bias  embed\n"
        "shift up\n- down.weight  embed up^",
    ),
    "BatchNorm": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
        ),
        (torch.zeros(2, 2, 4, 4),),
        "positive_scale layer0\n- 0.weight  layer0^ 2 3 3\n- 0.bias  layer0^\n- 1.running_mean  layer0^\n"
        "- 1.running_var  layer0^2~1e-05",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_function_is_kept(name: str) -> None:
    torch.manual_seed(0)
    factory, inputs, actions = CASES[name]
    model = factory()
    spec = acted(model, inputs, actions)
    assert WeightSpec.parse(str(spec)) == spec
    verification = verify(spec, model, *inputs)
    assert verification.ok, str(verification)
    assert {action.kind for action in spec.actions} <= verification.errors.keys()
    assert not verification.dead
    controlled = [action for action in spec.actions if len(action.terms) > 1]
    assert len(verification.controls) == len(spec.groups) + len(controlled)


@pytest.mark.parametrize("name", CASES)
def test_every_term_is_needed(name: str) -> None:
    """Without a term, with a power turned round or an eps forgotten, the function changes."""
    torch.manual_seed(0)
    factory, inputs, actions = CASES[name]
    model = factory()
    spec = acted(model, inputs, actions)
    for number, action in enumerate(spec.actions):
        for wrong in wrong_tables(action, spec):
            others = (*spec.actions[:number], wrong, *spec.actions[number + 1 :])
            found = verify(replace(spec, actions=others), model, *inputs, draws=1, kinds=[action.kind])
            assert found.max_error > 1e-5, f"{wrong}: {wrong.terms}"


def wrong_tables(action: Action, spec: WeightSpec) -> list[Action]:
    if len(action.terms) < 2:
        return []
    wrong = []
    free = {(t.entry, t.leaves) for a in spec.actions if a.kind == "shift" for t in a.terms}
    for i, term in enumerate(action.terms):
        if (term.entry, term.leaves) in free:  # a key bias may be anything
            continue
        before, after = action.terms[:i], action.terms[i + 1 :]
        wrong.append(replace(action, terms=before + after))
        wrong.append(replace(action, terms=(*before, replace(term, power=-term.power), *after)))
        if term.eps is not None:
            wrong.append(replace(action, terms=(*before, replace(term, eps=0.1), *after)))
    return wrong
