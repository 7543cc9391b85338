"""How good is the average of two networks that were trained apart, as they are and aligned?

    python scripts/merging_quality.py --work runs/merging

MLPs 784-512-512-512-10 on MNIST and Fashion-MNIST, five pairs of seeds; ResNet-20 on CIFAR-10, three pairs,
with batch norm reset, REPAIR and RESCALE. Barrier: the largest height of the training loss over 25 points
above the chord between the ends. What is done is kept in --work and not done again: a killed run continues.
The table goes to scripts/results/merging_quality.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from merging_training import RECIPES, Images, build, load, trained
from torch import Tensor

from metanet import spec_of
from metanet.matching.singular import singular_vector_alignment
from metanet.matching.weights import weight_matching
from metanet.merging.paths import barrier_path, interpolate
from metanet.merging.repair import repair, reset_batch_norm
from metanet_zoo.atomic import write_json_atomic

RESULTS = Path(__file__).parent / "results" / "merging_quality.md"
PAIRS = {
    "mnist": [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)],
    "fashion-mnist": [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)],
    "cifar10": [(0, 1), (0, 2), (1, 2)],
}
POINTS = 25
CALIBRATION = 2000
"""Training images that corrections look at."""
TRAINING = {"mnist": 20000, "fashion-mnist": 20000, "cifar10": 2000}
"""Training images over which the loss along the path is measured: the first ones."""


class Evaluator:
    """Loss and accuracy of state dicts of one architecture."""

    def __init__(self, dataset: str) -> None:
        self.model = build(dataset).eval()
        whole = load(dataset, "train")
        count = TRAINING[dataset]
        self.train = Images(whole.x[:count].clone(), whole.y[:count])
        self.calibration = whole.x[-CALIBRATION:].clone()
        self.test = load(dataset, "test")

    def measure(self, state: Mapping[str, Tensor], images: Images) -> tuple[float, float]:
        """Return loss and accuracy."""
        self.model.load_state_dict(dict(state))
        self.model.eval()
        with torch.no_grad():
            logits = torch.cat([self.model(part) for part in images.x.split(500)])
        right = (logits.argmax(1) == images.y).float().mean()
        return float(F.cross_entropy(logits, images.y)), float(right)

    def reset(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a state with new statistics of batch norms."""
        self.model.load_state_dict(dict(state))
        reset_batch_norm(self.model, self.calibration.split(500))
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


def one_pair(dataset: str, seeds: tuple[int, int], work: Path) -> dict[str, object]:
    """Measure one pair, unless it has been."""
    target = work / dataset / f"pair-{seeds[0]}-{seeds[1]}.json"
    if target.is_file():
        found: dict[str, object] = json.loads(target.read_text())
        return found
    evaluator = Evaluator(dataset)
    a, b = (trained(dataset, seed, work) for seed in seeds)
    spec = spec_of(evaluator.model, evaluator.test.x[:1])
    begun = time.process_time()
    matching = weight_matching(spec, a, b)
    seconds = time.process_time() - begun
    aligned = matching.element @ b
    result: dict[str, object] = {
        "seeds": list(seeds),
        "matching_cpu_s": seconds,
        "gain": matching.gain,
        "ends": [evaluator.measure(state, evaluator.test)[1] for state in (a, b)],
        "ends_loss": [evaluator.measure(state, evaluator.train)[0] for state in (a, b)],
    }
    corrections = ["", "reset"] if dataset == "cifar10" else [""]
    for name, end in (("naive", b), ("aligned", aligned)):
        for correction in corrections:

            def loss(state: dict[str, Tensor], correction: str = correction) -> dict[str, float]:
                state = evaluator.reset(state) if correction else state
                return {"loss": evaluator.measure(state, evaluator.train)[0]}

            path = barrier_path(a, end, loss, points=POINTS)
            middle = interpolate(a, end, 0.5)
            middle = evaluator.reset(middle) if correction else middle
            label = f"{name}, BN reset" if correction else name
            result[label] = {
                "barrier": path.barrier,
                "losses": list(path.metrics["loss"]),
                "accuracy": evaluator.measure(middle, evaluator.test)[1],
            }
        singular = singular_vector_alignment(spec, a, end)
        result[f"{name} singular"] = fmean(singular.values())
    middle = interpolate(a, aligned, 0.5)
    for kind in ("repair", "rescale"):
        fixed = repair(
            evaluator.model,
            middle,
            a,
            aligned,
            evaluator.calibration,
            correction=kind,  # type: ignore[arg-type]
        )
        result[f"aligned, {kind.upper()}"] = {"accuracy": evaluator.measure(fixed, evaluator.test)[1]}
    write_json_atomic(target, result)
    print(dataset, seeds, json.dumps({k: v for k, v in result.items() if k != "losses"})[:400], flush=True)
    return result


def table(results: Mapping[str, list[dict[str, object]]]) -> str:
    """Return the results as Markdown."""
    lines = [
        "# The average of two networks trained apart",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, torch {torch.__version__}. Accuracy on test "
        "images in percent; barrier: the largest height of the training loss over 25 points above the chord "
        "(the first 20,000 training images, CIFAR-10: 2,000). Mean over pairs, then the worst pair.",
        "",
        "| data, network | merge | ends | midpoint | barrier | alignment of singular vectors |",
        "|---|---|---|---|---|---|",
    ]
    for dataset, pairs in results.items():
        if not pairs:
            continue
        recipe = RECIPES[dataset]
        network = "ResNet-20" if dataset == "cifar10" else "MLP 3×512"
        title = f"{dataset}, {network}, {recipe.epochs} epochs, {len(pairs)} pairs"
        ends = 100 * fmean(fmean(pair["ends"]) for pair in pairs)  # type: ignore[arg-type]
        for label in pairs[0]:
            rows = [pair[label] for pair in pairs]
            if not isinstance(rows[0], dict):
                continue
            accuracy = [100 * row["accuracy"] for row in rows]  # type: ignore[index]
            cell = f"{fmean(accuracy):.2f} ({min(accuracy):.2f})"
            barrier = "–"
            if "barrier" in rows[0]:
                heights = [row["barrier"] for row in rows]  # type: ignore[index]
                barrier = f"{fmean(heights):.4f} ({max(heights):.4f})"
            singular = pairs[0].get(f"{label} singular")
            shown = (
                "" if singular is None else f"{fmean(float(p[f'{label} singular']) for p in pairs):.3f}"  # type: ignore[arg-type]
            )
            lines.append(f"| {title} | {label} | {ends:.2f} | {cell} | {barrier} | {shown} |")
    seconds = {d: fmean(float(p["matching_cpu_s"]) for p in pairs) for d, pairs in results.items() if pairs}  # type: ignore[arg-type]
    gains = {d: fmean(float(p["gain"]) for p in pairs) for d, pairs in results.items() if pairs}  # type: ignore[arg-type]
    facts = [f"{d}: {gains[d]:.1%} less squared distance in {seconds[d]:.2f} CPU s" for d in seconds]
    lines += ["", f"Matching by weights alone, on one busy core. {'; '.join(facts)}.", ""]
    lines += [f"Training: {json.dumps({d: vars(RECIPES[d]) for d in results if results[d]})}.", ""]
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, measure every pair, write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/merging"))
    parser.add_argument("--only", action="append", choices=PAIRS, help="data sets (default all)")
    parser.add_argument(
        "--trained-only", action="store_true", help="leave out pairs that are not trained yet"
    )
    options = parser.parse_args()
    results: dict[str, list[dict[str, object]]] = {}
    for dataset in options.only or PAIRS:
        results[dataset] = []
        for seeds in PAIRS[dataset]:
            files = [options.work / dataset / f"{seed}.safetensors" for seed in seeds]
            if options.trained_only and not all(file.is_file() for file in files):
                continue
            results[dataset].append(one_pair(dataset, seeds, options.work))
    RESULTS.write_text(table(results), encoding="utf-8")
    print(RESULTS)


if __name__ == "__main__":
    main()
