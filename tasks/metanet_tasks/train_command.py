"""``metanet train``: train a metanetwork from a YAML configuration."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = """\
examples:
  metanet train --config mnist_inr_unf --data.zoo train.zoo --data.test_zoo test.zoo --out runs/unf
      a configuration that ships with the package, on your own zoos
  metanet train --config runs/unf/config.yaml --out runs/again
      what an earlier run resolved to; every run writes its own beside its result
  metanet train --config mnist_inr_unf --data.zoo my.zoo --model.options.hidden_channels 64
      any setting of the configuration can be given as an argument
  metanet train --config runs/unf/config.yaml --out runs/unf --resume
      continue a run that was killed, exactly as if it had not been

Every setting with its default: metanet train --help-settings.
In the folder of the run: model.ckpt (the model; metanet classify --model takes the folder), config.yaml,
metrics.csv (one row per epoch) and result.json (accuracy on the test networks, time).
"""


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    options, settings = parser().parse_known_args(arguments)
    from metanet_tasks.train_config import print_settings, train

    if options.help_settings:
        print_settings()
        return 0
    result = train(options.config, settings, out=options.out, resume=options.resume)
    if options.json:
        print(json.dumps(result.to_dict(), indent=2))
        return 0
    from rich.table import Table

    from metanet_tasks.console import console, count

    table = Table("networks", "accuracy", "loss")
    for part in ("train", "val", "test"):
        if f"{part}/accuracy" in result.metrics:
            accuracy, loss = result.metrics[f"{part}/accuracy"], result.metrics[f"{part}/loss"]
            table.add_row(part, f"{100 * accuracy:.1f} %", f"{loss:.3f}")
    console().print(table)
    parameters = result.to_dict()["num_parameters"]
    print(
        f"{len(result.history)} epochs in {result.seconds:.0f} s, {count(parameters)} parameters; "
        f"{result.checkpoint}"
    )
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the verb's argument parser; the configuration's settings are not in it."""
    from metanet_tasks.configs import shipped_configs

    result = argparse.ArgumentParser(
        prog="metanet train",
        usage="metanet train --config FILE [--out FOLDER] [--resume [CKPT]] [--SETTING VALUE ...]",
        description="Train a metanetwork to classify the networks of a zoo, and test it on held-out ones.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    result.add_argument(
        "--config",
        "-c",
        action="append",
        default=[],
        metavar="FILE",
        help=f"a YAML file, or one of {', '.join(shipped_configs())}; later ones override earlier ones",
    )
    result.add_argument("--out", type=Path, metavar="FOLDER", help="folder of the run (default: runs/CONFIG)")
    result.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="CKPT",
        help="continue the run in --out, or another checkpoint",
    )
    result.add_argument("--json", action="store_true", help="print the result as JSON instead of a table")
    result.add_argument("--help-settings", action="store_true", help="list every setting with its default")
    return result
