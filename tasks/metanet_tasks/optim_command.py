"""``metanet optim``: learned optimizers: which there are, what they are, and how they compare."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TASKS = ("mlp", "mlp-wide", "mlp-deep", "mlp-gelu", "mlp-norm", "cnn", "vit", "rnn", "gru", "transformer")
BASELINES = ("SGD-momentum", "AdamW", "Muon + AdamW", "SOAP", "schedule-free AdamW")
"""What the help names; what there is stands in `metanet_tasks.optim`, which imports torch."""

EXAMPLES = """\
examples:
  metanet optim list
  metanet optim info default
  metanet optim info mixing
      a rule of which no meta-weights ship
  metanet optim bench --data data --quick
      the shipped optimizer on the MLP task, beside baselines that were tuned before
  metanet optim bench --data data --out runs/optim --tasks mlp cnn transformer --jobs 2
      every baseline swept over learning rates and schedules; the same command continues
  metanet optim bench --data data --out runs/optim --jobs 2 --dry-run
      how long all that is left would take, from a few measured steps of each

in a training script:
  from metanet.optim import LearnedOptimizer
  optimizer = LearnedOptimizer.from_pretrained("default", model, total_steps=10_000)
"""
DATA = """
data, in the folder that --data or METANET_DATA names, as far as the tasks need them:
  fashion-mnist/     Fashion-MNIST's four files *-ubyte.gz                                      (mlp, mlp-…)
  cifar10/           cifar10_batch_00.png … _29.png: 1,000 images of 32×32×3 bytes in a row each,
                     cifar10_labels.json: {"labels": [6, 9, …]}                                 (cnn, vit)
  tinyshakespeare/   input.txt                                                   (rnn, gru, transformer)
"""


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    options = parser().parse_args(arguments)
    if options.what == "list":
        return _list(as_json=options.json)
    if options.what == "info":
        return _info(options.name, as_json=options.json)
    from metanet_tasks.optim.bench import bench, dry_run, quick

    if options.jobs < 1 or options.seeds < 1:
        raise ValueError(f"expected --jobs and --seeds of at least 1, found {options.jobs}, {options.seeds}")
    data = options.data or os.environ.get("METANET_DATA")
    if not data:
        raise ValueError(
            "name the folder of the data sets with --data or METANET_DATA (--help says what it holds)"
        )
    if options.quick:
        for name in ("dry_run", "out", "tasks", "baselines"):
            if getattr(options, name):
                raise ValueError(
                    "--quick is the MLP task beside baselines that ship with the package, which takes some "
                    f"minutes and writes nothing; leave out --{name.replace('_', '-')}"
                )
        if options.jobs > 1:
            raise ValueError("--quick runs one training after the other; leave out --jobs")
        return quick(Path(data), options.optimizer, seeds=options.seeds, as_json=options.json)
    if options.out is None and not options.dry_run:
        raise ValueError("the whole comparison keeps its runs: name a folder with --out (or use --quick)")
    return (dry_run if options.dry_run else bench)(
        Path(data),
        options.out,
        options.optimizer,
        tasks=options.tasks,
        baselines=options.baselines,
        seeds=options.seeds,
        jobs=options.jobs,
        as_json=options.json,
    )


def parser() -> argparse.ArgumentParser:
    """Return the parser of the verb."""
    made = argparse.ArgumentParser(
        prog="metanet optim",
        description="Learned optimizers: list them, describe one, compare them with tuned baselines.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = made.add_subparsers(dest="what", required=True, metavar="list|info|bench")
    shipped = verbs.add_parser("list", help="the meta-weights that ship with the package, and the rules")
    shipped.add_argument("--json", action="store_true", help="print JSON")
    info = verbs.add_parser("info", help="how meta-weights were made, and what they learned")
    info.add_argument("name", help="shipped meta-weights, a file, org/name on the hub, or a rule")
    info.add_argument("--json", action="store_true", help="print JSON")
    compare = verbs.add_parser(
        "bench",
        help="compare with tuned baselines",
        description="Train small networks with learned optimizers and with tuned baselines, on paired seeds.",
        epilog=EXAMPLES + DATA,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument("--data", help="folder of the data sets, see below (default METANET_DATA)")
    compare.add_argument(
        "--optimizer",
        nargs="+",
        default=["default"],
        help="meta-weights: names or files (default: the shipped 'default')",
    )
    compare.add_argument("--quick", action="store_true", help="the MLP task alone, beside a shipped table")
    compare.add_argument("--out", type=Path, help="folder for runs, tables and plots; continued if it exists")
    compare.add_argument("--tasks", nargs="+", help=f"default all: {', '.join(TASKS)}")
    compare.add_argument(
        "--baselines",
        nargs="*",
        help=f"default all: {', '.join(map(repr, BASELINES))}; none: learned ones alone",
    )
    compare.add_argument("--seeds", type=int, default=5, help="paired seeds (default 5)")
    compare.add_argument(
        "--jobs", type=int, default=1, help="trainings at the same time, one thread each (default 1)"
    )
    compare.add_argument(
        "--dry-run", action="store_true", help="measure a few steps of everything and print the time it takes"
    )
    compare.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return made


def _list(*, as_json: bool) -> int:
    import json

    from metanet.optim.pretrained import RULES, load_meta_weights, shipped

    found = [load_meta_weights(name) for name in shipped()]
    sizes = {name: rule().size for name, rule in RULES.items()}
    if as_json:
        entries = [{"name": w.name, "rule": w.rule.name, "hash": w.hash} for w in found]
        rules = [{"name": name, "meta_parameters": size} for name, size in sizes.items()]
        print(json.dumps({"shipped": entries, "rules": rules}, indent=2))
        return 0
    for weights in found:
        size = sizes[weights.rule.name]
        print(
            f"{weights.name:<14} rule {weights.rule.name:<14} {size:>5} meta-parameters   {weights.hash[:12]}"
        )
    others = [name for name in RULES if name not in {weights.rule.name for weights in found}]
    print(f"\nrules without shipped meta-weights (scripts/meta_train.py makes them): {', '.join(others)}")
    return 0


def _info(name: str, *, as_json: bool) -> int:
    import json

    from metanet.optim.pretrained import RULES, load_meta_weights, shipped
    from metanet_zoo.hub import parse_repo_id
    from metanet_zoo.meta_weights import fetch_meta_weights

    here = name in shipped() or Path(name).exists()
    if name in RULES and not here:
        rule = RULES[name]()
        found: dict[str, Any] = {
            "rule": name,
            "about": _about(type(rule)),
            "meta_parameters": rule.size,
            "links_tensors": rule.linked,
            "needs_spec": rule.needs_spec,
            "shipped": [other for other in shipped() if load_meta_weights(other).rule.name == name],
            "shapes": {key: len(meta.initial) for key, meta in rule.metas.items()},
        }
        if as_json:
            print(json.dumps(found, indent=2))
            return 0
        ready = ", ".join(found["shipped"]) or "none"
        print(f"{name}: a rule with {rule.size} meta-parameters; shipped meta-weights: {ready}")
        print(f"  {found['about']}")
        spec = "needs the spec of the network" if rule.needs_spec else "links tensors if there is a spec"
        print(f"  {spec if rule.linked else 'treats tensors one by one'}")
        print(f"  scripts/meta_train.py --rule {name} makes some: metanet optim info FILE describes them")
        return 0
    weights = fetch_meta_weights(name) if not here and parse_repo_id(name) else load_meta_weights(name)
    found = {
        "name": weights.name,
        "rule": weights.rule.name,
        "hash": weights.hash,
        "card": weights.card,
        "values": {key: [round(v, 5) for v in meta[0].tolist()] for key, meta in weights.metas.items()},
    }
    if as_json:
        print(json.dumps(found, indent=2))
        return 0
    print(f"{weights.name}: rule {weights.rule.name}, sha256 {weights.hash}")
    for key, value in weights.card.items():
        print(f"  {key}: {value}")
    for key, meta in weights.metas.items():
        values = " ".join(f"{value:.3f}" for value in meta[0, :12].tolist())
        print(f"  {key}: {values}{' …' if meta.shape[1] > 12 else ''}")
    return 0


def _about(rule: type) -> str:
    """Return the first sentence about a rule: its own, or that of its module."""
    import inspect
    import sys

    own = inspect.getdoc(rule) or ""
    module = sys.modules[rule.__module__].__doc__ or ""
    chosen = module if own.startswith("See the module") else own
    return chosen.strip().splitlines()[0]
