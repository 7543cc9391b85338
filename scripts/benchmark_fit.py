"""How much CPU and wall time does the stacked fitter take, beside fitting one network at a time?

Both sides fit SIREN 2-32-32-1 (convention "siren", ω = 30) to the same MNIST images from the same initial
values, with Adam, the same learning rate and the same number of steps; the single networks are plain
`torch.nn` modules with autograd and `torch.optim.Adam`. The kinds take turns, and the median of the rounds
counts. Last, the default fit (every network to 36 dB) of as many networks as asked for is timed as a whole.

    python scripts/benchmark_fit.py --mnist ../shared/data/mnist --networks 12000
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import nn

from metanet_zoo.architectures import Siren
from metanet_zoo.fit.inr import fit_inrs, initial_generator
from metanet_zoo.fit.siren import ParameterLayout
from metanet_zoo.image_set import ImageSet, pixel_coordinates
from metanet_zoo.images import open_images
from metanet_zoo.store import Zoo

RESULTS = Path(__file__).parent / "results" / "benchmark_fit.md"


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU and wall milliseconds per network-step."""

    cpu: float
    wall: float


def measured(run: Callable[[], int]) -> Cost:
    """Time a call that returns the number of network-steps it made."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    made = run()
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(1e3 * cpu / made, 1e3 * wall / made)


def fit_one_at_a_time(
    images: ImageSet, chosen: range, steps: int, learning_rate: float, psnr: dict[int, float]
) -> int:
    """The plain script: one module, one optimizer, one loop per image."""
    grid = pixel_coordinates(*images.size)
    layout = ParameterLayout(Siren())
    for i in chosen:
        module, target = Siren(), images.signal(i)
        start = layout.draw(initial_generator(0, images.ids[i], 0))[None]
        module.load_state_dict({name: value[0] for name, value in layout.split(start).items()})
        optimizer = torch.optim.Adam(module.parameters(), lr=learning_rate)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(module(grid), target)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            psnr[i] = -10 * math.log10(float(nn.functional.mse_loss(module(grid), target)))
    return len(chosen) * steps


def fit_stacked(
    images: ImageSet, steps: int, learning_rate: float, threads: int, psnr: dict[int, float]
) -> int:
    """The stacked fitter on the same images, written to disk as always."""
    with tempfile.TemporaryDirectory() as folder:
        zoo = fit_inrs(
            images,
            Path(folder) / "zoo",
            steps=steps,
            learning_rate=learning_rate,
            target_psnr=None,
            threads=threads,
            progress=False,
        )
        psnr.update(enumerate(zoo.metadata.column("psnr").to_pylist()))
    return len(images) * steps


def compare(images: ImageSet, single: int, steps: int, learning_rate: float, rounds: int) -> list[str]:
    """Rows of the table and the two ratios that matter."""
    default = torch.get_num_threads()
    psnr: dict[str, dict[int, float]] = {}
    costs: dict[str, list[Cost]] = {}

    def one(threads: int, name: str, first: int) -> None:
        torch.set_num_threads(threads)
        chosen = range(first, first + single)
        values = psnr.setdefault(name, {})
        cost = measured(lambda: fit_one_at_a_time(images, chosen, steps, learning_rate, values))
        costs.setdefault(name, []).append(cost)
        torch.set_num_threads(default)

    def stacked(threads: int, name: str) -> None:
        values = psnr.setdefault(name, {})
        cost = measured(lambda: fit_stacked(images, steps, learning_rate, threads, values))
        costs.setdefault(name, []).append(cost)

    one_thread, all_threads = "one at a time, 1 thread", f"one at a time, torch's default ({default} threads)"
    stack_one, stack_all = "stacked, 1 thread", f"stacked, {default} threads"
    fit_one_at_a_time(images, range(1), steps, learning_rate, {})
    for turn in range(rounds):
        one(1, one_thread, turn * single)
        one(default, all_threads, turn * single)
        stacked(1, stack_one)
        stacked(default, stack_all)
    middle = {
        name: Cost(statistics.median(c.cpu for c in turns), statistics.median(c.wall for c in turns))
        for name, turns in costs.items()
    }
    both = sorted(psnr[one_thread])
    apart = [abs(psnr[one_thread][i] - psnr[stack_one][i]) for i in both]
    table = [
        "| | CPU-ms per network-step | wall-ms per network-step | PSNR median / min |",
        "|---|---|---|---|",
    ]
    for name, values in psnr.items():
        cost, level = middle[name], statistics.median(values.values())
        table.append(
            f"| {name} ({len(values)} networks) | {cost.cpu:.3f} | {cost.wall:.3f} | {level:.1f} / "
            f"{min(values.values()):.1f} dB |"
        )
    cpu = middle[stack_all].cpu / middle[one_thread].cpu
    wall = middle[all_threads].wall / middle[stack_all].wall
    return [
        *table,
        "",
        f"- {steps} steps, learning rate {learning_rate:g}, {rounds} rounds. On the {len(both)} images that",
        f"  both sides fitted, PSNR differs by {statistics.median(apart):.2f} dB in the median, "
        f"{max(apart):.2f} dB at most.",
        f"- CPU time, stacked on {default} threads against one at a time on 1 thread: **{cpu:.2f}×**",
        "  (required: at most 0.45×).",
        f"- Wall time, one at a time at torch's defaults against stacked: **{wall:.1f}×**",
        "  (required: at least 15×).",
    ]


def default_fit(images: ImageSet) -> str:
    """Time the default fit of all images, from pixels to a verified zoo."""
    with tempfile.TemporaryDirectory() as folder:
        before, start = time.process_time(), time.perf_counter()
        fit_inrs(images, Path(folder) / "zoo")
        wall, cpu = time.perf_counter() - start, time.process_time() - before
        zoo = Zoo.open(Path(folder) / "zoo")
        psnr, steps = (np.array(zoo.metadata.column(name).to_pylist()) for name in ("psnr", "steps"))
        verified = "verified" if zoo.verify().ok else "BROKEN"
    return (
        f"- Default fit of {len(images):,} networks, each to 36 dB, zoo {verified}: **{wall:.0f} s**, "
        f"{cpu:.0f} CPU-s\n  ({steps.mean():.0f} steps in the mean, {steps.max()} at most; PSNR median "
        f"{np.median(psnr):.1f} dB, min {psnr.min():.1f} dB;\n"
        "  required for 12,000: at most 300 s on 2 cores)."
    )


def machine() -> str:
    """The machine and the versions that the figures belong to."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, torch {torch.__version__} "
        f"({torch.backends.cpu.get_cpu_capability()}),\nNumPy {np.__version__}, Python "
        f"{platform.python_version()}; load averages at the start {load}"
    )


def main() -> None:
    """Run, print and write the results."""
    data = Path(os.environ.get("METANET_DATA", Path(__file__).parents[2] / "shared" / "data"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mnist", type=Path, default=data / "mnist", help="folder of MNIST's IDX files")
    parser.add_argument(
        "--networks", type=int, default=12_000, help="networks of the default fit; 0 leaves it out"
    )
    parser.add_argument("--stacked", type=int, default=256, help="networks per stacked round")
    parser.add_argument("--single", type=int, default=6, help="networks fitted one at a time per round")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    lines = [
        "# Fitting INRs: stacked and one at a time",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {machine()}.",
        "",
    ]
    images = open_images(arguments.mnist, limit=arguments.stacked)
    lines += compare(images, arguments.single, arguments.steps, arguments.learning_rate, arguments.rounds)
    if arguments.networks:
        lines.append(default_fit(open_images(arguments.mnist, limit=arguments.networks)))
    text = "\n".join(lines) + "\n"
    print(text)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
