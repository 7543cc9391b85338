"""``metanet zoo``: fit networks to images; describe, check and merge zoos."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  metanet zoo fit-inrs --images digits --out digits.zoo --views 4
      four networks for each of the 1,797 digits that ship with the package
  metanet zoo fit-inrs --images mnist/ --split test --out test.zoo --limit 2000
      a folder with t10k-images-idx3-ubyte.gz and its labels
  metanet zoo fit-inrs --images photos/ --out photos.zoo --hidden 64 --layers 3
      PNG or JPEG files of one size, in one folder per class
  metanet zoo info digits.zoo --verify
  metanet zoo merge monday.zoo tuesday.zoo --out week.zoo

A fit that was interrupted continues when the same command is run again.
"""


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    options = parser().parse_args(arguments)
    return ACTIONS[options.action](options)


def fit_inrs(options: argparse.Namespace) -> int:
    """Fit SIRENs to images."""
    from metanet_tasks.zoos import fit_zoo, zoo_info

    zoo = fit_zoo(
        options.images,
        options.out,
        split=options.split,
        limit=options.limit,
        views=options.views,
        seed=options.seed,
        convention=options.convention,
        hidden_features=options.hidden,
        hidden_layers=options.layers,
        omega=options.omega,
        steps=options.steps,
        learning_rate=options.learning_rate,
        target_psnr=options.target_psnr,
        shard_size=options.shard_size,
        threads=options.threads,
        device=options.device,
        resume=not options.no_resume,
    )
    return _answer(zoo_info(zoo.path), options.json)


def info(options: argparse.Namespace) -> int:
    """Describe a zoo; exit code 1 if a check was asked for and failed."""
    from metanet_tasks.zoos import zoo_info

    described = zoo_info(options.zoo, check=options.verify)
    _answer(described, options.json)
    return 1 if options.verify and not described["check"]["ok"] else 0


def merge(options: argparse.Namespace) -> int:
    """Merge zoos."""
    from metanet_tasks.zoos import merge as merge_zoos
    from metanet_tasks.zoos import zoo_info

    return _answer(zoo_info(merge_zoos(options.zoos, options.out).path), options.json)


ACTIONS: dict[str, Callable[[argparse.Namespace], int]] = {"fit-inrs": fit_inrs, "info": info, "merge": merge}


def parser() -> argparse.ArgumentParser:
    """Return the verb's argument parser."""
    result = argparse.ArgumentParser(
        prog="metanet zoo",
        description="A zoo is a folder of networks of one architecture: stacked weights and a table.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = result.add_subparsers(dest="action", required=True, metavar="ACTION")
    fit = actions.add_parser(
        "fit-inrs",
        help="fit an implicit neural representation to every image",
        description="Fit a SIREN to every image; each starts from its own random weights.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = fit.add_argument
    add(
        "--images",
        required=True,
        metavar="SOURCE",
        help="digits (ships with the package), an IDX file or a folder of them, a folder of PNG/JPEG files "
        "(one folder per class), or hf:org/name on the hub",
    )
    add("--out", required=True, type=Path, metavar="ZOO", help="folder of the zoo")
    add("--split", default="train", help="of IDX folders and hub data sets (default train)")
    add("--limit", type=int, metavar="N", help="number of images (of each class, for folders of classes)")
    add("--views", type=int, default=1, metavar="K", help="independent fits per image (default 1)")
    add("--seed", type=int, default=0, help="of the initial weights (default 0)")
    add("--convention", choices=("siren", "dws"), default="siren", help="initialisation (default siren)")
    add("--hidden", type=int, default=32, metavar="N", help="width of the hidden layers (default 32)")
    add("--layers", type=int, default=2, metavar="N", help="number of hidden layers (default 2)")
    add("--omega", type=float, default=30.0, help="frequency of the sines (default 30)")
    add("--steps", type=int, default=300, help="most steps per network (default 300; dws wants some 1000)")
    add("--learning-rate", type=float, default=1e-3, help="of Adam (default 0.001)")
    add(
        "--target-psnr",
        type=_decibels,
        default=36.0,
        metavar="DB",
        help="a network stops at this quality (default 36 dB); none lets each make all its steps",
    )
    add("--shard-size", type=int, default=512, metavar="N", help="networks per file (default 512)")
    add("--threads", type=int, help="that fit at the same time (default: all cores)")
    add("--device", default="cpu", help="where to fit (default cpu)")
    add("--no-resume", action="store_true", help="refuse a folder that holds an interrupted fit")
    add("--json", action="store_true", help="describe the zoo as JSON")
    described = actions.add_parser("info", help="describe a zoo, and check it", description="Describe a zoo.")
    described.add_argument("zoo", type=Path, help="folder of the zoo")
    described.add_argument("--verify", action="store_true", help="read every byte and compare checksums")
    described.add_argument("--json", action="store_true", help="print JSON instead of a table")
    merged = actions.add_parser("merge", help="merge zoos into a new one", description="Merge zoos.")
    merged.add_argument("zoos", nargs="+", type=Path, metavar="ZOO", help="zoos of one architecture")
    merged.add_argument("--out", required=True, type=Path, metavar="ZOO", help="folder of the new zoo")
    merged.add_argument("--json", action="store_true", help="describe the new zoo as JSON")
    return result


def _decibels(text: str) -> float | None:
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number of decibels or none, found {text!r}") from None


def _answer(described: dict[str, Any], as_json: bool) -> int:
    if as_json:
        print(json.dumps(described, indent=2, ensure_ascii=False))
        return 0
    from rich.markup import escape
    from rich.table import Table

    from metanet_tasks.console import console, count

    table = Table(title=str(described["path"]), title_justify="left", show_header=False)
    rows: list[tuple[str, str]] = [
        ("networks", f"{count(described['models'])} of {count(described['num_parameters'])} parameters"),
        ("on disk", f"{described['bytes'] / 1e6:.1f} MB in {described['shards']} shards"),
        ("architecture", _settings(described["architecture"]) or "unknown"),
        ("entries", ", ".join(f"{name} {shape}" for name, shape in described["entries"].items())),
    ]
    if "images" in described:
        rows.append(("images", count(described["images"])))
    if "labels" in described:
        rows.append(("labels", ", ".join(f"{name}: {n}" for name, n in described["labels"].items())))
    for column, unit in (("psnr", " dB"), ("steps", "")):
        if column in described:
            q = described[column]
            text = f"median {q['median']:.1f}{unit} ({q['min']:.1f} to {q['max']:.1f})"
            rows.append((column, text + (f", {q['not_finite']} not finite" if q["not_finite"] else "")))
    rows.append(("made by", _settings(described["settings"]) or "unknown"))
    if "check" in described:
        check = described["check"]
        verdict = "every file is what the manifest says" if check["ok"] else "; ".join(check["problems"])
        rows.append(("check", verdict))
        if any(check["non_finite"].values()):
            rows.append(("not finite", _settings({k: v for k, v in check["non_finite"].items() if v})))
    for name, text in rows:
        table.add_row(name, escape(text))
    console().print(table)
    return 0


def _settings(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if not isinstance(value, dict))
