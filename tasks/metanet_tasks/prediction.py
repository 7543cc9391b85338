"""Classifying networks by their weights: from a zoo, a folder of checkpoints, or single files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metanet_tasks.classification import INRClassification, load_classifier
from metanet_zoo.checkpoint import open_checkpoint
from metanet_zoo.layout import INDEX_SUFFIX, TORCH_SUFFIXES, TRAINING_STATE
from metanet_zoo.manifest import MANIFEST, UNFINISHED
from metanet_zoo.store import Zoo

CHECKPOINT_SUFFIXES = (".safetensors", *TORCH_SUFFIXES)


@dataclass(frozen=True)
class Prediction:
    """What the weights of one network say.

    Args:
        name: file of the network; in a zoo, the image it was fitted to, or its place.
        ranking: ``(label, probability)``, the most probable first; empty for an invalid network.
        true_label: what it really is, where that is known.
        error: why the network could not be classified.
    """

    name: str
    ranking: tuple[tuple[str, float], ...]
    true_label: str | None = None
    error: str | None = None

    @property
    def label(self) -> str | None:
        """The most probable label."""
        return self.ranking[0][0] if self.ranking else None


@dataclass(frozen=True)
class Predictions:
    """All predictions of one call, and how many of them are right.

    Args:
        rows: one per network.
        accuracy: share of right ones among those whose label is known; None if none is.
    """

    rows: tuple[Prediction, ...]
    accuracy: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "networks": len(self.rows),
            "invalid": sum(row.error is not None for row in self.rows),
            "accuracy": self.accuracy,
            "predictions": [
                {
                    "name": row.name,
                    "label": row.label,
                    "ranking": [{"label": label, "probability": p} for label, p in row.ranking],
                    "true_label": row.true_label,
                    "error": row.error,
                }
                for row in self.rows
            ],
        }

    def to_csv(self) -> str:
        """Return a table: name, label, probability, true_label, error, then the runners-up."""
        top = max([len(row.ranking) for row in self.rows], default=1)
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        more = [f"{word}_{i}" for i in range(2, top + 1) for word in ("label", "probability")]
        writer.writerow(["name", "label", "probability", "true_label", "error", *more])
        for row in self.rows:
            cells = [[label, f"{p:.6f}"] for label, p in row.ranking] or [["", ""]]
            rest = [cell for pair in cells[1:] for cell in pair]
            writer.writerow([row.name, *cells[0], row.true_label or "", row.error or "", *rest])
        return stream.getvalue()


def classify(
    sources: Sequence[str | Path],
    model: str | Path | INRClassification,
    *,
    top: int = 1,
    skip_invalid: bool = False,
) -> Predictions:
    """Classify networks by their weights.

    Args:
        sources: each a zoo, a folder of checkpoints (one network per file), or a checkpoint.
        model: a trained classifier, its checkpoint, or the folder of its run.
        top: number of labels to rank per network.
        skip_invalid: give a network that cannot be read, or is of another architecture, a row that says why,
            instead of raising.

    Raises:
        ValueError: a source is no zoo and no checkpoint, or a network does not fit the model; it is named.
    """
    classifier = model if isinstance(model, INRClassification) else load_classifier(model)
    if not 1 <= top <= len(classifier.label_names):
        raise ValueError(
            f"top must be between 1 and the number of labels, {len(classifier.label_names)}; found {top}"
        )
    rows: list[Prediction] = []
    for source in sources:
        rows.extend(_classify_source(Path(source), classifier, top, skip_invalid))
    known = [row for row in rows if row.true_label is not None and row.error is None]
    accuracy = sum(row.label == row.true_label for row in known) / len(known) if known else None
    return Predictions(tuple(rows), accuracy)


def _classify_source(
    source: Path, classifier: INRClassification, top: int, skip_invalid: bool
) -> Iterator[Prediction]:
    if (source / MANIFEST).is_file() or (source / UNFINISHED).is_file():
        yield from _classify_zoo(Zoo.open(source), classifier, top)
        return
    for file in checkpoint_files(source):
        try:
            tensors = _single(file, classifier)
        except (ValueError, OSError) as error:
            if not skip_invalid:
                raise ValueError(f"{file}: {error} (--skip-invalid gives it a row instead)") from None
            yield Prediction(str(file), (), error=" ".join(str(error).split()))
            continue
        yield Prediction(str(file), rank(classifier.probabilities(tensors), classifier.label_names, top)[0])


def _classify_zoo(zoo: Zoo, classifier: INRClassification, top: int) -> Iterator[Prediction]:
    try:
        classifier.spec.check(zoo.shapes)
    except ValueError as error:
        raise ValueError(f"{zoo.path}: {error}") from None
    names = zoo_names(zoo)
    truth: list[str] | None = None
    if "label" in zoo.manifest.columns:
        known = zoo.label_names
        truth = [known[label] if known else str(label) for label in zoo.labels.tolist()]
    for batch in zoo.batches(512):
        rankings = rank(classifier.probabilities(batch.weights), classifier.label_names, top)
        for index, ranking in zip(batch.indices.tolist(), rankings, strict=True):
            yield Prediction(names[index], ranking, truth[index] if truth else None)


def checkpoint_files(source: Path) -> list[Path]:
    """Return the checkpoints a source stands for: itself, or every one in a folder.

    A folder with an index of shards is one checkpoint.

    Raises:
        ValueError: there is nothing, or nothing that is a checkpoint by its name.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise ValueError(f"there is no {source}; pass a zoo, a folder of checkpoints or a checkpoint")
    names = sorted(file.name for file in source.iterdir() if file.is_file())
    if any(name.endswith(INDEX_SUFFIX) for name in names):
        return [source]
    found = [n for n in names if n.endswith(CHECKPOINT_SUFFIXES) and not TRAINING_STATE.match(n)]
    if not found:
        raise ValueError(
            f"{source} holds neither a zoo ({MANIFEST}) nor checkpoints ({', '.join(CHECKPOINT_SUFFIXES)})"
        )
    return [source / name for name in found]


def zoo_names(zoo: Zoo) -> list[str]:
    """Return a name per network: its image's and, where it has several fits, the view; else its place."""
    columns = zoo.manifest.columns
    if "image_id" not in columns:
        return [f"{zoo.path.name}[{i}]" for i in range(len(zoo))]
    ids = [str(name) for name in zoo.column("image_id")]
    views = zoo.column("view") if "view" in columns else None
    if not isinstance(views, Tensor) or not int(views.max()):
        return ids
    return [f"{name}#{view}" for name, view in zip(ids, views.tolist(), strict=True)]


def rank(probabilities: Tensor, labels: Sequence[str], top: int) -> list[tuple[tuple[str, float], ...]]:
    """Return the most probable labels of every network.

    Args:
        probabilities: ``[models, classes]``.
        labels: names of the classes.
        top: how many.
    """
    values, places = probabilities.topk(top, dim=-1)
    return [
        tuple((labels[place], value) for place, value in zip(row, ps, strict=True))
        for row, ps in zip(places.tolist(), values.tolist(), strict=True)
    ]


def _single(file: Path, classifier: INRClassification) -> dict[str, Tensor]:
    checkpoint = open_checkpoint(file)
    classifier.spec.check({name: checkpoint.shape(name) for name in checkpoint})
    tensors = {name: tensor[None] for name, tensor in checkpoint.state_dict().items()}
    broken = [n for n, t in tensors.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if broken:
        raise ValueError(f"values that are not finite in {', '.join(broken)}; the network has diverged")
    return tensors
