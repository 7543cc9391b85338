"""``metanet barrier``: the loss along the path between two checkpoints."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from metanet_tasks.data_options import add_data_options

if TYPE_CHECKING:
    from metanet_tasks.barrier import BarrierReport

EXAMPLES = """\
examples:
  metanet barrier a.safetensors b.safetensors --activation relu --data mnist --mean 0.1307 --deviation 0.3081
      naive and aligned path of two MLPs on the test images of a folder of IDX files
  metanet barrier a.pt b.pt --network mymodels:resnet20 --data photos --correct reset --correct repair
      statistics of batch norm computed anew, and REPAIR, at every point of the aligned path
  metanet barrier llama-a llama-b --text valid.txt --points 9 --plot barrier.png
      perplexity of two language models on a text

barrier: the largest height of the loss above the chord between the ends.
"""


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    options = parser().parse_args(arguments)
    from metanet_tasks.barrier import measure_barrier

    quiet = options.json or not sys.stderr.isatty()

    def progress(name: str, done: int, points: int) -> None:
        if not quiet:
            print(f"\r{name}: point {done} of {points}   ", end="", file=sys.stderr, flush=True)

    report = measure_barrier(
        options.a,
        options.b,
        data=options.data,
        text=options.text,
        network=options.network,
        activation=options.activation,
        spec_file=options.spec,
        split=options.split,
        limit=options.limit,
        mean=options.mean,
        deviation=options.deviation,
        context=options.context,
        points=options.points,
        align=not options.no_align,
        corrections=options.correct,
        seed=options.seed,
        progress=progress,
    )
    if not quiet:
        print("\r" + " " * 50 + "\r", end="", file=sys.stderr)
    if options.plot is not None:
        from metanet_tasks.figures import loss_paths
        from metanet_zoo.atomic import atomic_path

        with atomic_path(options.plot) as temporary:
            temporary.write_bytes(loss_paths(report.paths))
    if options.json:
        import json

        print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        show(report)
        if options.plot is not None:
            print(f"wrote {options.plot}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the verb's argument parser."""
    result = argparse.ArgumentParser(
        prog="metanet barrier",
        description="Measure the loss along the straight path between two checkpoints, naive and aligned.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("a", metavar="A", help="the checkpoint at weight 0")
    add("b", metavar="B", help="the checkpoint at weight 1")
    add_data_options(result, split="test", images="all")
    add("--activation", metavar="NAME", help="of a plain sequential checkpoint: relu, tanh, …")
    add("--spec", type=Path, metavar="FILE", help="take the spec from this file")
    add("--points", type=int, default=25, metavar="N", help="on the path (default 25)")
    add("--no-align", action="store_true", help="measure the naive path only")
    add(
        "--correct",
        action="append",
        default=[],
        choices=("reset", "repair", "rescale", "data-free"),
        help="statistics of activations along the aligned path: new ones for batch norm, REPAIR, RESCALE, or "
        "RESCALE without data (repeatable)",
    )
    add("--plot", type=Path, metavar="FILE.png", help="draw the paths")
    add("--seed", type=int, default=0, metavar="N", help="of matching")
    add("--json", action="store_true", help="print the report as JSON")
    return result


def show(report: BarrierReport) -> None:
    """Print a report as a table."""
    from rich.table import Table

    from metanet_tasks.console import console

    out = console()
    first = next(iter(report.paths.values()))
    others = [name for name in first.metrics if name != first.loss]
    table = Table("path", "barrier", "ends", "midpoint", *(f"{m}: ends, midpoint" for m in others))
    for name, path in report.paths.items():
        losses = path.metrics[path.loss]
        cells = [f"{losses[0]:.4f}, {losses[-1]:.4f}", f"{path.at(path.loss, 0.5):.4f}"]
        for metric in others:
            values = path.metrics[metric]
            cells.append(f"{values[0]:.4f}, {values[-1]:.4f}; {path.at(metric, 0.5):.4f}")
        table.add_row(name, f"{path.barrier:.4f}", *cells)
    out.print(table)
    if report.distance is not None and report.singular is not None:
        before, after = report.distance
        out.print(
            f"squared distance {before:.5g} → {after:.5g}; alignment of singular vectors "
            f"{report.singular[0]:.3f} → {report.singular[1]:.3f}",
            highlight=False,
        )
    for note in report.notes:
        out.print(f"note: {note}", highlight=False)
