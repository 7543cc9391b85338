"""How good is the average of two networks that were trained apart, as they are and aligned?

    python scripts/merging_quality.py --work runs/merging

MLPs 784-512-512-512-10 on MNIST and Fashion-MNIST, five pairs of seeds; on CIFAR-10 ResNet-20, with batch
norm reset, REPAIR and RESCALE, and a plain CNN, three pairs each; small Llamas over the characters of tiny
Shakespeare, three pairs. Barrier: the largest height of the loss over 25 points above the chord between the
ends. What is done is kept in --work and not done again: a killed run continues. The tables go to
scripts/results/merging_quality.md.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from character_transformer import NAME as TEXT
from character_transformer import RECIPE
from image_pairs import CALIBRATION, ROWS, TRAINING, Evaluator, image_pair
from merging_training import RECIPES
from text_pairs import POINTS, WINDOWS, text_pair

from metanet_zoo.checkpoint import open_checkpoint

RESULTS = Path(__file__).parent / "results" / "merging_quality.md"
FIVE, THREE = [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)], [(0, 1), (0, 2), (1, 2)]
PAIRS = {"mnist": FIVE, "fashion-mnist": FIVE, "cifar10": THREE, "cifar10-cnn": THREE, TEXT: THREE}
NETWORKS = {
    "mnist": "MLP 3×512",
    "fashion-mnist": "MLP 3×512",
    "cifar10": "ResNet-20, 1× width",
    "cifar10-cnn": "CNN 32-64-128, no norms",
    TEXT: "Llama, 2 layers of width 96",
}
IMAGES = {"mnist": (60000, 10000), "fashion-mnist": (60000, 10000)}
Pair = Mapping[str, Any]


def summary(values: Sequence[float], digits: int, worst: float) -> str:
    """Return a mean and, in brackets, the worst value."""
    return f"{fmean(values):.{digits}f} ({worst:.{digits}f})"


def image_table(results: Mapping[str, list[Pair]]) -> list[str]:
    """Return the rows of the classifiers."""
    lines = [
        "| data, network | merge | ends | midpoint | barrier | ‖a − b‖² removed | singular vectors |",
        "|---|---|---|---|---|---|---|",
    ]
    for dataset, pairs in results.items():
        ends = 100 * fmean(fmean(pair["ends"]) for pair in pairs)
        for row in ROWS[dataset]:
            having = [pair for pair in pairs if row.label in pair["rows"]]
            found = [pair["rows"][row.label] for pair in having]
            if not found:
                continue
            label = row.label if having == pairs else f"{row.label} ({len(having)} of {len(pairs)} pairs)"
            accuracy = [100 * item["accuracy"] for item in found]
            cells = [f"{ends:.2f}", summary(accuracy, 2, min(accuracy))]
            heights = [item["barrier"] for item in found if "barrier" in item]
            cells.append(summary(heights, 4, max(heights)) if heights else "–")
            facts = [pair["matchings"][row.matching] for pair in having]
            cells.append(f"{fmean(fact['gain'] for fact in facts):.1%}" if row.matching != "naive" else "–")
            cells.append(f"{fmean(fact['singular'] for fact in facts):.3f}")
            lines.append(f"| {dataset}, {NETWORKS[dataset]} | {label} | {' | '.join(cells)} |")
    return lines


def text_table(pairs: list[Pair]) -> list[str]:
    """Return the rows of the language models."""
    lines = [
        "| data, network | merge | ends | midpoint | barrier | ‖a − b‖² removed | singular vectors |",
        "|---|---|---|---|---|---|---|",
    ]
    ends = fmean(fmean(pair["ends"]) for pair in pairs)
    for label in pairs[0]["rows"]:
        found = [pair["rows"][label] for pair in pairs]
        middle, heights = [row["midpoint"] for row in found], [row["barrier"] for row in found]
        cells = [f"{ends:.3f}", summary(middle, 3, max(middle)), summary(heights, 3, max(heights))]
        gain = fmean(row["gain"] for row in found)
        cells += [f"{gain:.1%}" if gain else "–", f"{fmean(row['singular'] for row in found):.3f}"]
        lines.append(f"| {TEXT}, {NETWORKS[TEXT]} | {label} | {' | '.join(cells)} |")
    return lines


def training_facts(work: Path, dataset: str, pairs: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """Return how the networks of some pairs were trained, as their files say."""
    facts = []
    for seed in sorted({seed for pair in pairs for seed in pair}):
        if dataset == TEXT:
            facts.append(json.loads((work / dataset / str(seed) / "training.json").read_text()))
        else:
            metadata = open_checkpoint(work / dataset / f"{seed}.safetensors").metadata
            facts.append(json.loads(metadata["training"]))
    return facts


def training_table(results: Mapping[str, list[Pair]], work: Path) -> list[str]:
    """Return what was trained, for how long, and on how much it was measured."""
    lines = [
        "| data, network | networks, pairs | training | CPU s each | loss on the path | corrections | test |",
        "|---|---|---|---|---|---|---|",
    ]
    for dataset, pairs in results.items():
        facts = training_facts(work, dataset, [tuple(pair["seeds"]) for pair in pairs])
        recipe, seconds = facts[0]["recipe"], fmean(fact["cpu_s"] for fact in facts)
        rate = (
            f"{recipe['optimizer']}, batches of {recipe['batch_size']}, rate up to {recipe['learning_rate']}"
        )
        if dataset == TEXT:
            how = f"{recipe['steps']} steps of {recipe['context']} characters each, {rate}"
            measured = f"{WINDOWS} held-out windows of {RECIPE.context} | – | the same windows"
        else:
            train, test = IMAGES.get(dataset, (27000, 2000))
            how = f"{recipe['epochs']} epochs of {train:,} images, {rate}"
            how += ", flips and crops" if recipe["augment"] else ""
            count, calibration = TRAINING.get(dataset, 2000), CALIBRATION.get(dataset, 2000)
            measured = f"{count:,} training images | {calibration:,} training images | {test:,} images"
        lines.append(
            f"| {dataset}, {NETWORKS[dataset]} | {len(facts)}, {len(pairs)} "
            f"| {how}, weight decay {recipe['weight_decay']} "
            f"| {seconds:.0f} | {measured} |"
        )
    return lines


def document(results: Mapping[str, list[Pair]], work: Path) -> str:
    """Return the results as Markdown."""
    images = {name: pairs for name, pairs in results.items() if name != TEXT and pairs}
    texts = results.get(TEXT, [])
    lines = [
        "# The average of two networks trained apart",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, torch {torch.__version__}, CPU. Barrier: the "
        f"largest height of the loss over {POINTS} points above the chord. Mean over pairs of seeds, in "
        "brackets the worst pair. Matching: *weights*, weight matching as it is by default; *23 starts*, the "
        "nearest of greedy, sorted, identity and 20 random starts; *activations*, by correlations on the "
        "images of the corrections. Singular vectors: their alignment, 1 for equal ones.",
        "",
        "## Classifiers",
        "",
        "Accuracy on test images in percent; barrier of the training loss. CIFAR-10 runs in bfloat16.",
        "",
        *image_table(images),
    ]
    for dataset, pairs in images.items():
        parts = []
        for matching in pairs[0]["matchings"]:
            known = [pair["matchings"] for pair in pairs if matching in pair["matchings"]]
            seconds = [facts[matching]["cpu_s"] for facts in known]
            if matching != "naive":
                parts.append(f"{matching} {fmean(seconds):.2f}")
        lines += ["", f"Matching {dataset}, CPU s: {', '.join(parts)}."]
    if texts:
        costs = [
            f"{label}: {fmean(pair['rows'][label]['cpu_s'] for pair in texts):.2f}"
            for label in texts[0]["rows"]
            if not label.startswith("naive")
        ]
        lines += [
            "",
            "## Language models",
            "",
            "Loss in nats per character, on held-out text, for the barrier too. *Stream fixed*: neurons and "
            "heads move; *permuted*: the residual stream too; *turned*: by an orthogonal map, once the gains "
            "of the norms are folded into what reads them.",
            "",
            *text_table(texts),
            "",
            f"Matching, CPU s: {'; '.join(costs)}.",
        ]
    done = {name: pairs for name, pairs in results.items() if pairs}
    return "\n".join([*lines, "", "## Training and measurement", "", *training_table(done, work), ""])


def main() -> None:
    """Train what is missing, measure every pair, write the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/merging"))
    parser.add_argument(
        "--only", action="append", choices=PAIRS, help="measure these data sets (default all)"
    )
    parser.add_argument(
        "--trained-only", action="store_true", help="leave out pairs that are not trained yet"
    )
    options = parser.parse_args()
    results: dict[str, list[Pair]] = {}
    for dataset, seeds in PAIRS.items():
        wanted = dataset in (options.only or PAIRS)
        results[dataset] = []
        evaluator = None
        for pair in seeds:
            kept = options.work / dataset / f"pair-{pair[0]}-{pair[1]}.json"
            if not wanted:
                results[dataset] += [json.loads(kept.read_text())] if kept.is_file() else []
                continue
            ending = "/training.json" if dataset == TEXT else ".safetensors"
            files = [options.work / dataset / f"{seed}{ending}" for seed in pair]
            if options.trained_only and not all(file.is_file() for file in files):
                continue
            if dataset == TEXT:
                results[dataset].append(text_pair(pair, options.work))
            else:
                evaluator = evaluator or Evaluator(dataset)
                results[dataset].append(image_pair(dataset, pair, options.work, evaluator))
    assert set(RECIPES) | {TEXT} == set(PAIRS)
    RESULTS.write_text(document(results, options.work), encoding="utf-8")
    print(RESULTS)


if __name__ == "__main__":
    main()
