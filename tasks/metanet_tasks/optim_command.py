"""``metanet optim``: learned optimizers: which there are, what they are, and how they compare."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = """\
examples:
  metanet optim list
  metanet optim info default
  metanet optim bench --data ../data --quick
      the shipped optimizer on the MLP task, beside baselines that were tuned before
  metanet optim bench --data ../data --out runs/optim --tasks mlp cnn transformer --jobs 2
      every baseline swept over learning rates and schedules; the same command continues
  metanet optim bench --data ../data --out runs/optim --jobs 2 --dry-run
      how long all that is left would take, from a few measured steps of each

in a training script:
  from metanet.optim import LearnedOptimizer
  optimizer = LearnedOptimizer.from_pretrained("default", model, total_steps=10_000)
"""


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    options = parser().parse_args(arguments)
    if options.what == "list":
        return _list()
    if options.what == "info":
        return _info(options.name, as_json=options.json)
    from metanet_tasks.optim.bench import bench, dry_run, quick

    if options.jobs < 1 or options.seeds < 1:
        raise ValueError(f"expected --jobs and --seeds of at least 1, found {options.jobs}, {options.seeds}")
    if options.quick and options.dry_run:
        raise ValueError("--quick takes some minutes; --dry-run estimates the whole comparison: give one")
    if options.quick:
        return quick(options.data, options.optimizer, seeds=options.seeds, as_json=options.json)
    if options.out is None and not options.dry_run:
        raise ValueError("the whole comparison keeps its runs: name a folder with --out (or use --quick)")
    return (dry_run if options.dry_run else bench)(
        options.data,
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
    verbs.add_parser("list", help="the meta-weights that ship with the package")
    info = verbs.add_parser("info", help="how meta-weights were made, and what they learned")
    info.add_argument("name", help="name of shipped meta-weights, a file, or org/name on the hub")
    info.add_argument("--json", action="store_true", help="print JSON")
    compare = verbs.add_parser(
        "bench",
        help="compare with tuned baselines",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder that holds fashion-mnist/ (IDX files), cifar10/ and tinyshakespeare/, as far as used",
    )
    compare.add_argument(
        "--optimizer", nargs="+", default=["default"], help="meta-weights to compare (names or files)"
    )
    compare.add_argument("--quick", action="store_true", help="the MLP task alone, beside a shipped table")
    compare.add_argument("--out", type=Path, help="folder for runs, tables and plots; continued if it exists")
    compare.add_argument("--tasks", nargs="+", help="tasks (all): mlp, cnn, rnn, transformer, …")
    compare.add_argument("--baselines", nargs="*", help="baselines (all): AdamW, 'Muon + AdamW', …")
    compare.add_argument("--seeds", type=int, default=5, help="paired seeds")
    compare.add_argument("--jobs", type=int, default=1, help="trainings at the same time, one thread each")
    compare.add_argument(
        "--dry-run", action="store_true", help="measure a few steps of everything and print the time it takes"
    )
    compare.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return made


def _list() -> int:
    from metanet.optim.pretrained import load_meta_weights, shipped

    for name in shipped():
        weights = load_meta_weights(name)
        count = sum(meta.numel() for meta in weights.metas.values())
        print(f"{name:<12} {weights.rule.name:<14} {count:>5} meta-parameters   {weights.hash[:12]}")
    if not shipped():
        print("no meta-weights ship with this version", file=sys.stderr)
    return 0


def _info(name: str, *, as_json: bool) -> int:
    import json

    from metanet.optim.pretrained import load_meta_weights, shipped
    from metanet_zoo.hub import parse_repo_id
    from metanet_zoo.meta_weights import fetch_meta_weights

    remote = name not in shipped() and not Path(name).exists() and parse_repo_id(name)
    weights = fetch_meta_weights(name) if remote else load_meta_weights(name)
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
