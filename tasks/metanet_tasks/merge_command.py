"""``metanet merge``: merge checkpoints, from a recipe or from options, in bounded memory."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metanet_tasks.answer import answer

if TYPE_CHECKING:
    from metanet_zoo.merging.report import MergeReport

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30}

EXAMPLES = """\
examples:
  metanet merge base-chat base-code --method linear -o merged
      the average of two models, as a folder that transformers loads
  metanet merge chat code --base base --method ties --set density=0.5 -o merged
      task vectors on a base; --weights 1,0.5 sets one weight per model
  metanet merge recipe.yml -o merged --dry-run
      a recipe in mergekit's YAML grammar: what would be done, its size, memory and time
  metanet merge a.pt b.pt --method linear -o merged.safetensors
      any checkpoints of one architecture
  metanet merge chat code --method regmean --set alpha=0.9 -o merged
      linear layers fitted to the outputs of both, by the Gram matrices that lie beside the models:
      metanet_zoo.merging.grams.save_input_grams("chat", model, batches) writes them
  metanet merge a.pt b.pt c.pt --align auto --many merge-many -o merged.safetensors
      networks trained apart, their hidden units brought into one order before they are averaged
methods:
  linear slerp nuslerp multislerp karcher passthrough model_stock arcee_fusion nearswap sce ram ramplus_tl
  task_arithmetic ties dare_linear dare_ties breadcrumbs breadcrumbs_ties della della_linear fisher regmean
      (metanet merge --methods describes each with its parameters)
"""


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    options = parser().parse_args(arguments)
    if options.methods:
        print(describe_methods(), end="")
        return 0
    for file in options.plugin:
        load_plugin(file)
    from metanet_zoo.merging.push import Push
    from metanet_zoo.merging.run import merge_checkpoints

    if options.private and options.push is None:
        raise ValueError("--private is for --push; name the repository: --push org/name")
    recipe, out = recipe_of(options)
    meter = Meter(quiet=options.quiet or options.json or not sys.stderr.isatty())
    report = merge_checkpoints(
        recipe,
        out,
        seed=options.seed,
        threads=options.threads,
        max_memory=options.max_memory,
        max_shard_size=options.max_shard_size,
        missing=options.missing,
        allow_nonfinite=options.allow_nonfinite,
        compat=options.compat,
        resume=options.resume,
        overwrite=options.overwrite,
        dry_run=options.dry_run,
        hash_inputs=options.hash,
        card=not options.no_card,
        offline=True if options.offline else None,
        push=Push(options.push, options.private) if options.push is not None else None,
        progress=meter,
    )
    meter.end()
    answer(options, report, lambda found: print(describe(found)))
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the verb's argument parser."""
    result = argparse.ArgumentParser(
        prog="metanet merge",
        description="Merge checkpoints in bounded memory; the output appears whole or not at all.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    add("sources", nargs="*", metavar="RECIPE|MODEL", help="one recipe (.yml), or the models to merge")
    add("-o", "--out", metavar="OUT", help="folder that is to appear, or file ending in .safetensors")
    add("--method", metavar="NAME", help="merge method (default linear)")
    add("--base", metavar="MODEL", help="base model")
    add("--weights", metavar="W,…", help="one weight per model")
    add(
        "--importance",
        action="append",
        default=[],
        metavar="FILE",
        help="what weighs a model's values, once per model: a Fisher information of the same tensors "
        "(fisher), Gram matrices of what flows into its layers (regmean, which finds them beside the models)",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of the method, as in a recipe: density=0.5, t=[0,1]",
    )
    add(
        "--align",
        choices=("auto", "weights"),
        help="first bring the units of every model into the order of the base, or of the first model; auto "
        "leaves fine-tunes of one base as they are",
    )
    add(
        "--many",
        choices=("cycle-consistent", "merge-many", "reference"),
        help="how three or more are aligned: all at once, by Frank-Wolfe (the default without a base) or "
        "each to the mean of the others in turn, or one by one to the reference (the default with a base)",
    )
    add(
        "--dtype",
        choices=("float32", "float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2"),
        help="of the output",
    )
    add("--seed", type=int, default=0, metavar="N", help="of random masks (default 0)")
    add("--dry-run", action="store_true", help="plan, check and estimate; write nothing")
    add("--resume", action="store_true", help="go on with what an interrupted merge left")
    add("--overwrite", action="store_true", help="replace an older output once the new one is complete")
    add(
        "--missing",
        choices=("refuse", "drop", "keep"),
        default="refuse",
        help="tensors that some models lack",
    )
    add("--allow-nonfinite", action="store_true", help="let NaN and infinities pass")
    add("--compat", choices=("mergekit",), help="round inputs and differences as that tool does")
    add("--threads", type=int, metavar="N", help="default: as many as processors, at most 4")
    add("--max-memory", type=size, metavar="SIZE", help="such as 500M; fewer threads are taken if need be")
    add("--max-shard-size", type=size, default=5 * 10**9, metavar="SIZE", help="bytes per file (default 5G)")
    add("--hash", action="store_true", help="put the SHA-256 of the inputs on the model card")
    add("--no-card", action="store_true", help="write no README.md and merge_recipe.yml")
    add("--offline", action="store_true", help="ask the hub's cache alone")
    add(
        "--push",
        metavar="ORG/NAME",
        help="upload the complete output to this repository of the hub, which is made if need be; the token "
        "is HF_TOKEN, or the one that hf auth login keeps",
    )
    add("--private", action="store_true", help="make the repository a private one")
    add("--plugin", action="append", default=[], type=Path, metavar="FILE.py", help="your own merge methods")
    add("--methods", action="store_true", help="describe the methods and their parameters")
    add("--json", action="store_true", help="print the report as JSON")
    add("--quiet", action="store_true", help="print errors only")
    return result


def recipe_of(options: argparse.Namespace) -> tuple[Any, str]:
    """Return the recipe that the command line asks for, and the output.

    Raises:
        ValueError: neither a recipe nor models, or options that a recipe already decides.
    """
    sources: list[str] = list(options.sources)
    first = Path(sources[0]) if sources else None
    if first is not None and first.suffix in (".yml", ".yaml"):
        given = [
            name
            for name in ("method", "base", "weights", "importance", "dtype", "align", "many")
            if getattr(options, name)
        ]
        if given or options.set:
            raise ValueError(
                f"--{(given or ['set'])[0]} was given beside a recipe, which decides that; change the recipe"
            )
        if options.out is None and len(sources) == 2:
            return first, sources[1]
        if len(sources) > 1:
            raise ValueError(f"found {len(sources)} arguments, expected one recipe and -o OUT")
        return first, _out(options)
    if not sources:
        raise ValueError("nothing to merge; name models, or a recipe ending in .yml (metanet merge --help)")
    return _recipe_of_models(options, sources), _out(options)


def _recipe_of_models(options: argparse.Namespace, sources: list[str]) -> dict[str, Any]:
    import yaml

    method = options.method or "linear"
    models: list[dict[str, Any]] = [{"model": source} for source in sources]
    if options.weights is not None:
        weights = [float(part) for part in options.weights.split(",")]
        if len(weights) != len(models):
            raise ValueError(f"--weights has {len(weights)} numbers, expected {len(models)}: one per model")
        for model, weight in zip(models, weights, strict=True):
            model["parameters"] = {"weight": weight}
    if options.importance:
        if len(options.importance) != len(models):
            raise ValueError(
                f"--importance was given {len(options.importance)} times, expected {len(models)}: once for "
                "every model"
            )
        for model, file in zip(models, options.importance, strict=True):
            model["importance"] = file
    parameters: dict[str, Any] = {}
    for item in options.set:
        name, equals, text = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item}: expected NAME=VALUE")
        parameters[name] = yaml.safe_load(text)
    if options.weights is None and "weight" not in parameters and _takes_weight(method):
        parameters["weight"] = 1.0
    recipe: dict[str, Any] = {"merge_method": method, "models": models}
    base = options.base
    if base is None and method in ("slerp", "nearswap", "arcee_fusion"):
        base = sources[0]
    if base is not None:
        recipe["base_model"] = base
    if parameters:
        recipe["parameters"] = parameters
    if options.dtype is not None:
        recipe["dtype"] = options.dtype
    if options.align is not None or options.many is not None:
        recipe["align"] = _alignment(options.align, options.many)
    return recipe


def _alignment(align: str | None, many: str | None) -> str | dict[str, Any]:
    """Return the recipe's ``align`` for ``--align`` and ``--many``."""
    if many is None or (many == "reference" and align == "weights"):
        return align or "auto"
    return {"method": many, "min_gain": 0.0} if align == "weights" else many


def _takes_weight(method: str) -> bool:
    from metanet_zoo.merging.checks import find_method

    return "weight" in find_method(method).parameters


def _out(options: argparse.Namespace) -> str:
    if options.out is None:
        raise ValueError("no output; name it with -o OUT")
    return str(options.out)


def size(text: str) -> int:
    """Read a number of bytes: ``500M``, ``4.5G``, ``2GiB``.

    Example:
        >>> size("1.5G"), size("2GiB"), size("4096")
        (1500000000, 2147483648, 4096)
    """
    match = re.fullmatch(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>[KMGT]?I?)B?", text.strip().upper())
    if match is None or match["unit"] not in UNITS:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a size such as 500M, 4.5G or 2GiB")
    return int(float(match["number"]) * UNITS[match["unit"]])


def load_plugin(path: Path) -> None:
    """Run a Python file that registers merge methods.

    Raises:
        FileNotFoundError: there is no such file.
    """
    import importlib.util

    if not path.is_file():
        raise FileNotFoundError(f"--plugin {path}: there is no such file")
    spec = importlib.util.spec_from_file_location(f"metanet_plugin_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)


def describe_methods() -> str:
    """Return a text about every method and its parameters."""
    import metanet.merging.methods  # noqa: F401  # registers them
    from metanet.merging.method import METHODS

    lines: list[str] = []
    for method in METHODS.values():
        lines += [f"{method.name}: {method.summary}", f"    {method.reference}"]
        if method.base != "unused":
            lines.append(f"    base_model {method.base}")
        for name, parameter in method.parameters.items():
            default = "required" if parameter.default is None else f"default {str(parameter.default).lower()}"
            lines.append(f"    {name:<20} {parameter.doc} ({default})")
        lines.append("")
    return "\n".join(lines)


def describe(report: MergeReport) -> str:
    """Return a report as text."""
    total = sum(report.files.values())
    what = f"{report.method} of {len(report.models)} models: {', '.join(report.models)}"
    lines = [what]
    verb = "would write" if report.dry else "wrote"
    took = "about " if report.dry else ""
    lines.append(
        f"{verb} {report.out}: {report.tensors} tensors, {report.parameters:,} values of "
        f"{', '.join(report.dtype)}, {total / 1e9:.3g} GB in {len(report.files)} file"
        f"{'s' if len(report.files) > 1 else ''}"
    )
    lines.append(
        f"{took}{report.seconds:.1f} s with {report.threads} thread{'s' if report.threads > 1 else ''}"
        + (f", about {report.memory / 1e6:.0f} MB of memory" if report.dry else "")
    )
    if report.resumed:
        lines.append(f"took over {report.resumed} tensors from an interrupted merge")
    if report.nonfinite:
        lines.append(f"NaN or infinite values in {', '.join(report.nonfinite[:5])}")
    if report.pushed is not None:
        lines.append(f"pushed: {report.pushed}")
    lines += [f"note: {note}" for note in report.notes]
    return "\n".join(lines)


class Meter:
    """One line of progress on a terminal."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.began = time.monotonic()
        self.shown = 0.0

    def __call__(self, name: str, done: int, total: int) -> None:
        """Show how far the merge is."""
        now = time.monotonic()
        if self.quiet or (now - self.shown < 0.2 and done < total):
            return
        self.shown = now
        left = (now - self.began) * (total - done) / max(1, done)
        text = f"{100 * done / max(1, total):5.1f} %  {done / 1e9:.2f} of {total / 1e9:.2f} GB  "
        print(f"\r{text}{left:4.0f} s left  {name[-40:]:<40}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line."""
        if not self.quiet and self.shown:
            print("\r" + " " * 90 + "\r", end="", file=sys.stderr, flush=True)
