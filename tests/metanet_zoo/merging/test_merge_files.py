"""Merging files: what is written, from which inputs, and what is refused before any work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from metanet.merging.recipe import RecipeError
from metanet_zoo.errors import CheckpointError
from metanet_zoo.merging import workspace
from metanet_zoo.merging.report import MergeReport
from metanet_zoo.merging.run import merge_checkpoints

LAYERS = 3
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": LAYERS,
    "vocab_size": 10,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def llama_tensors(seed: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (10, 8)}
    for layer in range(LAYERS):
        shapes[f"model.layers.{layer}.mlp.up_proj.weight"] = (12, 8)
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = (8,)
    shapes |= {"model.norm.weight": (8,), "lm_head.weight": (10, 8)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def write_model(
    folder: Path, tensors: Mapping[str, Tensor], *, shards: int = 1, config: Mapping[str, Any] | None = CONFIG
) -> Path:
    """Write a checkpoint as the hub has them, in one file or several."""
    folder.mkdir(parents=True)
    names = list(tensors)
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", {"format": "pt"})
    else:
        weight_map: dict[str, str] = {}
        for i in range(shards):
            file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
            save_file({name: tensors[name] for name in names[i::shards]}, folder / file)
            weight_map |= dict.fromkeys(names[i::shards], file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"max_length": 7}')
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    (folder / "tokenizer.json").write_text("{}")
    return folder


def read_model(folder: Path) -> dict[str, Tensor]:
    if folder.is_file():
        return load_file(folder)
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    return {
        "base": write_model(tmp_path / "base", llama_tensors(0)),
        "a": write_model(tmp_path / "a", llama_tensors(1), shards=2),
        "b": write_model(tmp_path / "b", llama_tensors(2), shards=3),
    }


def linear(models: Mapping[str, Path], *names: str, **more: Any) -> dict[str, Any]:
    listed = [{"model": str(models[name])} for name in names or ("a", "b")]
    return {"merge_method": "linear", "models": listed, "parameters": {"weight": 1.0}, **more}


def ties(models: Mapping[str, Path], **more: Any) -> dict[str, Any]:
    parameters = {"weight": 1.0, "density": 0.5}
    return linear(models) | {
        "merge_method": "dare_ties",
        "base_model": str(models["base"]),
        "parameters": parameters,
        **more,
    }


def test_a_folder_is_written_whole(models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    seen: list[tuple[str, int, int]] = []
    report = merge_checkpoints(
        linear(models), out, max_shard_size=400, hash_inputs=True, progress=lambda *what: seen.append(what)
    )
    a, b = read_model(models["a"]), read_model(models["b"])
    merged = read_model(out)
    assert merged.keys() == a.keys()
    for name, tensor in merged.items():
        assert torch.equal(tensor, ((a[name].float() + b[name].float()) / 2).bfloat16())
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(2 * t.numel() for t in merged.values())
    for name, file in index["weight_map"].items():
        with safe_open(out / file, framework="pt") as handle:
            assert name in handle.keys()  # noqa: SIM118
            recorded = json.loads(handle.metadata()["metanet_merge"])
            assert handle.metadata()["format"] == "pt"
    assert "merge_method: linear" in recorded["recipe"]
    assert recorded["metanet"]
    assert max(file.stat().st_size for file in out.glob("*.safetensors")) < 400 + 1000
    assert json.loads((out / "config.json").read_text()) == CONFIG
    for file in ("generation_config.json", "tokenizer_config.json", "tokenizer.json"):
        assert (out / file).read_bytes() == (models["a"] / file).read_bytes()
    card = (out / "README.md").read_text()
    shard = models["a"] / "model-00001-of-00002.safetensors"
    assert hashlib.sha256(shard.read_bytes()).hexdigest() in card
    assert "merge_method: linear" in card
    assert {file.name for file in out.iterdir()}.isdisjoint({"lock", "journal.jsonl"})
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert seen[-1][1] == seen[-1][2] == index["metadata"]["total_size"]
    assert report.tensors == len(merged)
    assert report.parameters == sum(t.numel() for t in merged.values())


def test_threads_shards_and_runs_do_not_change_a_bit(models: dict[str, Path], tmp_path: Path) -> None:
    merge_checkpoints(ties(models), tmp_path / "one", threads=1)
    merge_checkpoints(ties(models), tmp_path / "many", threads=3, max_shard_size=200)
    merge_checkpoints(ties(models), tmp_path / "again", threads=1)
    merge_checkpoints(ties(models), tmp_path / "other", seed=1)
    one, many = read_model(tmp_path / "one"), read_model(tmp_path / "many")
    assert all(torch.equal(one[name], many[name]) for name in one)
    file = "model.safetensors"
    assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert any(not torch.equal(one[name], t) for name, t in read_model(tmp_path / "other").items())


def test_gradients_and_filters_reach_their_tensors(models: dict[str, Path], tmp_path: Path) -> None:
    weights = [[{"filter": "norm", "value": 1}, {"value": [0, 1]}], 1]
    listed = [
        {"model": str(models[name]), "parameters": {"weight": weight}}
        for name, weight in zip("ab", weights, strict=True)
    ]
    merge_checkpoints({"merge_method": "linear", "models": listed, "dtype": "float32"}, tmp_path / "out")
    merged, a, b = read_model(tmp_path / "out"), read_model(models["a"]), read_model(models["b"])
    expected = {
        "model.norm.weight": 0.5,
        "model.layers.0.mlp.up_proj.weight": 0.0,
        "model.layers.1.mlp.up_proj.weight": 1 / 3,
        "model.layers.2.mlp.up_proj.weight": 0.5,
        "lm_head.weight": 0.0,
    }
    for name, share in expected.items():
        wanted = share * a[name].float() + (1 - share) * b[name].float()
        torch.testing.assert_close(merged[name], wanted)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float32"


def test_slices_stack_layers(models: dict[str, Path], tmp_path: Path) -> None:
    recipe = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [{"model": str(models["a"]), "layer_range": [0, 2]}]},
            {"sources": [{"model": str(models["b"]), "layer_range": [1, 3], "parameters": {"scale": 2}}]},
        ],
    }
    merge_checkpoints(recipe, tmp_path / "out")
    merged, a, b = read_model(tmp_path / "out"), read_model(models["a"]), read_model(models["b"])
    up = "model.layers.{}.mlp.up_proj.weight"
    for i, wanted in enumerate([a[up.format(0)], a[up.format(1)], 2 * b[up.format(1)], 2 * b[up.format(2)]]):
        assert torch.equal(merged[up.format(i)], wanted)
    assert torch.equal(merged["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    assert torch.equal(merged["lm_head.weight"], 2 * b["lm_head.weight"])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 4
    recipe["slices"][0]["sources"][0]["layer_range"] = [0, 9]  # type: ignore[index]
    with pytest.raises(RecipeError, match="reaches beyond its 3 layers"):
        merge_checkpoints(recipe, tmp_path / "other")


def test_importances_come_from_checkpoints_of_their_own(models: dict[str, Path], tmp_path: Path) -> None:
    recipe = linear(models) | {"merge_method": "fisher"}
    with pytest.raises(RecipeError, match=r"fisher needs importances of .*a; name their checkpoint"):
        merge_checkpoints(recipe, tmp_path / "out")
    for i, (entry, value) in enumerate(zip(recipe["models"], (3.0, 1.0), strict=True)):
        tensors = {name: torch.full_like(t, value) for name, t in llama_tensors(0).items()}
        save_file(tensors, tmp_path / f"fisher{i}.safetensors")
        entry["importance"] = str(tmp_path / f"fisher{i}.safetensors")
    merge_checkpoints(recipe | {"dtype": "float32"}, tmp_path / "out")
    merged, a, b = read_model(tmp_path / "out"), read_model(models["a"]), read_model(models["b"])
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, (3 * a[name].float() + b[name].float()) / 4)
    with pytest.raises(RecipeError, match="linear takes none; fisher and regmean do"):
        merge_checkpoints(recipe | {"merge_method": "linear"}, tmp_path / "other")


def test_mixed_dtypes_are_merged_exactly(tmp_path: Path) -> None:
    models = {}
    for name, dtype in [
        ("a", torch.bfloat16),
        ("b", torch.float16),
        ("c", torch.float32),
        ("d", torch.float64),
    ]:
        models[name] = write_model(tmp_path / name, llama_tensors(ord(name), dtype))
    merge_checkpoints(linear(models, "a", "b", "c", "d", out_dtype="float64"), tmp_path / "out")
    merged = read_model(tmp_path / "out")
    inputs = [read_model(models[name]) for name in "abcd"]
    for name, tensor in merged.items():
        wanted = torch.stack([tensors[name].double() for tensors in inputs]).mean(0)
        torch.testing.assert_close(tensor, wanted, rtol=1e-15, atol=1e-16)


def test_torch_files_and_counters(tmp_path: Path) -> None:
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)) for _ in range(2)]
    for i, net in enumerate(nets):
        net.state_dict()["1.num_batches_tracked"].fill_(10 * (i + 1))
        torch.save({"state_dict": net.state_dict(), "epoch": i}, tmp_path / f"{i}.pt")
    paths = {str(i): tmp_path / f"{i}.pt" for i in range(2)}
    report = merge_checkpoints(linear(paths, "0", "1"), tmp_path / "out.safetensors")
    merged = load_file(tmp_path / "out.safetensors")
    assert merged["1.num_batches_tracked"] == 20
    first, second = (net.state_dict() for net in nets)
    torch.testing.assert_close(merged["0.weight"], (first["0.weight"] + second["0.weight"]) / 2)
    assert list(report.files) == ["model.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.pt", "1.pt", "out.safetensors"]


def test_integers_that_differ_are_refused(tmp_path: Path) -> None:
    for i in range(2):
        save_file({"w": torch.ones(2), "ids": torch.tensor([i])}, tmp_path / f"{i}.safetensors")
    paths = {str(i): tmp_path / f"{i}.safetensors" for i in range(2)}
    with pytest.raises(CheckpointError, match="'ids' is of I64 and differs"):
        merge_checkpoints(linear(paths, "0", "1"), tmp_path / "out.safetensors")


def test_tied_heads_are_filled_in(models: dict[str, Path], tmp_path: Path) -> None:
    tensors = llama_tensors(5)
    del tensors["lm_head.weight"]
    models["tied"] = write_model(tmp_path / "tied", tensors, config=CONFIG | {"tie_word_embeddings": True})
    merge_checkpoints(linear(models, "tied", "a"), tmp_path / "out")
    merged, a = read_model(tmp_path / "out"), read_model(models["a"])
    wanted = (tensors["model.embed_tokens.weight"].float() + a["lm_head.weight"].float()) / 2
    assert torch.equal(merged["lm_head.weight"], wanted.bfloat16())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False


def test_missing_tensors_are_refused_dropped_or_kept(models: dict[str, Path], tmp_path: Path) -> None:
    tensors = llama_tensors(5) | {"extra.weight": torch.ones(2, dtype=torch.bfloat16)}
    models["more"] = write_model(tmp_path / "more", tensors)
    with pytest.raises(CheckpointError, match=r"'extra.weight' is missing in .*a and present"):
        merge_checkpoints(linear(models, "a", "more"), tmp_path / "out")
    report = merge_checkpoints(linear(models, "a", "more"), tmp_path / "dropped", missing="drop")
    assert "extra.weight" not in read_model(tmp_path / "dropped")
    assert any("left out extra.weight" in note for note in report.notes)
    merge_checkpoints(linear(models, "a", "more"), tmp_path / "kept", missing="keep")
    assert torch.equal(read_model(tmp_path / "kept")["extra.weight"], tensors["extra.weight"])


def test_shapes_are_compared_before_any_work(models: dict[str, Path], tmp_path: Path) -> None:
    tensors = llama_tensors(5)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:9].contiguous()
    models["short"] = write_model(tmp_path / "short", tensors)
    with pytest.raises(CheckpointError, match=r"\[10, 8\] in .*; \[9, 8\] in .*the vocabularies differ"):
        merge_checkpoints(linear(models, "a", "short"), tmp_path / "out")
    assert not workspace.work_folder(tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merge_method": "liner"}, "no merge method 'liner'; did you mean 'linear'"),
        ({"parameters": {"wight": 1}}, "linear has no parameter 'wight'; did you mean 'weight'"),
        ({"parameters": {}}, "linear needs weight of .*a for lm_head.weight"),
        ({"merge_method": "ties"}, "ties needs a base_model"),
        ({"merge_method": "passthrough", "parameters": {}}, "passthrough merges 1 models; found 2"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(
    models: dict[str, Path], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        merge_checkpoints(linear(models) | change, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_out_of_range_and_misplaced_parameters(models: dict[str, Path], tmp_path: Path) -> None:
    recipe = ties(models)
    recipe["parameters"] = {"weight": 1, "density": 1.5}
    with pytest.raises(RecipeError, match=r"density: found 1\.5, expected a number from 0 to 1"):
        merge_checkpoints(recipe, tmp_path / "out")
    recipe = ties(models)
    recipe["models"][0]["parameters"] = {"lambda": 2}
    with pytest.raises(RecipeError, match="lambda is one for the whole merge"):
        merge_checkpoints(recipe, tmp_path / "out")


def test_a_dry_run_writes_nothing(models: dict[str, Path], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    report = merge_checkpoints(ties(models), tmp_path / "out", dry_run=True, threads=2)
    assert sorted(tmp_path.rglob("*")) == before
    assert report.dry
    assert report.seconds > 0
    done = merge_checkpoints(ties(models), tmp_path / "out", threads=2)
    assert done.files == report.files
    assert {name: (tmp_path / "out" / name).stat().st_size for name in done.files} == done.files


def test_memory_is_kept_below_what_is_allowed(models: dict[str, Path], tmp_path: Path) -> None:
    def run(memory: int) -> MergeReport:
        return merge_checkpoints(ties(models), tmp_path / "out", dry_run=True, threads=4, max_memory=memory)

    assert run(10**9).threads == 4
    small = run(105_000_000)
    assert small.threads < 4
    assert small.memory <= 105_000_000
    with pytest.raises(ValueError, match="with one thread"):
        run(10**6)


def test_an_older_output_is_replaced_only_when_asked(models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge_checkpoints(linear(models), out)
    with pytest.raises(FileExistsError, match="--overwrite"):
        merge_checkpoints(linear(models), out)
    (out / "stale.txt").write_text("old")
    with pytest.raises(FileExistsError, match="no output of a merge"):
        merge_checkpoints(linear(models, "a"), models["b"], overwrite=True)
    merge_checkpoints(linear(models, "a"), out, overwrite=True)
    assert not (out / "stale.txt").exists()
    a = read_model(models["a"])
    assert all(torch.equal(t, a[name]) for name, t in read_model(out).items())
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_chat_templates(models: dict[str, Path], tmp_path: Path) -> None:
    (models["b"] / "tokenizer_config.json").write_text('{"chat_template": "{{ b }}"}')
    for i, (given, expected) in enumerate(
        [("auto", "{{ b }}"), ("{{ mine }}", "{{ mine }}"), ("chatml", "<|im_start|>")]
    ):
        merge_checkpoints(linear(models, chat_template=given), tmp_path / f"out{i}")
        written = json.loads((tmp_path / f"out{i}" / "tokenizer_config.json").read_text())
        assert expected in written["chat_template"]
    with pytest.raises(CheckpointError, match="no chat template 'chatmll'"):
        merge_checkpoints(linear(models, chat_template="chatmll"), tmp_path / "x")
