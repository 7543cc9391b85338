"""``metanet demo``: the whole path on images that ship with the package."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

DESCRIPTION = """\
Fit SIRENs to 1,797 images of handwritten digits, each network from its own random weights; train a
metanetwork to say from the weights alone which digit a network shows; compare it, on held-out images, with
chance and with an MLP on the flattened weights. Takes a few minutes on two cores; continues if interrupted.
"""

EXAMPLES = """\
examples:
  metanet demo
  metanet demo --out /tmp/demo --seed 1
  metanet demo --quick        at most a minute, to see it work rather than shine

then open metanet-demo/report.html; beside it lie report.json, predictions.csv, and zoos and runs that the
other verbs take:
  metanet zoo info metanet-demo/train.zoo
  metanet classify metanet-demo/test.zoo --model metanet-demo/metanetwork --top 3
"""


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    options = parser().parse_args(arguments)
    from metanet_tasks.demo import demo

    summary = demo(options.out, seed=options.seed, quick=options.quick, announce=not options.json)
    if options.json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
        return 0
    from rich.table import Table

    from metanet_tasks.console import console

    table = Table("classifier", "held-out accuracy", "training time")
    for row in summary["classifiers"]:
        seconds = f"{row['seconds']:.0f} s" if row["seconds"] is not None else ""
        table.add_row(row["name"], f"{100 * row['accuracy']:.1f} %", seconds)
    console().print(table)
    print(f"{summary['seconds']:.0f} s in all; open {options.out / 'report.html'}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the verb's argument parser."""
    result = argparse.ArgumentParser(
        prog="metanet demo",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "--out", type=Path, default=Path("metanet-demo"), help="folder (default metanet-demo)"
    )
    result.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    result.add_argument("--quick", action="store_true", help="fewer networks and epochs, at most a minute")
    result.add_argument("--json", action="store_true", help="print the summary as JSON")
    return result
