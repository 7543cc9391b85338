"""What does a merge cost beside mergekit: CPU time of the whole process, and peak memory?

Both merge the same pair of random bf16 Llama checkpoints (602 M parameters in 3 shards, with a base for the
methods that need one), as processes of their own with their defaults; the page cache is warm, we check inputs
for NaN and infinities, and hashes are not taken. Anonymous memory is polled from ``smaps_rollup``.

    python scripts/benchmark_merge.py --mergekit PYTHON [--methods linear,ties] [--rounds 1] [--large]

PYTHON is the interpreter of an environment that has mergekit 0.1.5; ``--large`` adds merges of 3 B
parameters.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from metanet.merging.floats import encode
from metanet_zoo.merging.shards import lay_out
from metanet_zoo.merging.sources import Entry

RESULTS = Path(__file__).parent / "results" / "benchmark_merge.md"
TARGETS = {
    "linear": 0.45,
    "task_arithmetic": 0.45,
    "slerp": 0.25,
    "dare_linear": 0.25,
    "dare_ties": 0.25,
    "della": 0.25,
    "della_linear": 0.25,
    "ties": 0.15,
}
SMALL = {"hidden": 1536, "layers": 20, "heads": 12, "kv": 4, "inner": 4096, "vocabulary": 32000}
LARGE = {"hidden": 3072, "layers": 25, "heads": 24, "kv": 8, "inner": 8192, "vocabulary": 32000}
PIECE = 1 << 22
LOOP_TARGET = 2.2


def make_llama(folder: Path, seed: int, sizes: dict[str, int], base: int | None = None) -> None:
    """Write a random bf16 Llama checkpoint, near that of seed ``base`` if given.

    The large one is made of holes, which read as zeros: its question is memory.
    """
    folder.mkdir(parents=True)
    hidden, inner, kv = sizes["hidden"], sizes["inner"], sizes["kv"] * sizes["hidden"] // sizes["heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (sizes["vocabulary"], hidden)}
    for layer in range(sizes["layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "self_attn.q_proj.weight": (hidden, hidden),
            prefix + "self_attn.k_proj.weight": (kv, hidden),
            prefix + "self_attn.v_proj.weight": (kv, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, hidden),
            prefix + "mlp.gate_proj.weight": (inner, hidden),
            prefix + "mlp.up_proj.weight": (inner, hidden),
            prefix + "mlp.down_proj.weight": (hidden, inner),
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "post_attention_layernorm.weight": (hidden,),
        }
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (sizes["vocabulary"], hidden)}
    entries = {name: Entry("BF16", shape) for name, shape in shapes.items()}
    total = sum(entry.size for entry in entries.values())
    layout = lay_out(entries, {"format": "pt"}, 2 * total // 3 + (32 << 20))
    for file, header in layout.headers.items():
        with (folder / file).open("wb") as handle:
            handle.write(header)
            handle.truncate(layout.sizes[file])
    for number, place in enumerate(() if sizes is LARGE else layout.places.values()):
        with (folder / place.file).open("r+b") as handle:
            handle.seek(place.offset)
            for part, start in enumerate(range(0, place.entry.size, PIECE)):
                count = min(PIECE, place.entry.size - start)
                first = np.random.default_rng([seed if base is None else base, number, part])
                values = first.standard_normal(count, dtype=np.float32)
                values *= np.float32(0.02)
                if base is not None:
                    own = np.random.default_rng([seed, number, part])
                    values += own.standard_normal(count, dtype=np.float32) * np.float32(0.002)
                raw = np.empty(2 * count, np.uint8)
                encode(values, "BF16", raw)
                handle.write(raw.tobytes())
    if layout.index is not None:
        (folder / "model.safetensors.index.json").write_text(layout.index)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "num_key_value_heads": sizes["kv"],
        "vocab_size": sizes["vocabulary"],
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))


def recipe(method: str, folder: Path) -> dict[str, Any]:
    """Return the recipe of a method for the benchmark's models."""
    a, b, base = (str(folder / name) for name in ("a", "b", "base"))
    result: dict[str, Any] = {"merge_method": method, "dtype": "bfloat16"}
    if method == "slerp":
        return result | {
            "base_model": a,
            "models": [{"model": a}, {"model": b}],
            "parameters": {"t": [0.2, 0.6, 0.4]},
        }
    parameters: dict[str, Any] = {"weight": 0.5}
    if method not in ("linear", "task_arithmetic"):
        parameters["density"] = 0.5
    result["models"] = [{"model": a, "parameters": parameters}, {"model": b, "parameters": parameters}]
    return result if method == "linear" else result | {"base_model": base}


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds (user and system), wall seconds, and peaks of anonymous and resident memory in bytes."""

    cpu: float
    wall: float
    anonymous: int
    resident: int


def measure(command: list[str]) -> Cost:
    """Run a command and measure it.

    Raises:
        RuntimeError: it failed.
    """
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak = 0
    messages: list[bytes] = []

    def drain() -> None:
        assert process.stderr is not None
        messages.append(process.stderr.read())

    reader = threading.Thread(target=drain)
    reader.start()
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        peak = max(peak, _anonymous(process.pid))
        time.sleep(0.02)
    reader.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {messages[0][-500:].decode(errors='replace')}")
    cpu = usage.ru_utime + usage.ru_stime
    return Cost(cpu, time.monotonic() - began, peak, usage.ru_maxrss * 1024)


def _anonymous(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Anonymous:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


COPY = """
import os, sys, time
from pathlib import Path
began = time.process_time()
a, b, out = map(Path, sys.argv[1:])
one, two = memoryview(bytearray(1 << 18)), memoryview(bytearray(1 << 18))
for file in sorted(a.glob("*.safetensors")):
    x, y = os.open(file, os.O_RDONLY), os.open(b / file.name, os.O_RDONLY)
    z = os.open(out.with_name(out.name + file.name), os.O_RDWR | os.O_CREAT)
    at = 0
    while count := os.preadv(x, [one], at):
        os.preadv(y, [two], at)
        os.pwrite(z, one[:count], at)
        at += count
    os.fsync(z)
print(time.process_time() - began)
"""
LOOP = """
import sys, time
from metanet_zoo.merging.run import merge_checkpoints
began = time.process_time()
merge_checkpoints(sys.argv[1], sys.argv[2], overwrite=True)
print(time.process_time() - began)
"""


def loops(folder: Path, rounds: int) -> str:
    """Say what a linear merge costs beside copying its bytes, both without the start of their processes."""
    recipe_file, out = folder / "linear.yml", folder / "out"
    recipe_file.write_text(yaml.safe_dump(recipe("linear", folder)))
    took: dict[str, list[float]] = {"copy": [], "merge": []}
    for _ in range(rounds):
        for name, script, arguments in (
            ("copy", COPY, [folder / "a", folder / "b", folder / "copied-"]),
            ("merge", LOOP, [recipe_file, out]),
        ):
            command = [sys.executable, "-c", script, *map(str, arguments)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            took[name].append(float(done.stdout))
            _clear(out)
            for copied in folder.glob("copied-*"):
                copied.unlink()
    copy, merge = (statistics.median(took[name]) for name in ("copy", "merge"))
    return (
        f"Linear's loop, from the recipe to the finished folder: {merge:.2f} CPU s; reading both inputs and "
        f"writing as many bytes as one: {copy:.2f} CPU s; ratio {merge / copy:.2f}, target ≤ {LOOP_TARGET} "
        f"(medians of {rounds}, taking turns)."
    )


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mergekit", metavar="PYTHON", help="interpreter that has mergekit 0.1.5")
    parser.add_argument("--methods", default=",".join(TARGETS))
    parser.add_argument("--rounds", type=int, default=1, help="runs of each; the median counts")
    parser.add_argument("--threads", type=int, help="of metanet merge (default: its own)")
    parser.add_argument("--large", action="store_true", help="also merge 3 B parameters")
    parser.add_argument("--loop", action="store_true", help="only linear's loop beside copying its bytes")
    parser.add_argument("--folder", type=Path, help="where checkpoints are made and kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if options.loop:
            _make(folder, SMALL)
            print(loops(folder, options.rounds))
            return 0
        text = _run(options, folder)
    print(text)
    options.out.write_text(text, encoding="utf-8")
    return 0


def _run(options: argparse.Namespace, folder: Path) -> str:
    _make(folder, SMALL)
    load = os.getloadavg()[0]
    ours_command = [sys.executable, "-m", "metanet_tasks.cli", "merge"]
    extra = [] if options.threads is None else ["--threads", str(options.threads)]
    rows = []
    python = options.mergekit
    for method in options.methods.split(","):
        file = folder / f"{method}.yml"
        file.write_text(yaml.safe_dump(recipe(method, folder)))
        out = folder / "out"
        ours = [*ours_command, str(file), "-o", str(out), "--quiet", *extra]
        costs: dict[str, list[Cost]] = {"ours": [], "theirs": []}
        for _ in range(options.rounds):
            _clear(out)
            costs["ours"].append(measure(ours))
            _clear(out)
            if python is not None:
                script = str(Path(python).with_name("mergekit-yaml"))
                theirs = [python, script, str(file), str(out), "--random-seed", "0", "--quiet"]
                costs["theirs"].append(measure(theirs))
                _clear(out)
        rows.append(_row(method, costs))
        print(rows[-1], flush=True)
    lines = [
        "# CPU time and memory of merges beside mergekit 0.1.5",
        "",
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {platform.machine()}, {os.cpu_count()} cores, NumPy "
        f"{np.__version__}, Python {platform.python_version()}, load at the start {load:.1f}; "
        f"602 M parameters, median of {options.rounds}.",
        "",
        "| method | metanet CPU s | wall s | anonymous MB | mergekit CPU s | wall s | anonymous MB "
        "| ratio of CPU | target |",
        "|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]
    empty = measure([*ours_command, "--help"])
    lines.append(f"{loops(folder, max(3, options.rounds))} `metanet merge --help`: {empty.cpu:.2f} CPU s.")
    if options.large:
        lines += ["", _large(folder, ours_command, extra)]
    return "\n".join(lines) + "\n"


def _make(folder: Path, sizes: dict[str, int]) -> None:
    for seed, name in enumerate(("base", "a", "b")):
        if not (folder / name / "config.json").exists():
            make_llama(folder / name, seed, sizes, None if name == "base" else 0)


def _large(folder: Path, command: list[str], extra: list[str]) -> str:
    large = folder / "large"
    _make(large, LARGE)
    parts = []
    for method in ("linear", "ties"):
        file = large / f"{method}.yml"
        file.write_text(yaml.safe_dump(recipe(method, large)))
        cost = measure([*command, str(file), "-o", str(large / "out"), "--quiet", *extra])
        _clear(large / "out")
        parts.append(f"{method} {cost.cpu:.1f} CPU s, {cost.anonymous / 1e6:.0f} MB anonymous")
    return f"3 B parameters (zeros, for memory): {'; '.join(parts)}."


def _row(method: str, costs: dict[str, list[Cost]]) -> str:
    def middle(side: str, what: str) -> float:
        return float(statistics.median(getattr(cost, what) for cost in costs[side]))

    cells = [f"{middle('ours', 'cpu'):.1f}", f"{middle('ours', 'wall'):.1f}"]
    cells.append(f"{middle('ours', 'anonymous') / 1e6:.0f}")
    if costs["theirs"]:
        ratio = middle("ours", "cpu") / middle("theirs", "cpu")
        cells += [f"{middle('theirs', 'cpu'):.1f}", f"{middle('theirs', 'wall'):.1f}"]
        cells += [f"{middle('theirs', 'anonymous') / 1e6:.0f}", f"{ratio:.2f}"]
    else:
        cells += ["", "", "", ""]
    return f"| {method} | {' | '.join(cells)} | ≤ {TARGETS.get(method, 1):.2f} |"


def _clear(path: Path) -> None:
    import shutil

    if path.exists():
        shutil.rmtree(path)


if __name__ == "__main__":
    sys.exit(main())
