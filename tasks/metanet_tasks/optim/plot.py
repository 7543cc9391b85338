"""The picture of a comparison: training losses over steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metanet_tasks.optim.harness import WINDOW
from metanet_tasks.optim.table import Row


def plot_curves(found: Sequence[Row], path: Path, title: str) -> None:
    """Write the mean training losses of all optimizers, smoothed over five points, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    for row in found:
        smooth = [sum(row.curve[max(i - 4, 0) : i + 1]) / min(i + 1, 5) for i in range(len(row.curve))]
        steps = [(i + 1) * WINDOW for i in range(len(smooth))]
        learned = row.optimizer.startswith("learned:")
        label = row.optimizer if learned else f"{row.optimizer}, {row.schedule}, {row.rate:.2g}"
        axes.plot(steps, smooth, label=label, linewidth=2.4 if learned else 1.2)
    low = min(row.mean for row in found)
    axes.set_ylim(low * 0.9, low * 2.5)
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    axes.set_title(title)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
