"""What does a training step of the equivariant classifiers cost, beside `nfn` and the bare matrix products?

Forward and backward of UNF and DWSNet classifiers (`WeightClassifier`) and of `nfn`'s HNP network with the
same number of layers and channels and the same head, on random weights. Every figure comes from a process of
its own, under the default allocator or with page faults gone (`MALLOC_MMAP_THRESHOLD_` and
`MALLOC_TRIM_THRESHOLD_` raised: memory is kept instead of returned); the kinds take turns and the smallest
CPU time of all rounds counts. Needs `pip install nfn`.

    python scripts/benchmark_engine.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from metanet.features import WeightFeatures
from metanet.nn import WeightClassifier
from metanet.nn.stack import EquivariantStack
from metanet.spec import WeightSpec

RESULTS = Path(__file__).parent / "results" / "benchmark_engine.md"
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 33)}
CHANNELS, LAYERS, CLASSES, HEAD = 32, 5, 10, 256
KINDS = ("nfn", "unf", "dws", "products", "all products")


@dataclass(frozen=True, slots=True)
class Case:
    """One figure: who, on how many hidden layers of 32 units, how many networks, with memory kept or not."""

    kind: str
    depth: int
    batch: int
    kept: bool


def mlp_spec(depth: int) -> WeightSpec:
    """Return the spec of an MLP 2-32-…-32-1."""
    groups = "groups " + " ".join(f"h{i}: 32" for i in range(1, depth + 1))
    names = ["2", *(f"h{i}" for i in range(1, depth + 1)), "1"]
    rows = [f"{i}.weight {names[i + 1]} {names[i]}\n{i}.bias {names[i + 1]}" for i in range(depth + 1)]
    return WeightSpec.parse("\n".join([groups, *rows]))


def metanet_step(kind: str, spec: WeightSpec, batch: int) -> Callable[[], None]:
    """Return one training step of a classifier of ours."""
    model = WeightClassifier(
        spec,
        CLASSES,
        network="unf" if kind == "unf" else "dws",
        hidden_channels=CHANNELS,
        num_layers=LAYERS,
        head_features=HEAD,
    )
    weights = {name: torch.randn(batch, *shape) for name, shape in spec.shapes.items()}
    features = WeightFeatures.from_state_dict(spec, weights, batched=True)
    return lambda: training_step(model, features)


def nfn_step(spec: WeightSpec, batch: int) -> Callable[[], None]:
    """Return one training step of `nfn`'s HNP network."""
    from nfn.common import WeightSpaceFeatures, network_spec_from_wsfeat
    from nfn.layers import HNPLinear, HNPPool, TupleOp

    shapes = list(spec.shapes.values())
    features = WeightSpaceFeatures(
        tuple(torch.randn(batch, 1, *shape) for shape in shapes[::2]),
        tuple(torch.randn(batch, 1, *shape) for shape in shapes[1::2]),
    )
    network = network_spec_from_wsfeat(features)
    layers: list[nn.Module] = []
    for layer in range(LAYERS):
        layers += [HNPLinear(network, CHANNELS if layer else 1, CHANNELS), TupleOp(nn.ReLU())]
    pooled = CHANNELS * HNPPool.get_num_outs(network)
    head = [nn.Flatten(), nn.Linear(pooled, HEAD), nn.ReLU(), nn.Linear(HEAD, CLASSES)]
    model = nn.Sequential(*layers, HNPPool(network), *head)
    return lambda: training_step(model, features)


def training_step(model: nn.Module, features: object) -> None:
    """Forward, cross-entropy, backward."""
    model.zero_grad()
    logits: Tensor = model(features)
    labels = torch.arange(logits.shape[0]) % CLASSES
    nn.functional.cross_entropy(logits, labels).backward()


def product_step(spec: WeightSpec, batch: int, *, every: bool) -> Callable[[], None]:
    """Return the matrix products of a step of UNF: one forwards, two backwards per layer.

    Those of the weights that carry two groups alone, all layers with C channels in and out; or those of
    every signature, with their real widths (the first layer has no gradient to pass on).
    """
    model = WeightClassifier(spec, CLASSES, hidden_channels=CHANNELS, num_layers=LAYERS)
    stack = model.network.stack
    assert isinstance(stack, EquivariantStack)
    work: list[tuple[Tensor, Tensor, Tensor, bool]] = []
    room: dict[tuple[int, ...], Tensor] = {}
    for layer in range(LAYERS):
        before, after = stack.widths[layer], stack.widths[layer + 1]
        for product in stack.walks[0].plan.products:
            rows = batch * prod(product.sizes)
            source = sum(before[b] for b in product.read_blocks)
            target = sum(after[b] for b in product.write_blocks)
            if not every:
                source = target = CHANNELS
            if every or len(product.sizes) == 2:
                x, y = torch.randn(rows, source), torch.randn(rows, target)
                work.append((x, torch.randn(source, target), y, layer > 0 or not every))
                for shape in ((rows, source), (rows, target), (source, target)):
                    room.setdefault(shape, torch.empty(shape))

    def step() -> None:
        for x, matrix, y, below in work:
            torch.mm(x, matrix, out=room[tuple(y.shape)])
            torch.mm(x.t(), y, out=room[tuple(matrix.shape)])
            if below:
                torch.mm(y, matrix.t(), out=room[tuple(x.shape)])

    return step


def measure(case: Case, repeats: int) -> dict[str, float]:
    """Run one case in this process."""
    torch.manual_seed(0)
    spec = mlp_spec(case.depth)
    if case.kind == "nfn":
        step = nfn_step(spec, case.batch)
    elif case.kind in ("unf", "dws"):
        step = metanet_step(case.kind, spec, case.batch)
    else:
        step = product_step(spec, case.batch, every=case.kind == "all products")
    step()
    cpu, wall = [], []
    for _ in range(repeats):
        begun, started = time.process_time(), time.perf_counter()
        step()
        cpu.append(1e3 * (time.process_time() - begun))
        wall.append(1e3 * (time.perf_counter() - started))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"cpu": min(cpu), "wall": min(wall), "peak": peak}


def run(case: Case, repeats: int, threads: int) -> dict[str, float]:
    """Run one case in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k not in KEPT} | (KEPT if case.kept else {})
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case)), "--repeats", str(repeats)]
    command += ["--threads", str(threads)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{case} failed:\n{done.stderr}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def table(best: dict[Case, dict[str, float]]) -> list[str]:
    """Return the rows of the table, and the ratios to `nfn` and to the products."""
    lines = [
        "| network | batch | allocator | nfn | UNF | DWSNet | products | all products | UNF / nfn "
        "| DWSNet / nfn | UNF, DWSNet / products | … / all products | peak MiB nfn, UNF, DWSNet |",
        "|" + "---|" * 13,
    ]
    for depth, batch, kept in dict.fromkeys((c.depth, c.batch, c.kept) for c in best):
        cell = {kind: best[Case(kind, depth, batch, kept)] for kind in KINDS}
        cpu = {kind: figures["cpu"] for kind, figures in cell.items()}
        times = " | ".join(f"{cpu[kind]:.1f}" for kind in KINDS)
        peaks = ", ".join(f"{cell[kind]['peak']:.0f}" for kind in ("nfn", "unf", "dws"))
        lines.append(
            f"| 2-{'32-' * depth if depth < 3 else f'32×{depth}-'}1 | {batch} | "
            f"{'memory kept' if kept else 'default'} | {times} "
            f"| **{cpu['unf'] / cpu['nfn']:.2f}** | **{cpu['dws'] / cpu['nfn']:.2f}** "
            f"| {cpu['unf'] / cpu['products']:.2f}, {cpu['dws'] / cpu['products']:.2f} "
            f"| {cpu['unf'] / cpu['all products']:.2f}, {cpu['dws'] / cpu['all products']:.2f} | {peaks} |"
        )
    return lines


def machine(threads: int) -> str:
    """The machine and the versions that the figures belong to."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {names[0] if names else platform.processor()}, "
        f"{os.cpu_count()} cores, {threads} thread(s), torch {torch.__version__} "
        f"({torch.backends.cpu.get_cpu_capability()}), Python {platform.python_version()}; "
        f"load averages at the start {load}."
    )


def compare(depths: Sequence[int], batches: Sequence[int], rounds: int, threads: int) -> list[str]:
    """Run every case, the kinds taking turns, and return the report."""
    begun = machine(threads)
    best: dict[Case, dict[str, float]] = {}
    for _ in range(rounds):
        for depth in depths:
            for batch in batches:
                for kept in (False, True):
                    for kind in KINDS:
                        case = Case(kind, depth, batch, kept)
                        found = run(case, 8 if batch <= 64 else 3, threads)
                        before = best.get(case, found)
                        best[case] = {key: min(found[key], before[key]) for key in found}
    return [
        "# Forward and backward of weight classifiers",
        "",
        begun,
        "",
        f"CPU-ms (user + system) per step, smallest of {rounds} rounds in processes of their own; "
        f"{LAYERS} layers × {CHANNELS} channels, mean pooling, head {HEAD}.",
        "",
        *table(best),
        "",
        "- *products*: one product forwards and two backwards per layer, of the weights with two groups, "
        f"{CHANNELS} × {CHANNELS}.",
        "- *all products*: those of every signature with their real widths; no form of the maps avoids them.",
        "- Required: default allocator ≤ 0.5 × nfn at batch 64 and ≤ 0.35 × at 512; memory kept ≤ 0.5 × at "
        "both and ≤ 2.5 × the products; 8 hidden layers ≤ 0.2 × nfn.",
    ]


def main() -> None:
    """Run, print and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 8], help="hidden layers of 32 units")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=8, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.case:
        print(json.dumps(measure(Case(**json.loads(arguments.case)), arguments.repeats)))
        return
    lines = compare(arguments.depths, arguments.batches, arguments.rounds, arguments.threads)
    print("\n".join(lines))
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
