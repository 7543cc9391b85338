"""How a fit shows its progress on a terminal."""

from __future__ import annotations

import statistics
import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class FitProgress:
    """Progress bar: networks done, networks per second, time left, median PSNR.

    Args:
        total: networks in the zoo.
        done: networks that an earlier run has fitted.
        shown: whether to draw; None draws if standard error is a terminal.
    """

    def __init__(self, total: int, done: int, shown: bool | None) -> None:
        self._psnr: list[float] = []
        self._start = time.monotonic()
        self._progress = Progress(
            TextColumn("fitting"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.0f} networks/s, median {task.fields[psnr]:.1f} dB,"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not (sys.stderr.isatty() if shown is None else shown),
        )
        self._task = self._progress.add_task("", total=total, completed=done, rate=0.0, psnr=0.0)

    def add(self, psnr: float) -> None:
        """Count one finished network."""
        self._psnr.append(psnr)
        if self._progress.disable:
            return
        if len(self._psnr) % 32 and not self._progress.finished:
            self._progress.advance(self._task)
            return
        rate = len(self._psnr) / max(time.monotonic() - self._start, 1e-9)
        self._progress.update(self._task, advance=1, rate=rate, psnr=statistics.median(self._psnr))

    def __enter__(self) -> FitProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
