from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from metanet import WeightSpec
from metanet_tasks.inspection import inspect
from metanet_tasks.reduced_proof import differing, prove_reduced
from metanet_zoo.huggingface_reduced import reduced_config
from metanet_zoo.spec_source import find_spec
from tests.metanet_zoo.huggingface import config_of, save_folder


def test_ratios_kinds_of_layers_and_switches_stay() -> None:
    config = config_of(
        "llama",
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
        attention_bias=True,
    )
    small, text = reduced_config(config)
    assert small.num_attention_heads // small.num_key_value_heads == 8
    assert small.attention_bias
    assert small.architectures == ["LlamaForCausalLM"]
    assert small.num_hidden_layers == 2
    assert "num_hidden_layers 2 of 80" in text
    assert "hidden_size 128 of 8192" in text


@pytest.mark.parametrize("kind", ["llama", "mixtral", "vit"])
def test_a_folder_is_proven_at_a_reduced_size(tmp_path: Path, kind: str) -> None:
    settings = (
        {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 12}
        if kind == "llama"
        else {}
    )
    found = find_spec(save_folder(tmp_path, kind, **settings), cache=False)
    proof, notes, reason = prove_reduced(found)
    assert reason is None
    assert proof is not None
    assert proof.ok
    assert proof.controls
    assert notes[0].startswith("the proof is of ")
    assert len(notes) == 1, notes


def test_a_spec_of_another_form_is_not_covered(tmp_path: Path) -> None:
    found = find_spec(save_folder(tmp_path, "llama", tie_word_embeddings=True), cache=False)
    spec = found.spec
    assert differing(spec, spec, found.names) == []
    name = "model.layers.0.mlp.down_proj.weight"
    plain = replace(spec, actions=())
    edited = tuple((n, (axes[0], axes[0]) if n == name else axes) for n, axes in plain.entries)
    shapes = WeightSpec(plain.groups, edited)
    assert differing(shapes, plain, found.names) == [name]


def test_inspect_proves_a_folder_and_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METANET_CACHE", str(tmp_path / "cache"))
    save_folder(tmp_path, "llama")
    inspection = inspect(str(tmp_path), prove=True)
    assert inspection.verification is not None
    assert inspection.verification.ok
    assert any("at a reduced size" in note for note in inspection.notes)
    assert not any("does not cover" in note for note in inspection.notes)
    assert "from the cache" in inspect(str(tmp_path)).origin
    assert "from the cache" not in inspect(str(tmp_path), cache=False).origin


def test_a_configuration_that_cannot_be_made_smaller_is_not_proven(tmp_path: Path) -> None:
    found = find_spec(save_folder(tmp_path, "llama"), cache=False)

    class Stubborn:
        architectures = ("LlamaForCausalLM",)

        def to_dict(self) -> dict[str, int]:
            return {"hidden_size": 32}

        @classmethod
        def from_dict(cls, data: dict[str, int]) -> Stubborn:
            raise ValueError("no other size")

    proof, notes, reason = prove_reduced(replace(found, config=Stubborn()))
    assert proof is None
    assert notes == ()
    assert reason is not None
    assert "no other size" in reason
