"""Lightning callbacks: the learning curve as a file and a quiet progress bar."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.progress import TaskID

from metanet_tasks.console import progress
from metanet_zoo.atomic import atomic_path

METRICS = ("train/loss", "train/accuracy", "val/loss", "val/accuracy")


class History(Callback):
    """One row of metrics per epoch, kept in the checkpoint and in ``metrics.csv``.

    Args:
        out: folder of the run; None keeps the rows in memory alone.

    Attributes:
        rows: per epoch ``epoch``, ``seconds`` since the start (of all runs together) and the metrics.
    """

    def __init__(self, out: Path | None) -> None:
        self.out = out
        self.rows: list[dict[str, float]] = []
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time trained up to the last whole epoch, earlier runs included."""
        return self.rows[-1]["seconds"] if self.rows else 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock where an earlier run left it."""
        self._start = time.monotonic() - self.seconds

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a row."""
        row: dict[str, float] = {
            "epoch": trainer.current_epoch,
            "seconds": round(time.monotonic() - self._start, 3),
        }
        found = trainer.callback_metrics
        row |= {name: float(found[name]) for name in METRICS if name in found}
        self.rows.append(row)
        if self.out is not None:
            write_rows(self.out / "metrics.csv", self.rows)

    def state_dict(self) -> dict[str, Any]:
        """Return the rows for the checkpoint."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the rows of an earlier run."""
        self.rows = [dict(row) for row in state_dict["rows"]]


class EpochProgress(Callback):
    """One progress bar over the steps of a run, on standard error; silent where that is no terminal."""

    def __init__(self, name: str = "training") -> None:
        self.name = name
        self._bar = progress()
        self._task: TaskID | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar, filled up to where the run continues."""
        total = int(trainer.estimated_stepping_batches)
        self._bar = progress()
        self._bar.start()
        self._task = self._bar.add_task(self.name, total=total, completed=trainer.global_step, note="")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance by one step."""
        if self._task is not None:
            self._bar.update(self._task, completed=trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the newest figures."""
        if self._task is not None:
            self._bar.update(self._task, note=_note(trainer.current_epoch + 1, trainer.callback_metrics))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release the terminal, also when the run has failed."""
        self._bar.stop()
        self._task = None


def _note(epochs: int, metrics: Mapping[str, Any]) -> str:
    figures = [
        f"{part} {100 * float(metrics[f'{part}/accuracy']):.1f} %"
        for part in ("train", "val")
        if f"{part}/accuracy" in metrics
    ]
    return ", ".join([f"epoch {epochs}", *figures])


def write_rows(path: Path, rows: list[dict[str, float]]) -> None:
    """Write rows as CSV, whole or not at all; the columns are those of all rows together."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
