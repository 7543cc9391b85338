"""How deriving a spec scales with depth: CPU seconds, peak memory and the size of the spec.

Models of ``transformers`` with the shapes of Llama 3 70B and Mixtral 8x7B are built on the meta device with 2
to 80 layers, each in a process of its own, and derived. The results go to ``results/benchmark_derive.md``.

    python scripts/benchmark_derive.py
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "benchmark_derive.md"
DEPTHS = (2, 4, 8, 16, 32, 48, 64, 80)
LIMIT_SECONDS, LIMIT_BYTES = 60, 2e9
SHAPES: dict[str, dict[str, Any]] = {
    "Llama 3 70B": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
    "Mixtral 8x7B": {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
}


def measure(shape: str, layers: int) -> dict[str, Any]:
    """Derive one model in this process and return what it cost."""
    from transformers import AutoConfig

    from metanet import spec_of
    from metanet_zoo.huggingface_model import build_model

    settings = dict(SHAPES[shape])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings, num_hidden_layers=layers)
    before = time.process_time()
    built = build_model(config)
    spec = spec_of(built.model, **built.inputs)
    seconds = time.process_time() - before
    return {
        "parameters": spec.num_parameters,
        "operations": len(spec.operations),
        "entries": len(spec.entries),
        "groups": len(spec.groups),
        "actions": len(spec.actions),
        "bits": spec.log2_size(),
        "seconds": seconds,
        "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
        "json": len(spec.to_json()),
        "lost": sorted({lost.operation for lost in spec.lost}),
    }


def table(shape: str, rows: dict[int, dict[str, Any]]) -> list[str]:
    """Return the lines of one model's table."""
    lines = [
        f"## {shape}",
        "",
        "| layers | values | operations | entries | groups | actions | bits | CPU s | s per 1000 operations "
        "| peak MB | JSON MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for layers, row in rows.items():
        lines.append(
            f"| {layers} | {row['parameters'] / 1e9:.2f} G | {row['operations']} | {row['entries']} | "
            f"{row['groups']} | {row['actions']} | {row['bits']:.4g} | {row['seconds']:.2f} | "
            f"{1000 * row['seconds'] / row['operations']:.2f} | {row['bytes'] / 1e6:.0f} | "
            f"{row['json'] / 1e6:.2f} |"
        )
    last = rows[max(rows)]
    kept = last["seconds"] < LIMIT_SECONDS and last["bytes"] < LIMIT_BYTES
    lost = sorted({name for row in rows.values() for name in row["lost"]})
    return [
        *lines,
        "",
        f"Below {LIMIT_SECONDS} s and {LIMIT_BYTES / 1e9:.0f} GB at {max(rows)} layers: "
        f"{'yes' if kept else 'NO'}. Operations that cost a freedom: {', '.join(lost) or 'none'}.",
        "",
    ]


def main() -> None:
    """Measure every shape at every depth and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--one", nargs=2, metavar=("SHAPE", "LAYERS"), help="measure one, print JSON")
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS, help="numbers of layers")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]))))
        return
    import torch
    import transformers

    today = datetime.datetime.now(datetime.UTC).date()
    lines = [
        "# Deriving specs of large models",
        "",
        f"{today}, `python scripts/benchmark_derive.py`; torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Python {platform.python_version()}, {platform.machine()}, one thread. "
        "CPU seconds are of building the model on the meta device and deriving its spec, imports left out; "
        "the peak is the whole process's, imports included.",
        "",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for shape in SHAPES:
        rows = {}
        for layers in options.depths:
            command = [sys.executable, __file__, "--one", shape, str(layers)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode:
                raise SystemExit(f"{shape} with {layers} layers failed:\n{done.stderr[-2000:]}")
            rows[layers] = json.loads(done.stdout.splitlines()[-1])
            print(shape, layers, f"{rows[layers]['seconds']:.2f} s", f"{rows[layers]['bytes'] / 1e6:.0f} MB")
        lines += table(shape, rows)
    options.out.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
