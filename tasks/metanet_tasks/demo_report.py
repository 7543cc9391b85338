"""The report of a demo."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metanet_tasks import figures
from metanet_tasks.prediction import Predictions
from metanet_tasks.report import Report
from metanet_tasks.training import TrainingResult
from metanet_zoo.image_set import ImageSet, pixel_coordinates
from metanet_zoo.store import Zoo

FINE = (64, 64)
"""Pixels of the finer pictures."""


def write_report(
    folder: Path,
    summary: Mapping[str, Any],
    images: ImageSet,
    zoo: Zoo,
    predictions: Predictions,
    results: Mapping[str, TrainingResult],
) -> None:
    """Write ``report.html`` into the folder of a demo.

    Args:
        folder: of the demo.
        summary: what ``report.json`` will hold.
        images: the held-out images.
        zoo: the networks that were fitted to them, in the same order.
        predictions: for these networks, in the same order.
        results: title -> run, the metanetwork's first.
    """
    report = Report("What do these networks show? A metanetwork reads it from their weights")
    networks, recipe = summary["networks"], summary["recipe"]
    report.paragraph(
        f"{networks['train'] + networks['test']:,} networks ({_architecture(zoo)}) were each fitted to one "
        f"image of a handwritten digit, from random weights of their own. {networks['train']:,} of them, "
        f"{recipe['views']} for each of {recipe['train_images']:,} images, trained a metanetwork that sees "
        f"nothing but weights. The other {networks['test']:,} show images that no classifier has met; all "
        "accuracies are on these."
    )
    rows = [
        [
            row["name"],
            f"{100 * row['accuracy']:.1f} %",
            "" if row["train_accuracy"] is None else f"{100 * row['train_accuracy']:.1f} %",
            "" if row["num_parameters"] is None else f"{row['num_parameters']:,}",
            "" if row["seconds"] is None else f"{row['seconds']:.0f} s",
        ]
        for row in summary["classifiers"]
    ]
    report.table(["classifier", "held out", "training (augmented)", "parameters", "trained in"], rows, best=0)
    report.paragraph(
        "Canonical weights are the same functions, with the signs and phases that a sine unit is free to "
        "choose taken out exactly. What is left is the order of the hidden units, which the metanetwork does "
        "not notice by construction and an MLP on the flattened weights has to learn.",
        note=True,
    )
    _add_pictures(report, images, zoo, predictions)
    report.heading("Where the metanetwork errs")
    matrix = confusion_matrix(predictions, zoo.label_names)
    report.figure(figures.confusion(matrix, zoo.label_names), "Confusion matrix on the held-out networks.")
    report.heading("Learning curves")
    chance = float(summary["classifiers"][-1]["accuracy"])
    curves = {title: result.history for title, result in results.items()}
    report.figure(
        figures.learning_curve(curves, chance), "Accuracy on networks of validation images, by epoch."
    )
    report.heading("Quality of the fits")
    psnr = torch.as_tensor(zoo.column("psnr"))
    report.figure(
        figures.psnr_histogram(psnr),
        f"Held-out networks; median {float(psnr.median()):.1f} dB over all pixels.",
    )
    report.heading("The symmetry of these networks")
    report.code(str(results[next(iter(results))].model.spec))
    report.heading("Time")
    report.table(["stage", "time"], [[name, f"{s:.1f} s"] for name, s in summary["stages"].items()])
    machine = ", ".join(f"{key} {value}" for key, value in summary["machine"].items())
    report.paragraph(
        f"{summary['date']}, metanet {summary['metanet']}, {machine}, seed {summary['seed']}.", note=True
    )
    report.paragraph(
        "Digits: Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning "
        "Repository, https://doi.org/10.24432/C50P49, CC BY 4.0.",
        note=True,
    )
    report.write(folder / "report.html")


def _add_pictures(report: Report, images: ImageSet, zoo: Zoo, predictions: Predictions) -> None:
    labels = zoo.labels
    columns = [int(torch.nonzero(labels == label)[0]) for label in labels.unique().tolist()][:10]
    shown = [predictions.rows[i] for i in columns]
    titles = [f"{row.true_label} → {row.label}" for row in shown]
    rows = {
        "image": [images.signal(i).reshape(*images.size) for i in columns],
        "network": reconstruct(zoo, columns, images.size),
        "between pixels": reconstruct(zoo, columns, FINE),
    }
    report.heading("Images, and the networks that stand for them")
    report.figure(
        figures.picture_rows(rows, titles),
        "Above each column: the digit, and what the metanetwork says of the network's weights. The last row "
        "asks the same networks at finer coordinates, where nothing was fitted.",
    )


@torch.no_grad()
def reconstruct(zoo: Zoo, indices: list[int], size: tuple[int, int]) -> list[Tensor]:
    """Evaluate some networks of a zoo on the pixel grid.

    Args:
        zoo: of INRs with one output.
        indices: which networks.
        size: height and width.

    Returns:
        One picture per network, ``[height, width]``.
    """
    module, coordinates = zoo.build_module(), pixel_coordinates(*size)
    pictures = []
    for index in indices:
        module.load_state_dict(zoo.state_dict(index))
        pictures.append(module(coordinates).reshape(size))
    return pictures


def confusion_matrix(predictions: Predictions, labels: tuple[str, ...]) -> Tensor:
    """Count predictions, ``[true, predicted]``, in the order of the labels."""
    place = {label: i for i, label in enumerate(labels)}
    matrix = torch.zeros(len(labels), len(labels), dtype=torch.long)
    for row in predictions.rows:
        if row.true_label is not None and row.label is not None:
            matrix[place[row.true_label], place[row.label]] += 1
    return matrix


def _architecture(zoo: Zoo) -> str:
    a = zoo.architecture
    widths = [a["in_features"], *[a["hidden_features"]] * a["hidden_layers"], a["out_features"]]
    return f"SIREN {'-'.join(map(str, widths))}, ω = {a['omega']:g}"
