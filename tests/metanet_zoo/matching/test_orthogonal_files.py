"""Turning the residual streams of checkpoints in files, their gains folded first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metanet import GroupElement
from metanet_tasks.cli import main
from metanet_zoo import CheckpointError, find_spec, open_checkpoint, save_checkpoint
from metanet_zoo.matching.element_file import load_element
from metanet_zoo.matching.folded import folding_of
from metanet_zoo.matching.run import match_checkpoints
from metanet_zoo.merging.run import merge_checkpoints
from metanet_zoo.merging.sources import open_model

transformers = pytest.importorskip("transformers")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """Two folders of a Llama with gains: b, and a with b's stream turned and its neurons permuted."""
    torch.manual_seed(0)
    for name in "ab":
        write_config(tmp_path / name, tied=False)
    model = transformers.LlamaForCausalLM(transformers.AutoConfig.from_pretrained(tmp_path / "b"))
    state = {name: tensor + 0.1 * torch.rand_like(tensor) for name, tensor in model.state_dict().items()}
    save_checkpoint(tmp_path / "b/model.safetensors", state)
    folding = folding_of(find_spec(tmp_path / "b", cache=False))
    folding.write(open_model(str(tmp_path / "b")), tmp_path / "folded")
    element = GroupElement.random(folding.found.spec, torch.Generator().manual_seed(1), kinds=["orthogonal"])
    turned = element @ open_checkpoint(tmp_path / "folded").state_dict()
    save_checkpoint(tmp_path / "a/model.safetensors", {k: x.float() for k, x in turned.items()})
    return str(tmp_path / "a"), str(tmp_path / "b")


def write_config(folder: Path, *, tied: bool) -> None:
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=30,
        tie_word_embeddings=tied,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)


def logits(folder: str | Path) -> Tensor:
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        found: Tensor = model(input_ids=torch.arange(8)[None]).logits
    return found


def close(x: Mapping[str, Tensor], y: Mapping[str, Tensor], tolerance: float) -> bool:
    return all(torch.allclose(x[name].float(), y[name].float(), atol=tolerance) for name in x)


def test_a_turned_stream_is_found_and_both_models_are_written_alike(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = pair
    out, folded, element = tmp_path / "out", tmp_path / "reference", tmp_path / "g.safetensors"
    files = ["--out", str(out), "--out-reference", str(folded), "--out-element", str(element)]
    assert main(["match", a, b, "--method", "orthogonal", *files, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["proof"]["proven"] is True
    assert report["after"] < 1e-6 * report["before"]
    assert close(open_checkpoint(folded), open_checkpoint(out), 1e-4)
    assert torch.allclose(logits(out), logits(b), atol=1e-3)
    assert torch.allclose(logits(folded), logits(a), atol=1e-3)
    assert open_checkpoint(out)["model.norm.weight"].dtype == torch.float32
    # The element is for folded models: one that has gains is refused, one that is folded is turned.
    assert "model.norm.weight" in load_element(element)[1]["folded"]
    recipe = {"models": [{"model": b}], "merge_method": "passthrough", "align": {b: str(element)}}
    with pytest.raises(CheckpointError, match=r"gain .* is not one"):
        merge_checkpoints(recipe, tmp_path / "wrong")
    plain = str(tmp_path / "folded")
    recipe = {"models": [{"model": plain}], "merge_method": "passthrough", "align": {plain: str(element)}}
    merge_checkpoints({**recipe, "dtype": "float32"}, tmp_path / "again")
    assert close(open_checkpoint(out), open_checkpoint(tmp_path / "again"), 1e-5)


def test_what_cannot_be_folded_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path / "tied", tied=True)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "tied")
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "tied")
    tied = str(tmp_path / "tied")
    with pytest.raises(ValueError, match="cannot be folded"):
        match_checkpoints(tied, tied, method="orthogonal")
    with pytest.raises(ValueError, match="nothing to write"):
        match_checkpoints(tied, tied, out_reference=tmp_path / "x")
