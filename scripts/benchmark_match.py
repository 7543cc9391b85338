"""What does weight matching cost, and how near does it come, beside the package `rebasin`?

A 784-512-512-512-10 MLP and ResNet-20 of width 1 and 4: trained pairs where `merging_training.py` has left
them in --nets, otherwise random weights. Every figure comes from a process of its own on one thread; the
tools take turns, and the smallest CPU time of all rounds counts. A tool's time includes finding the symmetry
(tracing). The objective is ‖a − b'‖² over all parameters, computed here from the weights that each tool left.

    pip install rebasin torchview graphviz      # in an environment of its own, with the same torch
    python scripts/benchmark_match.py --rival-python /path/to/that/python --nets runs/merging
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from merging_training import mlp, resnet20
from torch import Tensor, nn

RESULTS = Path(__file__).parent / "results" / "benchmark_match.md"
CASES = {
    "MLP 3×512": ("mnist", lambda: mlp(), (1, 1, 28, 28)),
    "ResNet-20": ("cifar10", lambda: resnet20(), (1, 3, 32, 32)),
    "ResNet-20, 4× width": ("", lambda: resnet20(4), (1, 3, 32, 32)),
}
TOOLS = ("metanet", "rebasin")


def networks(case: str, nets: Path | None) -> tuple[nn.Module, nn.Module, Tensor, str]:
    """Return two networks, an input, and whether they are trained."""
    dataset, make, shape = CASES[case]
    pair, kind = [], "random weights"
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = make().eval()
        file = nets / dataset / f"{seed}.safetensors" if nets is not None and dataset else None
        if file is not None and file.is_file():
            from safetensors.torch import load_file

            model.load_state_dict(load_file(file))
            kind = "trained"
        pair.append(model)
    return pair[0], pair[1], torch.randn(shape, generator=torch.Generator().manual_seed(0)), kind


def distance(a: nn.Module, b: nn.Module) -> float:
    """Return ‖a − b‖² over all parameters."""
    return sum(
        float((x - y).detach().double().square().sum())
        for x, y in zip(a.parameters(), b.parameters(), strict=True)
    )


def measure(tool: str, case: str, nets: Path | None) -> dict[str, object]:
    """Match one pair with one tool, in this process."""
    torch.set_num_threads(1)
    a, b, x, kind = networks(case, nets)
    before = distance(a, b)
    with torch.no_grad():
        expected = b(x)
    if tool == "metanet":
        import metanet
        from metanet.matching.weights import weight_matching

        begun = time.process_time()
        spec = metanet.spec_of(b, x)
        traced = time.process_time()
        found = weight_matching(spec, a.state_dict(), b.state_dict())
        matched = time.process_time()
        b.load_state_dict(found.element @ b.state_dict())
    else:
        from rebasin import PermutationCoordinateDescent

        begun = time.process_time()
        descent = PermutationCoordinateDescent(a, b, x, device_a="cpu", device_b="cpu")
        traced = time.process_time()
        descent.calculate_permutations()
        matched = time.process_time()
        descent.apply_permutations()
    with torch.no_grad():
        kept = float((b(x) - expected).abs().max())
    return {
        "cpu_s": matched - begun,
        "tracing_s": traced - begun,
        "before": before,
        "after": distance(a, b),
        "output_change": kept,
        "weights": kind,
    }


def run(tool: str, case: str, python: str, nets: Path | None) -> dict[str, object]:
    """Match one pair with one tool, in a process of its own."""
    command = [python, __file__, "--tool", tool, "--case", case]
    command += ["--nets", str(nets)] if nets is not None else []
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **threads}, check=False)
    if done.returncode:
        raise RuntimeError(f"{tool} on {case}: {done.stderr[-2000:]}")
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def table(rows: dict[str, dict[str, dict[str, object]]], rounds: int) -> str:
    """Return the results as Markdown."""
    processor = platform.processor() or platform.machine()
    lines = [
        "# Weight matching beside `rebasin` 0.0.47",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {processor}, one thread, torch {torch.__version__}; smallest CPU "
        f"time of {rounds} rounds, the tools taking turns. Distance: ‖a − b'‖² over all "
        "parameters.",
        "",
        "| network | weights | distance before | after: metanet, rebasin | matching, CPU s: metanet, rebasin "
        "(ratio) | with tracing, CPU s |",
        "|---|---|---|---|---|---|",
    ]
    for case, row in rows.items():
        ours, theirs = row["metanet"], row["rebasin"]
        whole = [float(r["cpu_s"]) for r in (ours, theirs)]  # type: ignore[arg-type]
        alone = [float(r["cpu_s"]) - float(r["tracing_s"]) for r in (ours, theirs)]  # type: ignore[arg-type]
        lines.append(
            f"| {case} | {ours['weights']} | {ours['before']:.1f} | {ours['after']:.1f}, "
            f"{theirs['after']:.1f} | {alone[0]:.2f}, {alone[1]:.2f} "
            f"({alone[0] / alone[1]:.2f}) | {whole[0]:.2f}, {whole[1]:.2f} |"
        )
    changes = [row[tool]["output_change"] for row in rows.values() for tool in TOOLS]
    worst = max(map(float, changes))  # type: ignore[arg-type]
    lines += [
        "",
        f"Outputs of the aligned networks change by at most {worst:.1g}. Tracing here is `torch.export`, "
        "some 2 s in a fresh process whatever the network; it derives what a hand-written spec would say.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure one figure, or all of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rival-python", default=sys.executable, help="interpreter that has rebasin")
    parser.add_argument("--nets", type=Path, help="folder of trained networks (merging_training.py)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tool", choices=TOOLS, help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tool is not None:
        print(json.dumps(measure(options.tool, options.case, options.nets)))
        return
    rows: dict[str, dict[str, dict[str, object]]] = {}
    for case in CASES:
        best: dict[str, dict[str, object]] = {}
        for _ in range(options.rounds):
            for tool in TOOLS:
                python = options.rival_python if tool == "rebasin" else sys.executable
                found = run(tool, case, python, options.nets)
                if tool not in best or found["cpu_s"] < best[tool]["cpu_s"]:  # type: ignore[operator]
                    best[tool] = found
        rows[case] = best
        print(case, json.dumps(best), flush=True)
    RESULTS.write_text(table(rows, options.rounds), encoding="utf-8")
    print(RESULTS)


if __name__ == "__main__":
    main()
