"""The answer of a verb on standard output: as JSON, as text, or not at all."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any, Protocol, TypeVar


class Report(Protocol):
    """What a verb found."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as what JSON has."""
        ...


R = TypeVar("R", bound=Report)


def answer(options: argparse.Namespace, report: R, show: Callable[[R], None]) -> None:
    """Print a report.

    Args:
        options: of the command line: ``json``, and ``quiet`` where the verb has it.
        report: what to print.
        show: prints it as text.
    """
    if options.json:
        print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    elif not getattr(options, "quiet", False):
        show(report)
