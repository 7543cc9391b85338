"""``metanet inspect``: show and prove the symmetry of a network."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from metanet.spec import WeightSpec
    from metanet_tasks.inspection import Inspection

EXAMPLES = """\
examples:
  metanet inspect policy.pt --activation tanh --verify
      a plain MLP or CNN, recognised by the names and shapes of its tensors
  metanet inspect model.safetensors
      with model.spec.json, model.spec or spec.json beside it
  metanet inspect ./Llama-3-8B --verify
      a Hugging Face folder: config.json is built without weights by the package transformers, of the weights
      only names and shapes are read; the proof is of the same architecture at a reduced size
  metanet inspect torchvision.models:resnet18 --input 'f32[1,3,64,64]' --verify
      a network in Python; the current folder is searched first
  metanet inspect mymodels:transformer --input 'i64[1,16]:1000' --save-spec transformer.spec.json
      token ids below 1000; the spec goes into a file to be shipped beside checkpoints
  metanet inspect mymodels:cnn --input 'f32[1,3,32,32]' --spec edited.spec --verify
      prove, or refute, a spec that was written or edited by hand

  metanet inspect ./Llama-3-8B --explain --plot llama.svg
      what tied which entries together, what acts on each group, and a picture of it all

how to read it:
  h1: 32 sign phase(30)   a group of 32 units, interchangeable; each may also change sign and phase
  weight   h2 h1'         rows are the units of h2, columns read the units of h1
  (c9 49)                 a product: 49 positions for each unit of c9;  [q | k | v]: laid end to end
  10                      indices with a meaning of their own (classes, pixels)
"""


def main(arguments: Sequence[str]) -> int:
    """Run the verb; exit code 1 if a proof was asked for and refuted."""
    options = parser().parse_args(arguments)
    from metanet_tasks.inspection import inspect
    from metanet_zoo.spec_files import write_spec

    inspection = inspect(
        options.source,
        inputs=options.input,
        spec_file=options.spec,
        activation=options.activation,
        prove=options.verify,
        seed=options.seed,
        trust_remote_code=options.trust_remote_code,
        cache=not options.no_cache,
    )
    if options.save_spec is not None:
        write_spec(options.save_spec, inspection.spec)
    if options.plot is not None:
        from metanet_tasks.group_picture import plot_groups

        plot_groups(inspection.spec, options.plot, options.source)
    if options.json:
        import json

        print(json.dumps(inspection.to_dict(), indent=2, ensure_ascii=False))
    else:
        show(inspection)
        if options.explain:
            show_explanation(inspection)
        for written in filter(None, (options.save_spec, options.plot)):
            print(f"wrote {written}")
    refuted = inspection.verification is not None and not inspection.verification.ok
    return 1 if refuted else 0


def parser() -> argparse.ArgumentParser:
    """Return the verb's argument parser."""
    result = argparse.ArgumentParser(
        prog="metanet inspect",
        description="Show which changes of a network's weights leave its function unchanged, and prove it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument(
        "source",
        metavar="CHECKPOINT|OBJECT",
        help="a checkpoint (safetensors, index of shards, torch file, folder, org/name on the hub) or "
        "package.module:factory",
    )
    result.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="DTYPE[SHAPE]",
        help="an argument of the network, e.g. f32[1,3,32,32] or i64[1,16]:1000; repeat for several",
    )
    result.add_argument("--verify", action="store_true", help="prove the spec in float64 on generic weights")
    result.add_argument(
        "--explain",
        action="store_true",
        help="say of every group what wrote it, what tied its entries together and what acts on it, and of "
        "every lost freedom the operation that cost it and how to win it back",
    )
    result.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw the groups and the parameters between them (SVG, PNG or PDF), repeated layers folded",
    )
    result.add_argument("--spec", type=Path, metavar="FILE", help="take the spec from this file")
    result.add_argument("--save-spec", type=Path, metavar="FILE", help="write the spec (JSON if *.json)")
    result.add_argument(
        "--activation", metavar="NAME", help="of a plain sequential checkpoint: relu, tanh, sine:30, …"
    )
    result.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run the code that a Hugging Face folder brings along; never done otherwise",
    )
    result.add_argument(
        "--no-cache", action="store_true", help="derive anew, and keep nothing in the cache (METANET_CACHE)"
    )
    result.add_argument("--seed", type=int, default=0, help="of the random inputs (default 0)")
    result.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return result


def kinds_of_actions(spec: WeightSpec) -> dict[str, list[str]]:
    """Return, for every group, the kinds of actions that draw a value over its units, and how many."""
    counts: dict[str, dict[str, int]] = {}
    for action in spec.actions:
        for group in dict.fromkeys(action.groups):
            kinds = counts.setdefault(group, {})
            kinds[action.kind] = kinds.get(action.kind, 0) + 1
    return {
        group: [kind if times == 1 else f"{times}×{kind}" for kind, times in kinds.items()]
        for group, kinds in counts.items()
    }


def show_explanation(inspection: Inspection) -> None:
    """Print where every group comes from, what acts on it, and what was lost."""
    from metanet.explanation import explain
    from metanet_tasks.console import console
    from metanet_tasks.explanation_view import explanation_lines

    out = console()
    out.print("\n[bold]where the groups come from[/]\n")
    for line in explanation_lines(explain(inspection.spec)):
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def show(inspection: Inspection) -> None:
    """Print an inspection as tables."""
    from rich.markup import escape
    from rich.table import Table

    from metanet_tasks.console import console, count

    out, spec = console(), inspection.spec
    out.print(f"[bold]{escape(inspection.source)}[/]: {escape(inspection.origin)}", highlight=False)
    for note in inspection.notes:
        out.print(f"  note: {escape(note)}", highlight=False)
    where, acting = spec.group_to_axes, kinds_of_actions(spec)
    groups = Table("group", "units", "freedoms", "occurs in", title="groups", title_justify="left")
    for group in spec.groups:
        places = [f"{name}[{dim}]" for name, dim in where[group.name]]
        shown = ", ".join(places[:4]) + (f" and {len(places) - 4} more" if len(places) > 4 else "")
        freedoms = " ".join([*map(str, group.freedoms), *acting.get(group.name, ())]) or "permutations only"
        size = f"{group.size}" + (f" under {group.parent}" if group.parent else "")
        groups.add_row(group.name, size, freedoms, escape(shown))
    entries = Table("entry", "axes", "shape", title="entries", title_justify="left")
    for name, axes in spec.entries:
        shape = "×".join(map(str, spec.shapes[name])) or "scalar"
        entries.add_row(escape(name), escape(" ".join(map(str, axes))), shape)
    if spec.groups:
        out.print(groups)
    else:
        out.print("groups: none; no change of these weights is known to keep the function")
    out.print(entries)
    facts = [f"{count(spec.num_parameters)} values", f"finite part of the group 2^{spec.log2_size():.1f}"]
    facts += [f"phases of rank {spec.phase_rank()}"] if spec.phase_rank() else []
    facts += [f"{count(len(spec.actions))} actions"] if spec.actions else []
    facts += [f"continuous part of dimension {spec.dimension()}"] if spec.dimension() else []
    out.print("; ".join(facts), highlight=False)
    for lost in spec.lost:
        names = ", ".join(lost.entries)
        out.print(f"lost: {escape(lost.operation)} fixed {escape(names)}: {escape(lost.reason)}")
    if spec.unused:
        out.print(f"unused, no output depends on them: {escape(', '.join(spec.unused))}")
    for tie in spec.ties:
        out.print(f"one parameter: {escape(' = '.join(tie))}")
    proof = inspection.verification
    if proof is not None:
        verdict = "[green]proven[/]" if proof.ok else "[red]refuted[/]"
        out.print(f"{verdict} in float64; {escape(str(proof))}", highlight=False)
    elif inspection.not_proven is not None:
        out.print(f"[yellow]not proven[/]: {escape(inspection.not_proven)}")
