"""``metanet match``: align a checkpoint to another one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet_tasks.answer import answer
from metanet_tasks.data_options import add_data_options
from metanet_tasks.match_report import show, show_many, show_map
from metanet_tasks.match_settings import describe_methods, settings_of
from metanet_tasks.merge_command import load_plugin, size

if TYPE_CHECKING:
    from metanet_zoo.matching.data import DataOptions

EXAMPLES = """\
examples:
  metanet match a.safetensors b.safetensors
      how near b comes to a when its hidden units are reordered
  metanet match llama-a llama-b --out-element g.safetensors --out llama-b-aligned
      write the group element and the aligned model, which computes what llama-b does
  metanet match a.pt b.pt --activation tanh --start greedy --start sorted --start random
      a plain MLP with tanh: signs are matched too; three starts, the best is kept
  metanet match a.pt b.pt --method activations --network mymodels:resnet20 --data photos -o out.safetensors
      units are paired by how they answer to 1000 training images
  metanet match a.pt b.pt --method sinkhorn-loss --activation relu --data mnist --set steps=200
      permutations learned from the loss half-way between two MLPs
  metanet match llama-a llama-b --method orthogonal --out b-turned --out-reference a-folded
      the residual stream turned, everything else permuted; then merge a-folded b-turned
  metanet match wide.pt narrow.pt --method transport --activation relu -o as-wide.safetensors
      the narrower network in the shapes of the wider one; then merge wide.pt as-wide.safetensors
  metanet match a.safetensors b.safetensors c.safetensors --activation relu -o common --out-element elements
      three models in a common order of units, one file each in two folders; then merge common/*.safetensors

methods (--methods says more of each):
  by weights alone       weights, sinkhorn, orthogonal
  by activations         activations (--data or --text)
  by a loss              straight-through, sinkhorn-loss (--data or --text)
  by a soft map          transport: onto other widths too; zip (--data), zip-weights: both models are merged,
                         partly with --set stop_after=LAYER. What comes out computes another function

The aligned model of a pair is proven to compute the same function before it is written, where it can be run
(Hugging Face configurations, plain sequential networks); otherwise the report says why not.
"""


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    options = parser().parse_args(arguments)
    for path in options.plugin:
        load_plugin(path)
    if options.methods:
        print(describe_methods(), end="")
        return 0
    if options.reference is None or options.model is None:
        raise ValueError("name two models: the one that stays, and the one to be aligned to it")
    if options.more:
        return match_many(options)
    from metanet.matching.method import find_matcher
    from metanet_tasks.objects import network_of
    from metanet_zoo.matching.align import MIN_GAIN
    from metanet_zoo.matching.data import DataOptions
    from metanet_zoo.matching.run import match_checkpoints

    data = DataOptions(
        options.data,
        options.text,
        network_of(options.network),
        options.split,
        options.limit,
        options.mean,
        options.deviation,
        options.context,
    )

    if find_matcher(options.method).returns == "soft map":
        return match_by_map(options, data)
    meter = Meter(quiet=options.json or options.quiet or not sys.stderr.isatty())
    report = match_checkpoints(
        options.reference,
        options.model,
        method=options.method,
        settings=settings_of(options),
        data=data,
        element_file=options.out_element,
        out=options.out,
        out_reference=options.out_reference,
        spec_file=options.spec,
        activation=options.activation,
        fixed=options.fix,
        free=options.free,
        min_gain=MIN_GAIN if options.min_gain is None else options.min_gain,
        max_memory=options.max_memory,
        max_shard_size=options.max_shard_size,
        prove_it=not options.no_proof,
        overwrite=options.overwrite,
        trust_remote_code=options.trust_remote_code,
        seed=options.seed,
        progress=meter.matched,
        written=meter.written,
    )
    meter.end()
    answer(options, report, show)
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the verb's argument parser."""
    result = argparse.ArgumentParser(
        prog="metanet match",
        description="Align a checkpoint to another one: reorder its hidden units, keeping its function, "
        "until its weights lie as near as can be found.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add(
        "reference",
        metavar="A",
        nargs="?",
        help="the model that stays: a folder, file or org/name on the hub",
    )
    add("model", metavar="B", nargs="?", help="the model to be aligned to it")
    add("more", metavar="C", nargs="*", help="further models: then all are taken to a common order of units")
    add("--method", metavar="NAME", default="weights", help="how the units are paired (default weights)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the method, such as steps=200 (repeatable; --methods lists them)",
    )
    add("--methods", action="store_true", help="describe the methods and their settings")
    add("--plugin", action="append", default=[], type=Path, metavar="FILE.py", help="your own methods")
    add(
        "--many",
        choices=("cycle-consistent", "merge-many"),
        default="cycle-consistent",
        help="how three or more are matched: Frank-Wolfe over all of them jointly (default), or each to the "
        "mean of the others in turn",
    )
    add(
        "--out-element",
        metavar="FILE",
        help="write the group element, or soft map (.safetensors; of several models a folder)",
    )
    add("-o", "--out", metavar="OUT", help="write the aligned model: a folder, or a file (.safetensors)")
    add_data_options(result, split="train", images="1000")
    add(
        "--out-reference",
        metavar="OUT",
        help="with --method orthogonal, write A too, its gains folded as those of the aligned model are; the "
        "two are then merged",
    )
    add("--spec", type=Path, metavar="FILE", help="take the spec from this file")
    add("--activation", metavar="NAME", help="of a plain sequential checkpoint: relu, tanh, sine:30, …")
    add(
        "--fix",
        action="append",
        default=[],
        metavar="GROUP",
        help="leave this group as it is (repeatable; metanet inspect lists the groups)",
    )
    add(
        "--free",
        action="append",
        default=[],
        metavar="GROUP",
        help="match this group although it couples more than fits into --max-memory (repeatable)",
    )
    add(
        "--min-gain",
        type=float,
        metavar="F",
        help="keep the identity unless the squared distance, or what else the method measures, falls by more "
        "than this fraction (default 0.01)",
    )
    add(
        "--start",
        action="append",
        choices=("greedy", "identity", "sorted", "random"),
        help="where weight matching starts; repeat for several, the best is kept (default greedy)",
    )
    add("--max-sweeps", type=int, metavar="N", help="of weight matching over the groups (default 100)")
    add(
        "--max-memory",
        type=size,
        default=1 << 30,
        metavar="SIZE",
        help="for tensors that are matched together (default 1GiB)",
    )
    add("--max-shard-size", type=size, default=5 * 10**9, metavar="SIZE", help="bytes per file (default 5G)")
    add("--no-proof", action="store_true", help="do not run the model before and after")
    add("--overwrite", action="store_true", help="replace older outputs")
    add("--trust-remote-code", action="store_true", help="run the code that a Hugging Face folder brings")
    add("--seed", type=int, default=0, metavar="N", help="of the order of groups and of random starts")
    add("--json", action="store_true", help="print the report as JSON")
    add("--quiet", action="store_true", help="print errors only")
    return result


def match_by_map(options: argparse.Namespace, data: DataOptions) -> int:
    """Match two models by a soft map; what only an element can have is refused."""
    from metanet_zoo.matching.soft import match_softly

    for name, default in ELEMENT_ONLY:
        if getattr(options, name) != default:
            raise ValueError(
                f"--{name.replace('_', '-')} is for methods that find a group element, which "
                f"{options.method} does not; leave it out"
            )
    report = match_softly(
        options.reference,
        options.model,
        method=options.method,
        settings=settings_of(options),
        data=data,
        map_file=options.out_element,
        out=options.out,
        spec_file=options.spec,
        activation=options.activation,
        fixed=options.fix,
        max_memory=options.max_memory,
        overwrite=options.overwrite,
        trust_remote_code=options.trust_remote_code,
        seed=options.seed,
    )
    answer(options, report, show_map)
    return 0


def match_many(options: argparse.Namespace) -> int:
    """Match three or more models; what only two can have is refused."""
    two: tuple[tuple[str, Any], ...] = (
        ("fix", []),
        ("free", []),
        ("start", None),
        ("method", "weights"),
        ("set", []),
        ("data", None),
    )
    two = (*two, ("text", None), ("network", None), ("max_sweeps", None), ("out_reference", None))
    for name, default in two:
        if getattr(options, name) != default:
            raise ValueError(f"--{name.replace('_', '-')} is for two models; leave it out")
    from metanet_zoo.matching.many import match_many_checkpoints

    report = match_many_checkpoints(
        [options.reference, options.model, *options.more],
        method=options.many,
        elements=options.out_element,
        out=options.out,
        spec_file=options.spec,
        activation=options.activation,
        overwrite=options.overwrite,
        trust_remote_code=options.trust_remote_code,
        seed=options.seed,
    )
    answer(options, report, show_many)
    return 0


ELEMENT_ONLY: tuple[tuple[str, Any], ...] = (
    ("free", []),
    ("min_gain", None),
    ("no_proof", False),
    ("max_shard_size", 5 * 10**9),
    ("out_reference", None),
)
"""Options, and their defaults, of methods that find a group element."""


class Meter:
    """Progress on standard error, one line that is overwritten."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.shown = False

    def matched(self, done: int, total: int) -> None:
        """Show how much has been compared."""
        self._show(f"matching {done / total:4.0%}")

    def written(self, name: str, done: int, total: int) -> None:
        """Show how much has been written."""
        self._show(f"writing {done / max(total, 1):4.0%}  {name[:60]:60}")

    def end(self) -> None:
        """Clear the line."""
        if self.shown:
            print("\r" + " " * 79 + "\r", end="", file=sys.stderr)

    def _show(self, text: str) -> None:
        if not self.quiet:
            self.shown = True
            print(f"\r{text:79}", end="", file=sys.stderr, flush=True)
