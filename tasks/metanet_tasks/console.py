"""What goes to the terminal: tables on standard output, progress on standard error."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PIPED_WIDTH = 160
"""Columns of a table that goes into a file or another program, which has no width of its own."""


def console() -> Console:
    """Return a console on standard output."""
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)


def progress() -> Progress:
    """Return progress bars on standard error; on something that is no terminal they stay silent."""
    err = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        disable=not err.is_terminal,
    )


def count(number: int) -> str:
    """Return a number with thousands separated.

    Example:
        >>> count(1185000)
        '1,185,000'
    """
    return f"{number:,}"
