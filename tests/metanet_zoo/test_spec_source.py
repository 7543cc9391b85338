from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from metanet import GroupElement, spec_of
from metanet.axis import Fixed
from metanet_zoo import CheckpointError, open_checkpoint, save_checkpoint, spec_of_checkpoint
from metanet_zoo.readers import MemoryReader
from metanet_zoo.safetensors_file import SafetensorsFile
from metanet_zoo.spec_files import write_spec
from metanet_zoo.spec_source import find_spec
from tests.metanet_zoo import huggingface
from tests.metanet_zoo.huggingface import edit_config, save_folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("METANET_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("llama"), "llama", max_shard_size="40KB")


def keeps_function(folder: Path, kind: str) -> float:
    """Return the largest change of the outputs when a random element acts on the files, loaded as usual."""
    from metanet_zoo.huggingface_model import example_inputs

    transformers = huggingface.transformers
    load = getattr(transformers, huggingface.CONFIGS[kind]["architectures"][0]).from_pretrained
    settings = {"experts_implementation": "eager"} if kind == "mixtral" else {}
    before = load(folder, dtype=torch.float64, **settings).eval()
    checkpoint = open_checkpoint(folder)
    spec, _ = spec_of_checkpoint(checkpoint, cache=False)
    weights = {name: tensor.double() for name, tensor in checkpoint.state_dict().items()}
    moved = GroupElement.random(spec, torch.Generator().manual_seed(0)) @ weights
    assert any(not torch.equal(moved[name], weights[name]) for name in weights)
    other = folder / "moved"
    other.mkdir()
    (other / "config.json").write_text((folder / "config.json").read_text())
    save_file({name: tensor.contiguous() for name, tensor in moved.items()}, other / "model.safetensors")
    after = load(other, dtype=torch.float64, **settings).eval()
    inputs = example_inputs(before, before.config)
    with torch.no_grad():
        first, second = before(**inputs)[0], after(**inputs)[0]
    return float((first - second).abs().max() / first.abs().max())


def test_only_the_headers_of_sharded_weights_are_read(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, name: str) -> torch.Tensor:
        raise AssertionError(f"read {name}")

    monkeypatch.setattr(SafetensorsFile, "read", refuse)
    monkeypatch.setattr(MemoryReader, "read", refuse)
    assert len(list(llama.glob("model-*.safetensors"))) > 1
    spec, provenance = spec_of_checkpoint(llama)
    assert "derived from LlamaForCausalLM of transformers" in provenance
    sizes = {group.name.removeprefix("model.layers.0."): group.size for group in spec.groups}
    assert sizes["self_attn.q_proj.head"] == 2
    assert sizes["self_attn.q_proj.query"] == 2
    assert sizes["mlp.gate_proj"] == 48
    spec.check({name: open_checkpoint(llama).shape(name) for name in open_checkpoint(llama)})


@pytest.mark.parametrize("kind", ["mixtral", "bert", "vit"])
def test_an_element_acts_on_the_files_as_they_are_stored(tmp_path: Path, kind: str) -> None:
    tolerance = 1e-5 if kind == "mixtral" else 1e-10  # its router casts to float32
    assert keeps_function(save_folder(tmp_path, kind), kind) < tolerance


@pytest.mark.parametrize("kind", ["whisper", "wav2vec2"])
def test_sound_and_encoder_decoders_are_derived(tmp_path: Path, kind: str) -> None:
    found = find_spec(save_folder(tmp_path, kind))
    assert len(found.spec.groups) > 4
    assert not found.spec.lost


def test_experts_that_are_stored_one_by_one_are_understood(tmp_path: Path) -> None:
    spec, provenance = spec_of_checkpoint(save_folder(tmp_path, "mixtral"))
    first, last = (f"model.layers.0.block_sparse_moe.experts.{i}.w1.weight" for i in (0, 3))
    assert [axis for axis in spec.axes[first] if isinstance(axis, Fixed)] == []
    assert last in spec.axes
    assert "makes 2 of its tensors out of several entries" in provenance


def test_a_tied_head_is_absent_and_an_unknown_entry_stays(tmp_path: Path) -> None:
    save_folder(tmp_path, "llama", tie_word_embeddings=True)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "rotary.cache": torch.ones(3, 2)}, tmp_path / "model.safetensors")
    spec, provenance = spec_of_checkpoint(tmp_path)
    assert "lm_head.weight is not stored: it is model.embed_tokens.weight" in provenance
    assert "rotary.cache, which LlamaForCausalLM does not read" in provenance
    assert spec.axes["rotary.cache"] == (Fixed(3), Fixed(2))
    assert "rotary.cache" in spec.unused
    assert "lm_head.weight" not in spec.axes


def test_weights_of_the_base_model_lack_the_prefix(tmp_path: Path) -> None:
    save_folder(tmp_path, "bert")
    tensors = load_file(tmp_path / "model.safetensors")
    base = {n.removeprefix("bert."): t for n, t in tensors.items() if n.startswith("bert.")}
    save_file(base, tmp_path / "model.safetensors")
    spec, provenance = spec_of_checkpoint(tmp_path)
    assert "BertForMaskedLM adds the prefix 'bert.'" in provenance
    assert "which the checkpoint lacks" in provenance
    assert set(spec.axes) == set(base)


def test_a_spec_file_goes_before_the_configuration(tmp_path: Path) -> None:
    save_folder(tmp_path, "llama")
    spec, _ = spec_of_checkpoint(tmp_path)
    write_spec(tmp_path / "model.spec.json", spec)
    again, provenance = spec_of_checkpoint(tmp_path)
    assert again == spec
    assert provenance.startswith("read from")


def test_a_plain_network_is_recognised_and_anything_else_is_refused(tmp_path: Path) -> None:
    mlp = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    save_checkpoint(tmp_path / "model.safetensors", mlp.state_dict())
    spec, provenance = spec_of_checkpoint(tmp_path, activation="tanh")
    assert spec == spec_of(mlp, torch.zeros(1, 2))
    assert "plain sequential network" in provenance
    with pytest.raises(CheckpointError, match="Put a spec beside the file"):
        spec_of_checkpoint(open_checkpoint({"w": torch.ones(2, 2)}))


def test_configurations_that_do_not_belong_to_the_weights_are_refused(tmp_path: Path) -> None:
    save_folder(tmp_path, "llama")
    edit_config(tmp_path, intermediate_size=40)
    with pytest.raises(CheckpointError, match=r"expected \[40, 32\].*do not belong together"):
        spec_of_checkpoint(tmp_path)
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="none of the checkpoint's entries"):
        spec_of_checkpoint(tmp_path)


def test_what_transformers_cannot_build_is_said_in_one_sentence(tmp_path: Path) -> None:
    save_folder(tmp_path, "llama")
    edit_config(tmp_path, quantization_config={"quant_method": "gptq"})
    with pytest.raises(CheckpointError, match=r"quantised \(gptq\).*dequantise"):
        spec_of_checkpoint(tmp_path)
    edit_config(tmp_path, quantization_config=None, model_type="never_heard_of")
    with pytest.raises(CheckpointError, match="put a spec beside the file"):
        spec_of_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config.json: not JSON"):
        spec_of_checkpoint(tmp_path)


def test_a_folder_s_own_code_runs_only_when_that_is_asked_for(tmp_path: Path) -> None:
    save_folder(tmp_path, "llama")
    edit_config(tmp_path, model_type="mine", auto_map={"AutoConfig": "code.MyConfig"})
    witness = tmp_path / "witness"
    (tmp_path / "code.py").write_text(f"open({str(witness)!r}, 'w').close()\n")
    with pytest.raises(CheckpointError, match="--trust-remote-code"):
        spec_of_checkpoint(tmp_path)
    assert not witness.exists()
