"""What does aligning a large language model cost, whole process, and is what was planted found?

Two bf16 Llama checkpoints of 602 M parameters in 3 shards, as `benchmark_merge.py` makes them: the second
with random weights, the first the second with its neurons, key-value heads, queries and value widths
permuted at random and noise of a tenth of the weights' deviation added. ``metanet match`` aligns the
second to the first and writes it: spec, matching, proof and writing are one process on one thread, whose
CPU time and peak of anonymous memory are taken.

    python scripts/match_llama.py --folder FOLDER [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from benchmark_merge import PIECE, SMALL, measure

from metanet import GroupElement
from metanet.merging.floats import decode, encode
from metanet_zoo.matching.element_file import load_element, save_element
from metanet_zoo.matching.source_tensors import aligned_source
from metanet_zoo.merging.shards import lay_out
from metanet_zoo.merging.sources import open_model
from metanet_zoo.spec_source import find_spec

RESULTS = Path(__file__).parent / "results" / "match_llama.md"
NOISE = 0.002
STREAM = "model.embed_tokens"
TARGET = "≤ 110 CPU s, ≤ 1.2 GiB anonymous"
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def make_pair(folder: Path, sizes: dict[str, int] = SMALL) -> None:
    """Write ``b``, and ``a``: ``b`` permuted, with noise; the planted element beside them."""
    from benchmark_merge import make_llama

    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "b").exists():
        make_llama(folder / "b", 0, sizes)
    if (folder / "planted.safetensors").exists():
        return
    spec = find_spec(folder / "b").spec
    drawn = GroupElement.random(spec, torch.Generator().manual_seed(1))
    planted = drawn.without(next(group.name for group in spec.groups if group.name.startswith(STREAM)))
    moved = aligned_source(open_model(str(folder / "b")).source, planted)
    entries = dict(moved.entries())
    total = sum(entry.size for entry in entries.values())
    layout = lay_out(entries, {"format": "pt"}, 2 * total // 3 + (32 << 20))
    (folder / "a").mkdir(exist_ok=True)
    for file, header in layout.headers.items():
        with (folder / "a" / file).open("wb") as handle:
            handle.write(header)
            handle.truncate(layout.sizes[file])
    for number, (name, place) in enumerate(layout.places.items()):
        with (folder / "a" / place.file).open("r+b") as handle:
            handle.seek(place.offset)
            rows = place.entry.shape[-1]
            step = max(1, PIECE // rows) * rows
            for part, start in enumerate(range(0, place.entry.size, step)):
                stop = min(start + step, place.entry.size)
                raw = np.empty(2 * (stop - start), np.uint8)
                moved.read(name, start, stop, raw)
                values = np.empty(stop - start, np.float32)
                decode(raw, "BF16", values)
                drawn_noise = np.random.default_rng([2, number, part]).standard_normal(
                    stop - start, np.float32
                )
                values += np.float32(NOISE) * drawn_noise
                encode(values, "BF16", raw)
                handle.write(raw.tobytes())
    if layout.index is not None:
        (folder / "a" / "model.safetensors.index.json").write_text(layout.index)
    (folder / "a" / "config.json").write_text((folder / "b" / "config.json").read_text())
    save_element(folder / "planted.safetensors", planted)


def main() -> int:
    """Make the pair, align it, and record the cost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where checkpoints are made and kept")
    parser.add_argument("--rounds", type=int, default=1, help="runs; the median counts")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    os.environ.update(dict.fromkeys(THREADS, "1"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        make_pair(folder)
        load = os.getloadavg()[0]
        element, report = folder / "g.safetensors", folder / "report.json"
        command = [sys.executable, "-m", "metanet_tasks.cli", "match", str(folder / "a"), str(folder / "b")]
        command += ["-o", str(folder / "aligned"), "--out-element", str(element), "--overwrite", "--quiet"]
        costs = [measure(command) for _ in range(options.rounds)]
        found, facts = load_element(element)
        planted, _ = load_element(folder / "planted.safetensors")
        exact = [
            name
            for name, permutation in planted.permutations.items()
            if torch.equal(found.permutations.get(name, torch.empty(0)), permutation)
        ]
        report.write_text(json.dumps(facts, indent=2))
    cpu = [cost.cpu for cost in costs]
    lines = [
        "# Aligning a Llama of 602 million parameters",
        "",
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {platform.machine()}, one thread, torch "
        f"{torch.__version__}, load at the start {load:.1f} on {os.cpu_count()} cores.",
        "",
        "Two bf16 checkpoints in 3 shards (hidden 1536, 20 layers, 12 heads, 4 key-value heads, intermediate "
        "4096, vocabulary 32,000, random weights); the first is the second with neurons, key-value heads, "
        "their queries and value widths permuted at random and noise of a tenth of the weights' deviation "
        "added.",
        "",
        f"| whole process: spec, matching, proof layer by layer, writing | target: {TARGET} |",
        "|---|---|",
        f"| CPU s (user + system), median of {len(cpu)} | {statistics.median(cpu):.1f} "
        f"({', '.join(f'{value:.1f}' for value in cpu)}) |",
        f"| peak of anonymous memory | {max(cost.anonymous for cost in costs) / 2**30:.2f} GiB |",
        f"| peak resident | {max(cost.resident for cost in costs) / 2**30:.2f} GiB |",
        f"| planted permutations found | {len(exact)} of {len(planted.permutations)} |",
        f"| squared distance | {facts['before']:,.0f} → {facts['after']:,.0f} |",
        "",
        "    python scripts/match_llama.py --folder FOLDER --rounds N",
        "",
    ]
    text = "\n".join(lines)
    print(text)
    options.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
