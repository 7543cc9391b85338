"""Figures of a report, as PNG bytes; drawn without a display and without matplotlib's global state."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

BLUE, ORANGE, GREY = "#2f6f9f", "#d9822b", "#9aa5b1"


def png(figure: Figure) -> bytes:
    """Return a figure as PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, bbox_inches="tight")
    return stream.getvalue()


def reconstructions(originals: Tensor, fits: Tensor, titles: Sequence[str]) -> bytes:
    """Draw images above what their networks represent.

    Args:
        originals: ``[n, height, width]`` or ``[n, height, width, 3]`` in 0…1.
        fits: the same shape.
        titles: one per column.
    """
    n = len(originals)
    figure = Figure(figsize=(1.1 * n, 2.6))
    axes = figure.subplots(2, n, squeeze=False)
    for column in range(n):
        for row, image in enumerate((originals[column], fits[column])):
            axis = axes[row, column]
            axis.imshow(_pixels(image), cmap="gray", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        axes[0, column].set_title(titles[column], fontsize=9)
    axes[0, 0].set_ylabel("image", fontsize=9)
    axes[1, 0].set_ylabel("network", fontsize=9)
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
    axis.legend(fontsize=8, loc="upper left", title="validation (training dashed)", title_fontsize=8)
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
