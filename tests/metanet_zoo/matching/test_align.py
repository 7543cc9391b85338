"""Aligning checkpoints in files: elements in files, proofs, held groups, merges of permuted models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from metanet import GroupElement, WeightSpec, spec_of
from metanet.axis import parse_axes
from metanet_zoo import CheckpointError, find_spec, open_checkpoint, save_checkpoint
from metanet_zoo.matching.align import align_sources
from metanet_zoo.matching.element_file import load_element, save_element
from metanet_zoo.matching.many import Method, match_many_checkpoints
from metanet_zoo.matching.proof import prove
from metanet_zoo.matching.run import match_checkpoints
from metanet_zoo.matching.source_tensors import SourceTensors, aligned_source
from metanet_zoo.merging.run import merge_checkpoints
from metanet_zoo.merging.sources import open_model
from tests.models import ARCHITECTURES

STREAM = """\
groups   stream: 6   f: 8   h: 4   v: 3 under h
embed    20 stream
up       f stream
down     stream f
value    (h v) stream
out      stream (h v)
"""


def random_weights(spec: WeightSpec, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in spec.shapes.items()}


def write_mlp(path: Path, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    state = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2))
    save_checkpoint(path, state.state_dict())
    return {name: tensor.clone() for name, tensor in state.state_dict().items()}


def with_axes(spec: WeightSpec, name: str, axes: str) -> WeightSpec:
    """A spec with one entry's axes changed, and no actions."""
    entries = tuple((key, parse_axes(axes) if key == name else old) for key, old in spec.entries)
    return WeightSpec(spec.groups, entries)


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ["siren", "vit_small", "resnet_small", "lstm_lm"])
def test_elements_survive_their_file(tmp_path: Path, name: str) -> None:
    factory, inputs = ARCHITECTURES[name]
    model = factory()
    spec = spec_of(model, *inputs)
    element = GroupElement.random(spec, torch.Generator().manual_seed(0), kinds="all")
    save_element(tmp_path / "g.safetensors", element, {"gain": 0.5})
    found, facts = load_element(tmp_path / "g.safetensors")
    assert found.allclose(element)
    assert facts == {"gain": 0.5}
    before, after = element @ model.state_dict(), found @ model.state_dict()
    assert equal(before, after)


def test_the_identity_has_a_file_and_other_files_are_refused(tmp_path: Path) -> None:
    spec = WeightSpec.parse(STREAM)
    save_element(tmp_path / "g.safetensors", GroupElement.identity(spec))
    assert load_element(tmp_path / "g.safetensors")[0].allclose(GroupElement.identity(spec))
    write_mlp(tmp_path / "a.safetensors", 0)
    with pytest.raises(CheckpointError, match="expected a group element"):
        load_element(tmp_path / "a.safetensors")


def test_a_stream_that_does_not_fit_is_held_and_the_rest_is_found(tmp_path: Path) -> None:
    spec = WeightSpec.parse(STREAM)
    b = random_weights(spec, 0)
    planted = GroupElement.random(spec, torch.Generator().manual_seed(1)).without("stream")
    for name, state in (("a", planted @ b), ("b", b)):
        save_checkpoint(tmp_path / f"{name}.safetensors", state)
    sources = [open_model(str(tmp_path / f"{name}.safetensors")).source for name in "ab"]
    found = align_sources(spec, *sources, max_memory=4000)
    assert found.held == ("stream",)
    assert found.element.allclose(planted)
    assert sum(found.starts.values()) == 2
    assert not align_sources(spec, *sources, max_memory=4000, free=["stream"]).held
    moved = SourceTensors(aligned_source(sources[1], found.element))
    assert equal(planted @ b, moved)


def test_small_gains_leave_the_model_alone(tmp_path: Path) -> None:
    state = write_mlp(tmp_path / "a.safetensors", 0)
    near = {name: x + 0.01 * torch.randn_like(x) for name, x in state.items()}
    save_checkpoint(tmp_path / "b.safetensors", near)
    report = match_checkpoints(
        str(tmp_path / "a.safetensors"),
        str(tmp_path / "b.safetensors"),
        activation="relu",
        out=tmp_path / "out.safetensors",
    )
    assert not report.alignment.used
    assert equal(near, open_checkpoint(tmp_path / "out.safetensors"))


def test_an_aligned_checkpoint_is_proven_and_written(tmp_path: Path) -> None:
    state = write_mlp(tmp_path / "b.safetensors", 0)
    spec = find_spec(str(tmp_path / "b.safetensors"), activation="relu").spec
    planted = GroupElement.random(spec, torch.Generator().manual_seed(1))
    save_checkpoint(tmp_path / "a.safetensors", planted @ state)
    report = match_checkpoints(
        str(tmp_path / "a.safetensors"),
        str(tmp_path / "b.safetensors"),
        activation="relu",
        element_file=tmp_path / "g.safetensors",
        out=tmp_path / "out.safetensors",
    )
    assert report.proof.proven
    assert report.alignment.after == 0.0
    assert equal(planted @ state, open_checkpoint(tmp_path / "out.safetensors"))
    assert load_element(tmp_path / "g.safetensors")[0].allclose(planted)
    json.dumps(report.to_dict())
    with pytest.raises(FileExistsError, match="overwrite"):
        match_checkpoints(
            str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), out=tmp_path / "out.safetensors"
        )


def test_a_wrong_element_is_refuted(tmp_path: Path) -> None:
    write_mlp(tmp_path / "a.safetensors", 0)
    found = find_spec(str(tmp_path / "a.safetensors"), activation="relu")
    source = open_model(str(tmp_path / "a.safetensors")).source
    good = GroupElement.random(found.spec, torch.Generator().manual_seed(1))
    assert prove(found, source, good).proven is True
    wrong = with_axes(found.spec, "2.bias", "16" if found.spec.shapes["2.bias"] == (16,) else "12")
    assert prove(found, source, GroupElement(wrong, good.permutations, {})).proven is False


def test_models_of_other_architectures_are_refused(tmp_path: Path) -> None:
    write_mlp(tmp_path / "a.safetensors", 0)
    save_checkpoint(tmp_path / "b.safetensors", nn.Sequential(nn.Linear(3, 2)).state_dict())
    with pytest.raises(CheckpointError, match="other model does not fit"):
        match_checkpoints(str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"))


def test_a_llama_merged_with_its_permuted_self_keeps_its_weights(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=40,
        architectures=["LlamaForCausalLM"],
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        config.save_pretrained(tmp_path / folder)
    state = {name: tensor.bfloat16() for name, tensor in model.state_dict().items()}
    save_checkpoint(tmp_path / "a/model.safetensors", state)
    spec = find_spec(tmp_path / "a", cache=False).spec
    planted = GroupElement.random(spec, torch.Generator().manual_seed(1))
    save_checkpoint(tmp_path / "b/model.safetensors", planted @ state)
    recipe = {
        "models": [{"model": str(tmp_path / name)} for name in "ab"],
        "merge_method": "linear",
        "parameters": {"weight": 0.5},
    }
    report = merge_checkpoints({**recipe, "align": "weights"}, tmp_path / "merged")
    assert any("aligned to" in note for note in report.notes)
    assert equal(state, open_checkpoint(tmp_path / "merged"))
    merge_checkpoints(recipe, tmp_path / "naive")
    assert not equal(state, open_checkpoint(tmp_path / "naive"))
    match = match_checkpoints(
        str(tmp_path / "a"), str(tmp_path / "b"), element_file=tmp_path / "g.safetensors"
    )
    assert match.proof.proven
    files = {str(tmp_path / "b"): str(tmp_path / "g.safetensors")}
    merge_checkpoints({**recipe, "align": files}, tmp_path / "again")
    assert equal(state, open_checkpoint(tmp_path / "again"))


def test_large_models_are_proven_layer_by_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr("metanet_zoo.matching.proof.MAX_VALUES", 1000)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
        architectures=["LlamaForCausalLM"],
    )
    torch.manual_seed(0)
    config.save_pretrained(tmp_path)
    state = transformers.LlamaForCausalLM(config).state_dict()
    save_checkpoint(tmp_path / "model.safetensors", state)
    found = find_spec(tmp_path, cache=False)
    source = open_model(str(tmp_path)).source
    element = GroupElement.random(found.spec, torch.Generator().manual_seed(1))
    proof = prove(found, source, element)
    assert proof.proven is True
    assert "3 layers one by one" in proof.how
    wrong = with_axes(found.spec, "model.layers.2.mlp.down_proj.weight", "model.embed_tokens 24")
    assert prove(found, source, GroupElement(wrong, element.permutations, {})).proven is False


@pytest.mark.parametrize("method", ["cycle-consistent", "merge-many"])
def test_three_models_meet_in_a_common_order(tmp_path: Path, method: Method) -> None:
    state = write_mlp(tmp_path / "0.safetensors", 0)
    spec = find_spec(str(tmp_path / "0.safetensors"), activation="relu").spec
    for seed in (1, 2):
        planted = GroupElement.random(spec, torch.Generator().manual_seed(seed))
        save_checkpoint(tmp_path / f"{seed}.safetensors", planted @ state)
    models = [str(tmp_path / f"{seed}.safetensors") for seed in range(3)]
    report = match_many_checkpoints(
        models, method=method, activation="relu", elements=tmp_path / "elements", out=tmp_path / "out"
    )
    assert report.before > 1.0
    assert report.after == pytest.approx(0.0, abs=1e-8)
    outputs = [open_checkpoint(path) for path in report.outputs]
    assert equal(outputs[0], outputs[1])
    assert equal(outputs[0], outputs[2])
    element, facts = load_element(report.elements[2])
    assert equal(element @ open_checkpoint(models[2]), outputs[2])
    assert facts["model"] == models[2]
    with pytest.raises(FileExistsError, match="overwrite"):
        match_many_checkpoints(models, out=tmp_path / "out")
