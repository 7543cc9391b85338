"""The whole path on embedded images: fit networks, train a metanetwork on their weights, compare, report."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import metanet
from metanet_tasks.classification import CHECKPOINT
from metanet_tasks.datamodule import ZooDataModule
from metanet_tasks.demo_report import write_report
from metanet_tasks.prediction import classify
from metanet_tasks.training import TrainingResult, fit_classifier
from metanet_tasks.zoos import store_spec
from metanet_zoo.atomic import atomic_path, write_json_atomic
from metanet_zoo.fit.inr import fit_inrs
from metanet_zoo.image_set import ImageSet
from metanet_zoo.images import open_images
from metanet_zoo.store import Zoo


@dataclass(frozen=True)
class Recipe:
    """What decides how long the demo takes and how good it gets.

    Args:
        test_images: number of held-out images; each has one network.
        train_images: number of images to learn from, of the rest.
        views: networks per training image.
        epochs: of every classifier.
    """

    test_images: int = 360
    train_images: int = 1437
    views: int = 8
    epochs: int = 8


FULL = Recipe()
QUICK = Recipe(test_images=200, train_images=600, views=2, epochs=4)

ARCHITECTURE: dict[str, Any] = {"name": "siren", "omega": 10.0}
"""SIREN 2-32-32-1. Its usual frequency of 30 suits larger images; on 8 x 8 pixels it leaves too much free."""


@dataclass(frozen=True)
class Contestant:
    """A classifier of the comparison.

    Args:
        title: in the tables.
        run: folder of its run.
        data: settings of `ZooDataModule`.
        training: settings of `fit_classifier`.
    """

    title: str
    run: str
    data: dict[str, Any]
    training: dict[str, Any]


FLAT_DATA = {"noise": 0.1, "group_augmentation": "permutations"}
FLAT_TRAINING = {
    "network": "flat_mlp",
    "options": {"hidden_features": 512, "dropout": 0.1},
    "learning_rate": 1e-3,
}

CONTESTANTS = (
    Contestant(
        "metanetwork (GMN) on canonical weights",
        "metanetwork",
        {"noise": 0.05, "motion": 0.06},
        {
            "network": "gmn",
            "options": {"hidden_channels": 64, "num_layers": 3, "message": "product", "dropout": 0.3},
            "learning_rate": 3e-3,
        },
    ),
    Contestant("MLP on flattened canonical weights", "flat_mlp_canonical", FLAT_DATA, FLAT_TRAINING),
    Contestant(
        "MLP on flattened raw weights", "flat_mlp_raw", {**FLAT_DATA, "canonical": False}, FLAT_TRAINING
    ),
)
"""The metanetwork first. All see the same networks for as many epochs and standardise their input.

The settings of the MLPs are the best of a search on canonical weights over augmentation (noise from 0.05 to
1 σ, permutations, moved signals), width 128 to 1024, one to three layers, dropout, weight decay and learning
rate: 13 to 21 % held out there, 9 to 12 % on raw weights. Permutations keep them from memorising.
"""


def demo(
    out: str | Path = "metanet-demo", *, seed: int = 0, quick: bool = False, announce: bool = True
) -> dict[str, Any]:
    """Run the whole path and leave a report.

    Args:
        out: folder for zoos, runs, ``report.html``, ``report.json`` and ``predictions.csv``; what an
            interrupted demo left there is continued.
        seed: of everything random.
        quick: fewer networks and epochs, to see it work rather than shine.
        announce: say on standard error what is being done.

    Returns:
        What ``report.json`` holds: accuracies, timings, settings.

    Raises:
        ValueError: the folder holds a demo with other settings.
    """
    folder, recipe = Path(out), QUICK if quick else FULL
    folder.mkdir(parents=True, exist_ok=True)
    clock = Clock(announce)
    train_images, test_images = demo_images(recipe, seed)
    with clock.stage(f"fitting {len(train_images) * recipe.views + len(test_images):,} networks to images"):
        train_zoo = fit_inrs(
            train_images, folder / "train.zoo", architecture=ARCHITECTURE, views=recipe.views, seed=seed
        )
        test_zoo = fit_inrs(test_images, folder / "test.zoo", architecture=ARCHITECTURE, seed=seed)
        for zoo in (train_zoo, test_zoo):
            store_spec(zoo)
    results: list[TrainingResult] = []
    for contestant in CONTESTANTS:
        with clock.stage(f"training: {contestant.title}"):
            results.append(train_contestant(contestant, folder, recipe, seed))
    with clock.stage("classifying held-out networks"):
        predictions = classify([test_zoo.path], results[0].model, top=3)
        with atomic_path(folder / "predictions.csv") as temporary:
            temporary.write_text(predictions.to_csv(), encoding="utf-8")
    summary = summarise(recipe, seed, train_zoo, test_zoo, results, clock.stages)
    with clock.stage("writing the report"):
        write_report(
            folder, summary, test_images, test_zoo, predictions, dict(zip(titles(), results, strict=True))
        )
    summary["stages"], summary["seconds"] = clock.stages, sum(clock.stages.values())
    write_json_atomic(folder / "report.json", summary)
    return summary


def titles() -> list[str]:
    """Return the titles of the contestants, the metanetwork first."""
    return [contestant.title for contestant in CONTESTANTS]


def train_contestant(contestant: Contestant, folder: Path, recipe: Recipe, seed: int) -> TrainingResult:
    """Train one classifier of the comparison on the demo's zoos, or continue it."""
    data = ZooDataModule(
        str(folder / "train.zoo"),
        str(folder / "test.zoo"),
        batch_size=64,
        seed=seed,
        **contestant.data,
    )
    run = folder / contestant.run
    return fit_classifier(
        data,
        run,
        max_epochs=recipe.epochs,
        seed=seed,
        name=contestant.title,
        resume=(run / CHECKPOINT).exists(),
        **contestant.training,
    )


def demo_images(recipe: Recipe, seed: int) -> tuple[ImageSet, ImageSet]:
    """Return training and held-out images: the embedded digits, divided alike in every class."""
    digits = open_images("digits")
    assert digits.labels is not None
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
    place = torch.empty(len(digits))
    for label in digits.labels.unique():
        members = order[digits.labels[order] == label]
        place[members] = (torch.arange(len(members)) + 0.5) / len(members)
    balanced = place.argsort(stable=True)
    test = balanced[: recipe.test_images]
    train = balanced[recipe.test_images : recipe.test_images + recipe.train_images]
    return _subset(digits, train), _subset(digits, test)


def _subset(images: ImageSet, chosen: Tensor) -> ImageSet:
    assert images.labels is not None
    ids = tuple(images.ids[i] for i in chosen.tolist())
    return ImageSet(images.images[chosen], images.labels[chosen], images.label_names, ids)


def summarise(
    recipe: Recipe,
    seed: int,
    train_zoo: Zoo,
    test_zoo: Zoo,
    results: list[TrainingResult],
    stages: dict[str, float],
) -> dict[str, Any]:
    """Return the figures of a demo as plain JSON values."""
    classifiers: list[dict[str, Any]] = [
        {
            "name": contestant.title,
            "accuracy": result.metrics["test/accuracy"],
            "train_accuracy": result.metrics["train/accuracy"],
            "seconds": result.seconds,
            "num_parameters": result.to_dict()["num_parameters"],
            "run": contestant.run,
        }
        for contestant, result in zip(CONTESTANTS, results, strict=True)
    ]
    counts = torch.bincount(test_zoo.labels)
    chance = {"name": "chance (the most frequent class)", "accuracy": float(counts.max() / counts.sum())}
    classifiers.append(
        {**chance, "train_accuracy": None, "seconds": None, "num_parameters": None, "run": None}
    )
    psnr = torch.cat([torch.as_tensor(zoo.column("psnr")) for zoo in (train_zoo, test_zoo)])
    return {
        "metanet": metanet.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "processor": platform.processor() or platform.machine(),
        },
        "seed": seed,
        "recipe": asdict(recipe),
        "architecture": dict(train_zoo.architecture),
        "networks": {"train": len(train_zoo), "test": len(test_zoo)},
        "psnr": {"median": float(psnr.median()), "min": float(psnr.min())},
        "classifiers": classifiers,
        "stages": stages,
        "seconds": sum(stages.values()),
    }


class Clock:
    """Times the stages of a run and announces them.

    Args:
        announce: whether to say on standard error what begins.

    Attributes:
        stages: seconds by stage.
    """

    def __init__(self, announce: bool) -> None:
        self.announce = announce
        self.stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what happens in the block."""
        if self.announce:
            print(f"metanet: {name} …", file=sys.stderr, flush=True)
        start = time.monotonic()
        yield
        self.stages[name] = round(time.monotonic() - start, 2)
