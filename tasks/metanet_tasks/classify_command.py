"""``metanet classify``: say what networks show, from their weights alone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metanet_tasks.prediction import Predictions

SHOWN = 40
"""Rows of a table on the terminal; CSV and JSON list all."""

EXAMPLES = """\
examples:
  metanet classify test.zoo --model runs/mnist_inr_unf
      accuracy too, since a zoo knows its labels
  metanet classify networks/ other.safetensors --model runs/mnist_inr_unf --top 3
      a folder of checkpoints, one network per file, and a single file
  metanet classify networks/ --model model.ckpt --format csv --out predictions.csv --skip-invalid
      files that do not fit get a row that says why
"""


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    options = parser().parse_args(arguments)
    from metanet_tasks.prediction import classify

    predictions = classify(options.sources, options.model, top=options.top, skip_invalid=options.skip_invalid)
    if options.format == "table" and options.out is None:
        show(predictions)
        return 0
    if options.format == "json":
        text = json.dumps(predictions.to_dict(), indent=2, ensure_ascii=False) + "\n"
    else:
        text = predictions.to_csv()
    if options.out is None:
        print(text, end="")
        return 0
    from metanet_zoo.atomic import atomic_path

    with atomic_path(options.out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"{_summary(predictions)}; wrote {options.out}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the verb's argument parser."""
    result = argparse.ArgumentParser(
        prog="metanet classify",
        description="Say from the weights alone what networks represent.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "sources",
        nargs="+",
        metavar="ZOO|CHECKPOINT",
        help="a zoo, a folder of checkpoints, or a checkpoint (safetensors or torch file)",
    )
    result.add_argument(
        "--model", required=True, metavar="MODEL", help="folder or checkpoint that metanet train wrote"
    )
    result.add_argument(
        "--format",
        choices=("table", "csv", "json"),
        default="table",
        help="default: table (written with --out: CSV)",
    )
    result.add_argument(
        "--top", type=int, default=1, metavar="K", help="labels to rank per network (default 1)"
    )
    result.add_argument("--out", type=Path, metavar="FILE", help="write there instead of printing")
    result.add_argument(
        "--skip-invalid",
        action="store_true",
        help="go on where a file does not fit, with a row that says why",
    )
    return result


def show(predictions: Predictions) -> None:
    """Print predictions as a table."""
    from rich.markup import escape
    from rich.table import Table

    from metanet_tasks.console import console, count

    rows = predictions.rows
    labelled = any(row.true_label is not None for row in rows)
    table = Table("network", "label", "probability")
    if labelled:
        table.add_column("true label")
    if any(len(row.ranking) > 1 for row in rows):
        table.add_column("then")
    for row in rows[:SHOWN]:
        if row.error is not None:
            cells = [escape(row.name), "[red]invalid[/]", escape(row.error)]
        else:
            cells = [escape(row.name), escape(str(row.label)), f"{100 * row.ranking[0][1]:.1f} %"]
        if labelled:
            right = row.true_label == row.label
            cells.append(escape(row.true_label or "") if right else f"[red]{escape(row.true_label or '')}[/]")
        if len(row.ranking) > 1:
            cells.append(escape(", ".join(f"{label} {100 * p:.1f} %" for label, p in row.ranking[1:])))
        table.add_row(*cells)
    out = console()
    out.print(table)
    if len(rows) > SHOWN:
        print(f"… and {count(len(rows) - SHOWN)} more; --format csv or json lists all")
    print(_summary(predictions))


def _summary(predictions: Predictions) -> str:
    text = f"{len(predictions.rows)} networks"
    invalid = sum(row.error is not None for row in predictions.rows)
    text += f", {invalid} invalid" if invalid else ""
    if predictions.accuracy is not None:
        text += f", accuracy {100 * predictions.accuracy:.1f} % where the label is known"
    return text
