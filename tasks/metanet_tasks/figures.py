"""Figures of a report, as PNG bytes; drawn without a display and without matplotlib's global state."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from metanet.merging.paths import Path

BLUE, ORANGE, GREY = "#2f6f9f", "#d9822b", "#9aa5b1"


def png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, bbox_inches="tight")
    return stream.getvalue()


def picture_rows(rows: Mapping[str, Sequence[Tensor]], titles: Sequence[str]) -> bytes:
    """Draw rows of pictures above one another.

    Args:
        rows: name -> one picture per column, ``[height, width]`` or ``[height, width, 3]`` in 0…1.
        titles: one per column.
    """
    figure = Figure(figsize=(1.1 * len(titles), 1.15 * len(rows) + 0.3))
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for row, (name, pictures) in enumerate(rows.items()):
        for axis, picture in zip(axes[row], pictures, strict=True):
            axis.imshow(_pixels(picture), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        axes[row, 0].set_ylabel(name, fontsize=9)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    figure.subplots_adjust(hspace=0.05, wspace=0.08)
    return png(figure)


def confusion(matrix: Tensor, labels: Sequence[str]) -> bytes:
    """Draw a confusion matrix.

    Args:
        matrix: ``[classes, classes]`` counts, rows the true labels.
        labels: of the classes.
    """
    n = len(labels)
    side = max(3.2, 0.42 * n + 1.2)
    figure = Figure(figsize=(side, side))
    axis = figure.subplots()
    share = matrix.double() / matrix.sum(1, keepdim=True).clamp_min(1)
    axis.imshow(share.numpy(), cmap="Blues", vmin=0, vmax=1)
    for i, j in torch.nonzero(matrix).tolist() if n <= 30 else ():
        colour = "white" if share[i, j] > 0.5 else "black"
        axis.text(j, i, str(int(matrix[i, j])), ha="center", va="center", fontsize=8, color=colour)
    axis.set(xticks=range(n), yticks=range(n), xlabel="predicted from the weights", ylabel="image")
    axis.set_xticklabels(labels, rotation=90 if max(map(len, labels)) > 2 else 0)
    axis.set_yticklabels(labels)
    return png(figure)


def learning_curve(histories: Mapping[str, Sequence[Mapping[str, float]]], chance: float) -> bytes:
    """Draw accuracy over epochs: validation in full, training dashed.

    Args:
        histories: name -> one row of metrics per epoch.
        chance: the accuracy of always naming the most frequent class.
    """
    figure = Figure(figsize=(6.4, 3.6))
    axis = figure.subplots()
    colours = [BLUE, ORANGE, "#6a994e", "#7b5ea7"]
    for (name, rows), colour in zip(histories.items(), colours, strict=False):
        for part, style in (("val", "-"), ("train", "--")):
            points = [(r["epoch"] + 1, 100 * r[f"{part}/accuracy"]) for r in rows if f"{part}/accuracy" in r]
            if points:
                label = name if part == "val" else None
                axis.plot(*zip(*points, strict=True), style, color=colour, label=label, linewidth=1.4)
    axis.axhline(100 * chance, color=GREY, linewidth=1, label="chance")
    axis.set(xlabel="epoch", ylabel="accuracy / %", ylim=(0, 100))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(fontsize=8, bbox_to_anchor=(1, 1), title="validation (training dashed)", title_fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    return png(figure)


def psnr_histogram(psnr: Tensor) -> bytes:
    """Draw the distribution of the fits' quality.

    Args:
        psnr: ``[networks]`` in dB.
    """
    figure = Figure(figsize=(5.2, 2.8))
    axis = figure.subplots()
    axis.hist(psnr[psnr.isfinite()].numpy(), bins=40, color=BLUE)
    axis.set(xlabel="PSNR of the fit / dB", ylabel="networks")
    axis.spines[["top", "right"]].set_visible(False)
    return png(figure)


def _pixels(image: Tensor) -> NDArray[np.float64]:
    return image.detach().double().clamp(0, 1).numpy()


def loss_paths(paths: Mapping[str, Path]) -> bytes:
    """Draw the loss along paths between two networks, and the chord between the ends of the first.

    Args:
        paths: name -> metrics along the path.
    """
    figure = Figure(figsize=(5.6, 3.4))
    axis = figure.subplots()
    colours = [GREY, BLUE, ORANGE, "#6a994e", "#7b5ea7", "#b23a48"]
    for (name, path), colour in zip(paths.items(), colours, strict=False):
        axis.plot(path.weights, path.metrics[path.loss], "o-", color=colour, label=name, markersize=2.5)
    first = next(iter(paths.values()))
    losses = first.metrics[first.loss]
    axis.plot([0, 1], [losses[0], losses[-1]], ":", color="black", linewidth=1, label="chord")
    axis.set(xlabel="weight of the second network", ylabel="loss")
    axis.legend(fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    return png(figure)
