"""The groups of `rebasin` and `torch-pruning` beside those of `metanet`, on the same networks.

Both packages run as subprocesses in an environment of their own, every family under a limit of time. Results
are kept as JSON lines, so that a run may be continued, and written as a table.

    python -m venv --system-site-packages rivals
    rivals/bin/pip install rebasin torchview graphviz torch-pruning
    python scripts/architectures_rivals.py --python rivals/bin/python [--resume]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

from architectures import FAMILIES

RESULTS = Path(__file__).parent / "results"
WORKER = Path(__file__).with_name("rival_groups.py")
TOOLS = ("metanet", "rebasin", "torch-pruning")
CHOSEN = (
    *("MLP", "MLP with batch norm", "LeNet-5", "VGG", "SqueezeNet", "ResNet basic", "ResNet bottleneck"),
    *("ResNet option A", "ResNeXt", "DenseNet", "Inception", "SENet", "MobileNet v2 (plain)", "ShuffleNet"),
    *("EfficientNet (plain)", "ConvNeXt (plain)", "Autoencoder", "U-Net (transposed)", "MLP-Mixer"),
    *("ViT (torch layers)", "ViT", "Swin", "Transformer 2017", "BERT", "GPT-2", "Llama"),
    *("Decoder by hand (fused QKV, GQA)", "LSTM", "GRU", "DiT"),
)
"""The families that are compared."""

Result: TypeAlias = dict[str, Any]

PREFACE = """\
Written by `python scripts/architectures_rivals.py`. Every group that a tool finds is permuted at random,
alone, in float64 on generic values: *kept* groups leave the outputs as they were to 1e-9, *broken* ones
change them, *outputs* only reorders the outputs (the units of the last layer), *no match* ones hold unequal
numbers of values per unit. *Moved*: share of the values of all parameters that the kept groups move; in
brackets, that all groups move. *Bits*: log2 of the number of permutations of the kept groups, each group
counted once. Seconds are of processor time until the groups are known. `rebasin` leaves the running
statistics of BatchNorm where they are, to be estimated anew: for it they were zero and one. `torch-pruning`
cuts grouped convolutions and attention only in whole sets of channels (`ch_groups`, `num_heads`), of which
its groups know nothing; they are taken as they are. The limit is of wall time."""


def run(tool: str, families: Sequence[str], python: str, limit: int) -> Iterator[tuple[str, Result]]:
    """Run one tool on some families in its environment."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [python, str(WORKER), "--tool", tool, "--limit", str(limit), *families]
    environment = {**os.environ, **threads, "PYTHONPATH": str(WORKER.parent.parent)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            family, _, result = json.loads(line)
            yield family, result
    if process.returncode:
        raise RuntimeError(f"{tool} ended with status {process.returncode}; its last lines say why")


def versions(python: str) -> dict[str, str]:
    """Return the versions of the packages in an environment."""
    names = ("torch", "rebasin", "torchview", "torch-pruning")
    code = f"import importlib.metadata as m; print(*(m.version(name) for name in {names!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{python} lacks one of {', '.join(names)}:\n{done.stderr[-500:]}")
    return dict(zip(names, done.stdout.split(), strict=True))


def verdict(result: Result | None) -> str:
    """Return what a table says of one tool on one family."""
    if result is None:
        return "not yet run"
    if result["reason"]:
        return f"**not run**: {_cell(result['reason'])}"
    parts = [
        (result["kept"], "kept"),
        (result["broken"], "**broken**"),
        (result["reordering"], "outputs"),
        (result["undefined"], "no match"),
    ]
    counts = ", ".join(f"{count} {word}" for count, word in parts if count) or "none"
    moved = f"{100 * result['moved_soundly']:.0f} %"
    if round(100 * result["moved"]) != round(100 * result["moved_soundly"]):
        moved += f" ({100 * result['moved']:.0f} %)"
    return f"{counts}; {moved}; {result['bits']:.0f} bits; {result['seconds']:.1f} s"


def summary(rows: dict[str, dict[str, Result]]) -> list[str]:
    """Return the counts that open the table."""
    lines = ["| | ran | only groups that keep the function | some broken group | groups | kept | broken |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    for tool in TOOLS:
        ran = [row[tool] for row in rows.values() if tool in row and not row[tool]["reason"]]
        tried = sum(tool in row for row in rows.values())
        broken = sum(result["broken"] > 0 for result in ran)
        sums = [sum(result[key] for result in ran) for key in ("groups", "kept", "broken")]
        cells = [tool, f"{len(ran)} of {tried}", len(ran) - broken, broken, *sums]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def table(rows: dict[str, dict[str, Result]], known: dict[str, str], limit: int) -> str:
    """Return everything as Markdown."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    named = ", ".join(f"{name} {version}" for name, version in known.items())
    lines = ["# Groups beside `rebasin` and `torch-pruning`", ""]
    lines += [f"{now}; {platform.machine()}, {os.cpu_count()} cores; {named}; limit {limit} s.", ""]
    lines += [PREFACE, "", *summary(rows), "", f"| family | {' | '.join(TOOLS)} |", "|---|---|---|---|"]
    for family in CHOSEN:
        lines.append(f"| {family} | {' | '.join(verdict(rows.get(family, {}).get(t)) for t in TOOLS)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")[:140]


def main() -> None:
    """Run what is asked for, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", required=True, help="interpreter that has rebasin and torch-pruning")
    parser.add_argument("--resume", action="store_true", help="run what has no result")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS, help="the tools to run")
    parser.add_argument("--limit", type=int, default=120, help="seconds of wall time a family may take")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    assert all(family in FAMILIES for family in CHOSEN)
    known = versions(options.python)
    path = options.results / "architectures_rivals.jsonl"
    rows: dict[str, dict[str, Result]] = {}
    if options.resume and path.exists():
        for line in path.read_text().splitlines():
            family, tool, result = json.loads(line)
            rows.setdefault(family, {})[tool] = result
    else:
        path.write_text("")
    lock = Lock()

    def follow(tool: str) -> None:
        python = sys.executable if tool == "metanet" else options.python
        left = [family for family in CHOSEN if tool not in rows.get(family, {})]
        for family, result in run(tool, left, python, options.limit) if left else ():
            with lock, path.open("a") as file:
                rows.setdefault(family, {})[tool] = result
                file.write(json.dumps([family, tool, result]) + "\n")
                print(f"{family}: {tool}: {verdict(result)}", flush=True)

    with ThreadPoolExecutor(len(TOOLS)) as pool:
        list(pool.map(follow, options.tools))
    (options.results / "architectures_rivals.md").write_text(table(rows, known, options.limit))


if __name__ == "__main__":
    main()
