"""What does a step of a learned optimizer cost, beside AdamW and Muon?

One thread; gradients are fixed random numbers. The optimizers take turns and the smallest CPU time of all
rounds counts. *Without turning* gives every matrix the role ``embedding``, whose base direction is Adam's:
what is left is the network alone. Muon multiplies in bfloat16, which not every CPU does fast; its float32
twin stands beside it. Transients are what tensors made during a step hold at a time.

    python scripts/benchmark_optimizer_step.py
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from os import getloadavg
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, _muon

from metanet import spec_of
from metanet.optim import LearnedOptimizer, MetaWeights
from metanet.optim.pretrained import RULES
from metanet.optim.roles import is_matrix, roles_of
from metanet.testing import peak_allocation

RESULTS = Path(__file__).parent / "results" / "benchmark_optimizer_step.md"


class Transformer(nn.Module):
    """A small language model: 4 blocks of width 128, 1,000 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, 128)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True) for _ in range(4)
        )
        self.head = nn.Linear(128, 1000)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ``[batch, length, 1000]`` logits."""
        hidden = self.embedding(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(hidden)
        return logits


def mlp(width: int, layers: int) -> nn.Module:
    """Return an MLP of square layers."""
    return nn.Sequential(*[m for _ in range(layers) for m in (nn.Linear(width, width), nn.ReLU())])


MODELS: Mapping[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "MLP 4 x 512² (1.05 M)": (lambda: mlp(512, 4), lambda: torch.zeros(2, 512)),
    "transformer (1.05 M)": (Transformer, lambda: torch.zeros(2, 8, dtype=torch.long)),
    "MLP 10 x 1024² (10.5 M)": (lambda: mlp(1024, 10), lambda: torch.zeros(2, 1024)),
}


def muon(model: nn.Module) -> list[Optimizer]:
    """Return torch's Muon on matrices, AdamW on the rest."""
    roles = roles_of(model)
    named = dict(model.named_parameters())
    matrices = [p for n, p in named.items() if is_matrix(p) and roles[n] != "embedding"]
    chosen = {id(p) for p in matrices}
    rest = [p for p in named.values() if id(p) not in chosen]
    return [torch.optim.Muon(matrices), torch.optim.AdamW(rest, foreach=True)]


def learned(rule: str, *, linked: bool, turned: bool) -> Callable[[nn.Module, Tensor], list[Optimizer]]:
    """Return a maker of learned optimizers with random meta-weights, so that every term takes part."""
    made = RULES[rule]()
    flat = torch.randn(1, made.size, generator=torch.Generator().manual_seed(0)) * 0.3
    weights = MetaWeights(rule, made, made.unpack(flat))

    def make(model: nn.Module, example: Tensor) -> list[Optimizer]:
        spec = spec_of(model, example) if linked else None
        if turned:
            return [LearnedOptimizer.from_pretrained(weights, model, total_steps=1000, spec=spec)]
        group = {"params": list(model.named_parameters()), "role": "embedding"}
        return [LearnedOptimizer([group], total_steps=1000, weights=weights, spec=spec)]

    return make


KINDS: Mapping[str, Callable[[nn.Module, Tensor], list[Optimizer]]] = {
    "AdamW foreach": lambda model, _: [torch.optim.AdamW(model.parameters(), foreach=True)],
    "AdamW fused": lambda model, _: [torch.optim.AdamW(model.parameters(), fused=True)],
    "Muon + AdamW": lambda model, _: muon(model),
    "Muon float32 + AdamW": lambda model, _: muon(model),
    "structured": learned("structured", linked=False, turned=True),
    "per_parameter": learned("per_parameter", linked=False, turned=True),
    "mixing": learned("mixing", linked=False, turned=True),
    "mixing, linked": learned("mixing", linked=True, turned=True),
    "structured without turning": learned("structured", linked=False, turned=False),
    "per_parameter without turning": learned("per_parameter", linked=False, turned=False),
    "mixing without turning": learned("mixing", linked=False, turned=False),
    "mixing, linked, without turning": learned("mixing", linked=True, turned=False),
}


def newton_schulz_float32(
    grad: Tensor, ns_coefficients: tuple[float, float, float], ns_steps: int, eps: float
) -> Tensor:
    """Do what torch's Muon does, in float32."""
    a, b, c = ns_coefficients
    x = grad.T if grad.size(0) > grad.size(1) else grad
    x = x / x.norm().clamp(min=eps)
    for _ in range(ns_steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if grad.size(0) > grad.size(1) else x


def prepared(model: str, kind: str) -> tuple[nn.Module, list[Optimizer]]:
    """Return a model with gradients and its optimizers."""
    torch.manual_seed(0)
    build, example = MODELS[model]
    network = build()
    made = KINDS[kind](network, example())
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter) * 1e-3
    return network, made


def step(kind: str, optimizers: list[Optimizer]) -> float:
    """Take a step; return its CPU milliseconds."""
    own = _muon._zeropower_via_newtonschulz
    if kind == "Muon float32 + AdamW":
        _muon._zeropower_via_newtonschulz = newton_schulz_float32
    begun = time.process_time()
    for optimizer in optimizers:
        optimizer.step()
    spent = (time.process_time() - begun) * 1e3
    _muon._zeropower_via_newtonschulz = own
    return spent


def floats_of_state(optimizers: list[Optimizer]) -> int:
    """Return the numbers that the optimizers keep."""
    return sum(
        value.numel()
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    )


def memory(model: str, kind: str) -> dict[str, float]:
    """Return floats per parameter: of the state, and of the tensors that a step holds beside it at a time."""
    network, optimizers = prepared(model, kind)
    count = sum(p.numel() for p in network.parameters())
    step(kind, optimizers)
    most = peak_allocation(lambda: step(kind, optimizers))
    return {"state": floats_of_state(optimizers) / count, "transient": most / 4 / count}


def measure(model: str, kinds: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Return milliseconds, state and transients by kind."""
    made = {kind: prepared(model, kind)[1] for kind in kinds}
    best = {kind: [step(kind, made[kind])] for kind in kinds}
    for _ in range(rounds):
        for kind in kinds:
            repeats = 1 if best[kind][0] > 200 else 5
            best[kind] += [step(kind, made[kind]) for _ in range(repeats)]
    found = {}
    for kind in kinds:
        found[kind] = {"ms": min(best[kind][1:]), **memory(model, kind)}
    return found


def table(model: str, found: Mapping[str, Mapping[str, float]]) -> str:
    """Return a Markdown table."""
    lines = [
        f"## {model}",
        "",
        "| optimizer | CPU-ms | / AdamW foreach | / AdamW fused | / Muon | / Muon float32 | state "
        "| transient |",
        "|---|---|---|---|---|---|---|---|",
    ]
    against = ["AdamW foreach", "AdamW fused", "Muon + AdamW", "Muon float32 + AdamW"]
    for kind, row in found.items():
        ratios = " | ".join(
            f"{row['ms'] / found[name]['ms']:.2f}" if name in found else "" for name in against
        )
        lines.append(f"| {kind} | {row['ms']:.2f} | {ratios} | {row['state']:.2f} | {row['transient']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="beginnings of names")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--print", action="store_true", help="print alone, write no file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = ", ".join(f"{value:.1f}" for value in getloadavg())
    header = (
        f"# The step of learned optimizers\n\n{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, 1 thread, "
        f"torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), Python "
        f"{platform.python_version()}; load averages at the start {load}.\n\nSmallest CPU time of all "
        "rounds. State and transient: floats per parameter.\n"
    )
    parts = [header]
    for model in (name for name in MODELS if name.startswith(tuple(options.models))):
        parts.append(table(model, measure(model, options.kinds, options.rounds)) + "\n")
        print(parts[-1], flush=True)
        if not options.print:
            RESULTS.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
