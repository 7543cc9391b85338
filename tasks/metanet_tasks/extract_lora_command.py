"""``metanet extract-lora``: a fine-tuned or merged model as a low-rank adapter of its base."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from metanet_tasks.answer import answer

if TYPE_CHECKING:
    from metanet_zoo.merging.lora_extraction import ExtractionReport

EXAMPLES = """\
examples:
  metanet extract-lora chat --base base --rank 32 -o chat-lora
      an adapter that peft loads, and that metanet merge takes as base+chat-lora
  metanet extract-lora merged --base base --rank 64 -o merged-lora
      a merge of whole models (metanet merge … -o merged), handed on as an adapter
  metanet extract-lora chat --base base --exclude 'layernorm|embed' -o chat-lora
      gains of norms and embeddings stay as the base has them; otherwise they are stored whole
"""


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    options = parser().parse_args(arguments)
    from metanet_tasks.console import progress
    from metanet_zoo.merging.lora_extraction import extract_lora

    with progress() as bar:
        task = bar.add_task("factors", total=None, note="")

        def show(name: str, number: int, total: int) -> None:
            bar.update(task, completed=number, total=total, note=name)

        report = extract_lora(
            options.model,
            options.base,
            options.out,
            rank=options.rank,
            exclude=options.exclude,
            overwrite=options.overwrite,
            offline=True if options.offline else None,
            progress=None if options.quiet or not sys.stderr.isatty() else show,
        )
    answer(options, report, describe)
    return 0


def describe(report: ExtractionReport) -> None:
    """Print what was extracted, and the matrices of which the adapter holds least."""
    print(
        f"wrote {report.out}: {len(report.adapted)} matrices of rank {report.rank}, "
        f"{len(report.whole)} tensors whole, {report.parameters:,} numbers; {report.same} tensors do not "
        "differ"
    )
    print(f"{report.carried:.2%} of the squared difference is in the adapter")
    for name, carried in sorted(report.adapted.items(), key=lambda item: item[1])[:5]:
        print(f"  {carried:7.2%}  {name}")


def parser() -> argparse.ArgumentParser:
    """Return the verb's argument parser."""
    result = argparse.ArgumentParser(
        prog="metanet extract-lora",
        description="Write what turns a base model into another one as a low-rank adapter: the best factors "
        "of every matrix that differs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add(
        "model", metavar="MODEL", help="the fine-tuned or merged model: a folder, file or org/name on the hub"
    )
    add("--base", required=True, metavar="MODEL", help="the model that the adapter is to be added to")
    add("-o", "--out", required=True, metavar="OUT", help="folder that is to appear")
    add("--rank", type=int, default=16, metavar="R", help="of the factors (default 16)")
    add(
        "--exclude",
        action="append",
        default=[],
        metavar="REGEX",
        help="leave matching tensors as the base has them (repeatable)",
    )
    add("--overwrite", action="store_true", help="replace an older adapter")
    add("--offline", action="store_true", help="ask the hub's cache alone")
    add("--json", action="store_true", help="print the report as JSON, with every tensor's share")
    add("--quiet", action="store_true", help="print errors only")
    return result
