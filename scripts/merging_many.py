"""How good is the average of two to eight networks trained apart, brought into one order of units?

    python scripts/merging_many.py --work runs/merging

The MLPs 784-512-512-512-10 that `merging_training.py` trains on MNIST and Fashion-MNIST: the first n of
seeds 0, 1, …. Naive, every network aligned to the first, MergeMany, and cycle-consistent
matching by Frank–Wolfe, with MergeMany behind it and without. What is done is kept in --work and not done
again. The table goes to scripts/results/merging_many.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from image_pairs import Evaluator
from merging_training import RECIPES, trained
from torch import Tensor

from metanet import GroupElement, WeightSpec, spec_of
from metanet.matching.many import cycle_consistent_matching, merge_many_matching
from metanet.matching.weights import weight_matching
from metanet.merging.paths import mean_of
from metanet_zoo.atomic import write_json_atomic

RESULTS = Path(__file__).parent / "results" / "merging_many.md"
DATASETS = ("mnist", "fashion-mnist")
COUNTS = (2, 3, 4, 6, 8)
States = Sequence[dict[str, Tensor]]
Elements = Sequence[GroupElement]


def naive(spec: WeightSpec, states: States) -> Elements:
    """Return no alignment."""
    return [GroupElement.identity(spec) for _ in states]


def to_the_first(spec: WeightSpec, states: States) -> Elements:
    """Align every network to the first one."""
    rest = [weight_matching(spec, states[0], state).element for state in states[1:]]
    return [GroupElement.identity(spec), *rest]


METHODS: dict[str, Callable[[WeightSpec, States], Elements]] = {
    "naive": naive,
    "each to the first": to_the_first,
    "MergeMany": lambda spec, states: merge_many_matching(spec, states).elements,
    "Frank–Wolfe": lambda spec, states: cycle_consistent_matching(spec, states, polish=False).elements,
}
POLISHED = "Frank–Wolfe, then MergeMany"
"""What `cycle_consistent_matching` does by default; Frank–Wolfe's elements are not found twice for it."""


def spread(states: States) -> float:
    """Return the mean squared distance of networks to their mean."""
    mean = mean_of(states)
    total = sum(
        float((state[name] - mean[name]).double().square().sum()) for state in states for name in mean
    )
    return total / len(states)


def measure(dataset: str, work: Path, largest: int) -> dict[str, Any]:
    """Measure what has not been measured of one data set, up to a number of networks, and return all."""
    target = work / dataset / "many.json"
    found: dict[str, Any] = json.loads(target.read_text()) if target.is_file() else {}
    evaluator = Evaluator(dataset)
    spec = spec_of(evaluator.model, evaluator.test.x[:1])
    states = [trained(dataset, seed, work) for seed in range(max(COUNTS))]
    if "ends" not in found:
        found["ends"] = [evaluator.measure(state, evaluator.test)[1] for state in states]
    for count in [count for count in COUNTS if count <= largest]:
        chosen = states[:count]
        for name, match in METHODS.items():
            key = f"{count} {name}"
            if key in found:
                continue
            begun = time.process_time()
            elements = match(spec, chosen)
            found[key] = worth(evaluator, chosen, elements, time.process_time() - begun)
            if name == "Frank–Wolfe":
                polished = merge_many_matching(spec, chosen, elements=elements).elements
                seconds = time.process_time() - begun
                found[f"{count} {POLISHED}"] = worth(evaluator, chosen, polished, seconds)
            write_json_atomic(target, found)
            print(dataset, key, json.dumps(found[key]), flush=True)
    return found


def worth(evaluator: Evaluator, states: States, elements: Elements, seconds: float) -> dict[str, float]:
    """Return accuracy and loss of the mean of networks brought into one order, and their spread."""
    moved = [element @ state for element, state in zip(elements, states, strict=True)]
    merged = mean_of(moved)
    loss, _ = evaluator.measure(merged, evaluator.train)
    _, accuracy = evaluator.measure(merged, evaluator.test)
    return {"accuracy": accuracy, "loss": loss, "spread": spread(moved), "cpu_s": seconds}


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = [
        "# The average of many networks trained apart",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, torch {torch.__version__}, CPU. MLPs "
        "784-512-512-512-10, one per seed, brought into one order of units by their weights and averaged: "
        "the first n of seeds 0, 1, …. –: not measured; the same command goes on there.",
    ]
    for dataset, found in results.items():
        ends = found["ends"]
        header = [str(count) for count in COUNTS]
        lines += ["", f"## {dataset}, {RECIPES[dataset].epochs} epochs", ""]
        lines += [
            f"The networks reach {100 * fmean(ends):.2f} % ({100 * min(ends):.2f}) on the test images.",
        ]
        for title, value, digits in (
            ("Test accuracy in percent", lambda row: 100 * row["accuracy"], 2),
            ("Loss on the first 20,000 training images", lambda row: row["loss"], 4),
            ("Mean squared distance to the mean", lambda row: row["spread"], 1),
            ("Matching, CPU s", lambda row: row["cpu_s"], 1),
        ):
            lines += ["", f"| {title}, n = | {' | '.join(header)} |", "|---" * (len(header) + 1) + "|"]
            for name in (*METHODS, POLISHED):
                rows = [found.get(f"{count} {name}") for count in COUNTS]
                cells = ["–" if row is None else f"{value(row):.{digits}f}" for row in rows]
                lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure what is missing, write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/merging"))
    parser.add_argument(
        "--largest", type=int, default=max(COUNTS), metavar="N", help="most networks (default 8)"
    )
    options = parser.parse_args()
    results = {name: measure(name, options.work, options.largest) for name in DATASETS}
    RESULTS.write_text(table(results), encoding="utf-8")
    print(RESULTS)


if __name__ == "__main__":
    main()
