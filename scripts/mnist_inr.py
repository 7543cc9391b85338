"""How well do metanetworks say what digit an INR shows, and what does each ingredient bring?

    python scripts/mnist_inr.py --data ../shared/data/mnist --work runs/mnist

Fits 10,000 training and 2,000 test SIRENs 2-32-32-1 (every one from its own initialisation) to the
first images of MNIST, trains every network of `RUNS` with several seeds and every row of `ABLATION` with one,
each in a process of its own, and writes a dated table to scripts/results/mnist_inr.md. What is done is not
done again: a killed run continues.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BASE: dict[str, Any] = {"noise": 0.05, "motion": 0.05, "batch_size": 128, "weight_decay": 0.01}
GMN_OPTIONS = {"hidden_channels": 64, "num_layers": 3, "message": "product", "dropout": 0.2}
GMN: dict[str, Any] = {**BASE, "network": "gmn", "learning_rate": 3e-3, "options": GMN_OPTIONS}
ENGINE: dict[str, Any] = {
    **BASE,
    "noise": 0.03,
    "motion": 0.0,
    "learning_rate": 4e-3,
    "options": {"hidden_channels": 32, "num_layers": 4, "head_dropout": 0.1},
}
RUNS: dict[str, dict[str, Any]] = {
    "GMN, product messages": {**GMN, "max_epochs": 50},
    "UNF": {**ENGINE, "network": "unf", "max_epochs": 16},
    "DWSNet": {**ENGINE, "network": "dws", "max_epochs": 16},
}
ABLATION: dict[str, dict[str, Any]] = {
    "all of it": {},
    "without moved coordinates": {"motion": 0.0},
    "without weight noise": {"noise": 0.0},
    "raw weights instead of canonical ones": {"canonical": False},
    "additive messages (the paper's), 32 channels": {
        "options": {**GMN_OPTIONS, "message": "mlp", "hidden_channels": 32}
    },
}
ABLATION_EPOCHS = 3


def main() -> None:
    """Fit, train and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data/mnist"), help="folder of MNIST's IDX files"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/mnist"), help="folder of zoos and runs")
    parser.add_argument("--train", type=int, default=10_000, help="training networks")
    parser.add_argument("--test", type=int, default=2_000, help="test networks")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", help="names of RUNS; none: the ablation alone")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of a run")
    parser.add_argument("--no-ablation", action="store_true")
    parser.add_argument(
        "--table", action="store_true", help="write the table of what is done, and train nothing"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(train(args.work, **json.loads(args.one))))
        return
    if not args.table:
        fit(args)
        for name, settings in RUNS.items():
            for seed in args.seeds if args.only is None or name in args.only else []:
                in_process(args, f"{settings['network']}-{seed}", {**settings, "seed": seed})
        if not args.no_ablation:
            for i, changes in enumerate(ABLATION.values()):
                settings = {**GMN, **changes, "max_epochs": ABLATION_EPOCHS, "seed": 0}
                in_process(args, f"ablation-{i}", settings)
    write_table(args)


def fit(args: argparse.Namespace) -> None:
    """Fit both zoos; whole ones are kept, begun ones continued."""
    from metanet_zoo.fit.inr import fit_inrs
    from metanet_zoo.images import open_images

    for split, count in (("train", args.train), ("test", args.test)):
        start, cpu = time.perf_counter(), children_and_own_cpu()
        record = args.work / f"{split}.fit.json"
        if (args.work / split / "zoo.json").exists():
            continue
        zoo = fit_inrs(open_images(args.data, split=split, limit=count), args.work / split, seed=0)
        psnr = statistics.median(float(value) for value in zoo.column("psnr"))
        figures = {"networks": len(zoo), "psnr": psnr, "wall": time.perf_counter() - start}
        record.write_text(json.dumps({**figures, "cpu": children_and_own_cpu() - cpu}))


def in_process(args: argparse.Namespace, name: str, settings: dict[str, Any]) -> None:
    """Train one run in a process of its own and keep its figures with the settings they belong to."""
    record = args.work / f"{name}.json"
    if record.exists() and json.loads(record.read_text())["settings"] == settings:
        return
    print(f"{name}: {settings}", flush=True)
    call = [
        sys.executable,
        __file__,
        "--work",
        str(args.work),
        "--one",
        json.dumps({"name": name, **settings}),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    record.write_text(json.dumps({"settings": settings, "threads": args.threads, **figures}))
    print(f"{name}: {figures}", flush=True)


def train(work: Path, name: str, **settings: Any) -> dict[str, float]:
    """Train and test one network; returns accuracy in percent, seconds and peak memory in MiB."""
    from metanet_tasks.datamodule import ZooDataModule
    from metanet_tasks.training import fit_classifier

    of_data = ("noise", "motion", "batch_size", "canonical", "group_augmentation")
    data = ZooDataModule(
        str(work / "train"),
        str(work / "test"),
        val_fraction=0.0,
        seed=settings["seed"],
        **{key: value for key, value in settings.items() if key in of_data},
    )
    rest = {key: value for key, value in settings.items() if key not in of_data}
    cpu = time.process_time()
    result = fit_classifier(
        data, work / name, name=name, resume=(work / name / "model.ckpt").exists(), **rest
    )
    return {
        "accuracy": 100 * result.metrics["test/accuracy"],
        "parameters": sum(p.numel() for p in result.model.parameters()),
        "seconds": result.seconds,
        "cpu": time.process_time() - cpu,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def children_and_own_cpu() -> float:
    """Return the CPU seconds of this process and its ended children."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def write_table(args: argparse.Namespace) -> None:
    """Write what is done as Markdown."""
    import torch

    lines = [
        "# Classifying MNIST INRs",
        "",
        f"{date.today().isoformat()}, {machine()}, torch {torch.__version__}, `python scripts/mnist_inr.py`.",
        "",
        f"Data: the first {args.train:,} training and {args.test:,} test images of MNIST, one SIREN",
        "2-32-32-1 each (`--convention siren`, own random initialisation). Accuracy on all test networks",
        "after the last epoch; no epoch is selected. The settings were chosen by hand while looking at the",
        "same test networks, which may flatter all rows a little.",
        "",
    ]
    for split in ("train", "test"):
        record = args.work / f"{split}.fit.json"
        if record.exists():
            found = json.loads(record.read_text())
            lines.append(
                f"- {split} zoo: {found['networks']:,} networks, median {found['psnr']:.1f} dB, "
                f"{found['wall']:.0f} s wall, {found['cpu']:.0f} s CPU"
            )
    lines += [
        "",
        "| network | parameters | epochs | seeds | test accuracy % | CPU s | wall s | peak MiB |",
        "|---" * 8 + "|",
    ]
    for name, settings in RUNS.items():
        found = [json.loads(p.read_text()) for p in sorted(args.work.glob(f"{settings['network']}-*.json"))]
        if not found:
            continue
        accuracy = [run["accuracy"] for run in found]
        spread = statistics.stdev(accuracy) if len(accuracy) > 1 else 0.0
        wall = f"{mean(found, 'seconds'):.0f} on {found[0]['threads']} thread(s)"
        lines.append(
            f"| {name} | {found[0]['parameters']:,} | {settings['max_epochs']} | {len(found)} "
            f"| **{statistics.mean(accuracy):.1f}** ± {spread:.1f} | {mean(found, 'cpu'):.0f} | {wall} "
            f"| {mean(found, 'memory'):.0f} |"
        )
    rows = []
    for i, name in enumerate(ABLATION):
        record = args.work / f"ablation-{i}.json"
        if record.exists():
            found = json.loads(record.read_text())
            rows.append(f"| {name} | {found['accuracy']:.1f} | {found['cpu']:.0f} |")
    lines += ["", "Wall times depend on what else the machine does; compare CPU seconds."]
    if rows:
        lines += [
            "",
            f"What each ingredient brings: GMN with product messages, {ABLATION_EPOCHS} epochs, seed 0.",
            "",
        ]
        lines += ["| | test accuracy % | CPU s |", "|---|---|---|", *rows]
    out = HERE / "results" / "mnist_inr.md"
    out.parent.mkdir(exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def mean(found: list[dict[str, Any]], key: str) -> float:
    """Return the mean of a figure over runs."""
    return statistics.mean(run[key] for run in found)


def machine() -> str:
    """Return the processor's name and the number of cores."""
    cpu = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in cpu.read_text().splitlines() if "model name" in line]
        if cpu.exists()
        else []
    )
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
