"""Does a merge give what mergekit gives? Every method on small Llama checkpoints, by both, compared.

    python scripts/merge_parity.py --mergekit PYTHON [--out results.md]

PYTHON is the interpreter of an environment that has mergekit 0.1.5 (``pip install mergekit==0.1.5``); it is
run as a process of its own and never imported here. Deterministic methods must agree to the rounding of the
output's dtype, computed as mergekit computes (``--compat mergekit``); random ones in what they keep and how
they scale it. In bf16, mergekit rounds after every step and we once at the end: that is in the tolerance, and
where it decides which elements are kept the case says so.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import numpy as np

from metanet.merging.floats import Floats, decode
from metanet_zoo.merging.run import merge_checkpoints
from metanet_zoo.merging.shards import lay_out
from metanet_zoo.merging.sources import Entry, SafetensorsSource, open_model

LAYERS, WIDTH, INNER, VOCABULARY = 3, 32, 48, 64

DRIVER = """
import json, sys, traceback
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
for name, recipe, out in json.load(open(sys.argv[1])):
    try:
        run_merge(MergeConfiguration.model_validate(recipe), out, MergeOptions(quiet=True, random_seed=0))
    except BaseException as error:
        traceback.print_exc()
        print("failed", name, type(error).__name__, str(error)[:200])
"""


TIES = (
    "Of equal bf16 magnitudes at the threshold we keep the first, mergekit those its sort leaves; the number "
    "kept is the same"
)
IMPORTANCE = "mergekit takes softmax, divergence and quantiles in bf16, we in float32"


@dataclass(frozen=True, slots=True)
class Case:
    """One recipe to run by both.

    Args:
        name: of the case.
        recipe: without models' paths: ``A``, ``B``, ``C`` and ``BASE`` stand for them.
        kind: ``exact`` to compare values, ``random`` to compare statistics.
        departure: why the results differ on purpose, where they do.
    """

    name: str
    recipe: Mapping[str, Any]
    kind: Literal["exact", "random"] = "exact"
    departure: str = ""


def _models(*weights: float, names: str = "ABC", **each: list[Any]) -> list[dict[str, Any]]:
    models = []
    for i, weight in enumerate(weights):
        parameters: dict[str, Any] = {"weight": weight} if weight else {}
        parameters |= {key: values[i] for key, values in each.items()}
        models.append({"model": names[i], "parameters": parameters} if parameters else {"model": names[i]})
    return models


def _family(method: str, **parameters: Any) -> dict[str, Any]:
    return {
        "merge_method": method,
        "base_model": "BASE",
        "models": _models(0.6, 0.9, density=[0.5, 0.7]) if "arithmetic" not in method else _models(0.6, 0.9),
        "parameters": parameters,
    }


def _pair(method: str, **parameters: Any) -> dict[str, Any]:
    return {
        "merge_method": method,
        "base_model": "A",
        "models": [{"model": "A"}, {"model": "B"}],
        "parameters": parameters,
    }


CASES = (
    Case("linear", {"merge_method": "linear", "models": _models(0.3, 0.9)}),
    Case(
        "linear, not normalized",
        {"merge_method": "linear", "models": _models(0.3, 0.9), "parameters": {"normalize": False}},
    ),
    Case(
        "linear, gradient and filters",
        {
            "merge_method": "linear",
            "models": [
                {"model": "A", "parameters": {"weight": [0.1, 0.9, 0.3]}},
                {
                    "model": "B",
                    "parameters": {"weight": [{"filter": "mlp", "value": [0, 1]}, {"value": 0.25}]},
                },
            ],
        },
    ),
    Case("slerp", _pair("slerp", t=0.3)),
    Case("slerp, gradient", _pair("slerp", t=[0, 0.5, 1])),
    Case("nuslerp", {"merge_method": "nuslerp", "models": _models(0.3, 0.9)}),
    Case(
        "nuslerp, task vectors",
        {"merge_method": "nuslerp", "base_model": "BASE", "models": _models(0.3, 0.9)},
    ),
    Case(
        "nuslerp, rows",
        {
            "merge_method": "nuslerp",
            "models": _models(0.3, 0.9),
            "parameters": {"nuslerp_flatten": False, "nuslerp_row_wise": True},
        },
    ),
    Case(
        "nuslerp, columns",
        {
            "merge_method": "nuslerp",
            "models": _models(0.3, 0.9),
            "parameters": {"nuslerp_flatten": False, "nuslerp_row_wise": False},
        },
    ),
    Case("multislerp", {"merge_method": "multislerp", "models": _models(0.3, 0.9, 0.5)}),
    Case(
        "multislerp, task vectors",
        {"merge_method": "multislerp", "base_model": "BASE", "models": _models(0.3, 0.9, 0.5)},
    ),
    Case("karcher", {"merge_method": "karcher", "models": _models(0, 0, 0)}),
    Case(
        "passthrough, slices",
        {
            "merge_method": "passthrough",
            "slices": [
                {"sources": [{"model": "A", "layer_range": [0, 2]}]},
                {"sources": [{"model": "B", "layer_range": [1, 3]}]},
            ],
        },
    ),
    Case(
        "linear, slices with gradients",
        {
            "merge_method": "linear",
            "slices": [
                {
                    "sources": [
                        {"model": "A", "layer_range": [0, 2], "parameters": {"weight": [0, 1]}},
                        {"model": "B", "layer_range": [1, 3], "parameters": {"weight": 0.5}},
                    ]
                },
                {
                    "sources": [
                        {"model": "A", "layer_range": [1, 3], "parameters": {"weight": 1}},
                        {"model": "B", "layer_range": [0, 2], "parameters": {"weight": [1, 0.5]}},
                    ]
                },
            ],
        },
    ),
    Case("model_stock", {"merge_method": "model_stock", "base_model": "BASE", "models": _models(0, 0, 0)}),
    Case(
        "model_stock, filter_wise",
        {
            "merge_method": "model_stock",
            "base_model": "BASE",
            "models": _models(0, 0, 0),
            "parameters": {"filter_wise": True},
        },
    ),
    Case("arcee_fusion", _pair("arcee_fusion"), departure=IMPORTANCE),
    Case("nearswap", _pair("nearswap", t=0.01)),
    Case("sce", {"merge_method": "sce", "base_model": "BASE", "models": _models(0, 0, 0)}),
    Case(
        "sce, select_topk",
        {
            "merge_method": "sce",
            "base_model": "BASE",
            "models": _models(0, 0, 0),
            "parameters": {"select_topk": 0.4},
        },
        departure=TIES,
    ),
    Case("ram", {"merge_method": "ram", "base_model": "BASE", "models": _models(0, 0, 0)}),
    Case("ramplus_tl", {"merge_method": "ramplus_tl", "base_model": "BASE", "models": _models(0, 0, 0)}),
    Case("task_arithmetic", _family("task_arithmetic", **{"lambda": 0.8})),
    Case("task_arithmetic, normalized", _family("task_arithmetic", normalize=True)),
    Case("ties", _family("ties", **{"lambda": 0.8}), departure=TIES),
    Case("ties, not normalized", _family("ties", normalize=False), departure=TIES),
    Case("breadcrumbs", _family("breadcrumbs", gamma=0.05), departure=TIES),
    Case("breadcrumbs_ties", _family("breadcrumbs_ties", gamma=0.05), departure=TIES),
    Case("dare_linear", _family("dare_linear"), "random"),
    Case("dare_linear, not rescaled", _family("dare_linear", rescale=False), "random"),
    Case("dare_ties", _family("dare_ties"), "random"),
    Case("della", _family("della", epsilon=0.2), "random"),
    Case("della_linear", _family("della_linear", epsilon=0.2), "random"),
)


def make_llama(folder: Path, seed: int, *, base: int | None = None, dtype: str = "BF16") -> None:
    """Write a small random Llama checkpoint, near another one if ``base`` is its seed."""
    folder.mkdir(parents=True)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "self_attn.q_proj.weight": (WIDTH, WIDTH),
            prefix + "self_attn.k_proj.weight": (WIDTH // 2, WIDTH),
            prefix + "self_attn.v_proj.weight": (WIDTH // 2, WIDTH),
            prefix + "self_attn.o_proj.weight": (WIDTH, WIDTH),
            prefix + "mlp.gate_proj.weight": (INNER, WIDTH),
            prefix + "mlp.up_proj.weight": (INNER, WIDTH),
            prefix + "mlp.down_proj.weight": (WIDTH, INNER),
            prefix + "input_layernorm.weight": (WIDTH,),
            prefix + "post_attention_layernorm.weight": (WIDTH,),
        }
    shapes |= {"model.norm.weight": (WIDTH,), "lm_head.weight": (VOCABULARY, WIDTH)}
    layout = lay_out({name: Entry(dtype, shape) for name, shape in shapes.items()}, {"format": "pt"}, 1 << 40)
    [file] = layout.headers
    content = bytearray(layout.sizes[file])
    content[: len(layout.headers[file])] = layout.headers[file]
    from metanet.merging.floats import encode

    for number, (name, place) in enumerate(layout.places.items()):
        size = place.entry.size
        values = np.random.default_rng([seed if base is None else base, number]).normal(0, 0.1, size)
        if base is not None:
            values += np.random.default_rng([seed, number]).normal(0, 0.02, size)
        if len(shapes[name]) == 1:
            values += 1
        raw = np.empty(size * place.entry.item_size, np.uint8)
        encode(values.astype(np.float32), dtype, raw)
        content[place.offset : place.offset + raw.size] = raw.tobytes()
    (folder / file).write_bytes(content)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "torch_dtype": {"BF16": "bfloat16", "F32": "float32"}[dtype],
    }
    (folder / "config.json").write_text(json.dumps(config))


def tensors(folder: Path) -> dict[str, Floats]:
    """Read a checkpoint's tensors as float32."""
    source = open_model(str(folder)).source
    assert isinstance(source, SafetensorsSource)
    result: dict[str, Floats] = {}
    for name, entry in source.entries().items():
        raw = np.empty(entry.size * entry.item_size, np.uint8)
        source.read(name, 0, entry.size, raw)
        result[name] = np.empty(entry.size, np.float32)
        decode(raw, entry.dtype, result[name])
    source.close()
    return result


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one case came out: the worst error in units of the output's rounding, or a statistic of both."""

    case: Case
    dtype: str
    equal: float
    worst: float
    within: bool
    note: str = ""


def compare(case: Case, dtype: str, ours: Path, theirs: Path, base: Path) -> Outcome:
    """Compare two outputs."""
    mine, other = tensors(ours), tensors(theirs)
    if mine.keys() != other.keys():
        return Outcome(
            case, dtype, 0, np.inf, False, f"names differ: {sorted(mine.keys() ^ other.keys())[:3]}"
        )
    a = np.concatenate([mine[name] for name in mine])
    b = np.concatenate([other[name] for name in mine])
    if case.kind == "random":
        start = tensors(base)
        return _compare_random(case, dtype, a, b, np.concatenate([start[name] for name in mine]))
    # Units in the last place of the output's dtype at the larger magnitude, or at the weights' typical one:
    # intermediate roundings are of that size.
    scale = np.maximum(np.maximum(np.abs(a), np.abs(b)), 0.1) * (2**-8 if dtype == "BF16" else 2**-23)
    error = np.abs(a - b) / scale
    share = float(np.mean(error > 4))
    # An element that ties with its tensor's threshold, or whose signs cancel, may fall on the other side.
    within = share <= 0.003
    return Outcome(
        case,
        dtype,
        float(np.mean(a == b)),
        float(error.max()),
        within,
        f"{100 * share:.2f} % differ by more than 4",
    )


def _compare_random(case: Case, dtype: str, a: Floats, b: Floats, base: Floats) -> Outcome:
    change_a, change_b = (a - base).astype(np.float64), (b - base).astype(np.float64)
    stats = [
        (np.mean(change == 0), np.mean(change), np.std(change), np.mean(np.abs(change)))
        for change in (change_a, change_b)
    ]
    (zero_a, mean_a, std_a, abs_a), (zero_b, mean_b, std_b, abs_b) = stats
    error = 4 * float(std_b) / np.sqrt(a.size)
    within = (
        abs(zero_a - zero_b) < 4 * np.sqrt(0.5 / a.size) + 0.002
        and abs(mean_a - mean_b) < 2 * error
        and abs(std_a / std_b - 1) < 0.03
        and abs(abs_a / abs_b - 1) < 0.03
    )
    note = (
        f"unchanged {zero_a:.3f}/{zero_b:.3f}, std {std_a:.4f}/{std_b:.4f}, mean size {abs_a:.4f}/{abs_b:.4f}"
    )
    return Outcome(case, dtype, float(np.mean(a == b)), float(abs(std_a / std_b - 1)), bool(within), note)


def run(python: str, folder: Path, cases: tuple[Case, ...] = CASES) -> list[Outcome]:
    """Run all cases by both, in bf16 and float32."""
    jobs, outcomes = [], []
    for dtype in ("BF16", "F32"):
        places = {name: folder / dtype / name for name in ("A", "B", "C", "BASE")}
        make_llama(places["BASE"], 0, dtype=dtype)
        for seed, name in enumerate("ABC", 1):
            make_llama(places[name], seed, base=0, dtype=dtype)
        for i, case in enumerate(cases):
            recipe = _filled(case.recipe, places) | {"dtype": {"BF16": "bfloat16", "F32": "float32"}[dtype]}
            jobs.append((f"{dtype} {case.name}", recipe, str(folder / f"theirs-{dtype}-{i}")))
            merge_checkpoints(recipe, folder / f"ours-{dtype}-{i}", compat="mergekit", card=False)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    done = subprocess.run(
        [python, "-c", DRIVER, str(folder / "jobs.json")], capture_output=True, text=True, check=False
    )
    failed = {line.split(" ", 1)[1] for line in done.stdout.splitlines() if line.startswith("failed")}
    for dtype in ("BF16", "F32"):
        for i, case in enumerate(cases):
            theirs = folder / f"theirs-{dtype}-{i}"
            if not (theirs / "config.json").exists():
                why = next((line for line in failed if line.startswith(f"{dtype} {case.name} ")), "")
                why = why or done.stderr[-300:]
                outcomes.append(Outcome(case, dtype, 0, np.inf, False, f"mergekit failed: {why}"))
                continue
            base = folder / dtype / str(case.recipe.get("base_model", "A"))
            outcomes.append(compare(case, dtype, folder / f"ours-{dtype}-{i}", theirs, base))
    return outcomes


def _filled(value: Any, places: Mapping[str, Path]) -> Any:
    if isinstance(value, Mapping):
        return {key: _filled(inner, places) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, places) for inner in value]
    return str(places[value]) if isinstance(value, str) and value in places else value


def table(outcomes: list[Outcome]) -> str:
    """Return the outcomes as Markdown."""
    lines = [
        f"# Parity with mergekit 0.1.5 ({date.today()}, {platform.machine()}, NumPy {np.__version__})",
        "",
        "| case | dtype | equal | worst (units of rounding) | within | |",
        "|---|---|---|---|---|---|",
    ]
    for item in outcomes:
        departure = item.case.departure if item.dtype == "BF16" else ""
        verdict = "yes" if item.within else "on purpose" if departure else "NO"
        note = f"{item.note}. {departure}" if departure else item.note
        cells = [item.case.name, item.dtype, f"{100 * item.equal:.2f} %", f"{item.worst:.2f}", verdict, note]
        lines += [f"| {' | '.join(cells)} |"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--mergekit", required=True, metavar="PYTHON", help="interpreter that has mergekit 0.1.5"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = run(options.mergekit, Path(folder))
    text = table(outcomes)
    print(text)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")
    passed = all(item.within or (item.case.departure and item.dtype == "BF16") for item in outcomes)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
