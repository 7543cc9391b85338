"""Adapters extracted from whole models: best approximation, read back, and loaded by peft."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from metanet_tasks.cli import main
from metanet_zoo.errors import CheckpointError
from metanet_zoo.merging.lora_extraction import best_factors, extract_lora
from metanet_zoo.merging.run import merge_checkpoints

SHAPES = {"up.weight": (12, 8), "up.bias": (12,), "conv.weight": (6, 4, 3, 3), "norm.weight": (8,)}


def pair(folder: Path, rank: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Write a base, and a model whose matrices differ from it by products of some rank."""
    draw = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in SHAPES.items()}
    tuned = {}
    for name, tensor in base.items():
        columns = tensor[0].numel()
        change = torch.randn(len(tensor), rank, generator=draw, dtype=torch.float64) @ torch.randn(
            rank, columns, generator=draw, dtype=torch.float64
        )
        tuned[name] = tensor + change.reshape(tensor.shape)
    for name, tensors in (("base", base), ("tuned", tuned)):
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors")
    return base, tuned


def merged(folder: Path) -> dict[str, Tensor]:
    reference = f"{folder / 'base'}+{folder / 'adapter'}"
    recipe = {"merge_method": "passthrough", "models": [{"model": reference}]}
    merge_checkpoints(recipe, folder / "out", overwrite=True)
    return load_file(folder / "out" / "model.safetensors")


def test_full_rank_gives_the_model_back(tmp_path: Path) -> None:
    _, tuned = pair(tmp_path, 3)
    report = extract_lora(str(tmp_path / "tuned"), str(tmp_path / "base"), tmp_path / "adapter", rank=3)
    assert report.carried == pytest.approx(1.0)
    assert set(report.adapted) == {"up.weight", "conv.weight"}
    assert set(report.whole) == {"up.bias", "norm.weight"}
    for name, tensor in merged(tmp_path).items():
        torch.testing.assert_close(tensor, tuned[name], rtol=0, atol=1e-5)  # factors are kept in float32


def test_lower_rank_is_the_best_approximation(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, 8)
    report = extract_lora(str(tmp_path / "tuned"), str(tmp_path / "base"), tmp_path / "adapter", rank=2)
    result = merged(tmp_path)
    for name in report.adapted:
        change = (tuned[name] - base[name]).flatten(1)
        left = torch.linalg.svdvals(change)[2:].square().sum()
        error = (result[name].double() - tuned[name]).square().sum()
        assert error == pytest.approx(float(left), rel=1e-5)
        assert report.adapted[name] == pytest.approx(1 - float(left / change.square().sum()), rel=1e-5)


def test_large_matrices_by_a_random_start() -> None:
    draw = torch.Generator().manual_seed(0)
    scales = 0.9 ** torch.arange(600, dtype=torch.float64)
    matrix = (
        (torch.randn(700, 600, generator=draw, dtype=torch.float64) / 26)
        * scales
        @ torch.linalg.qr(torch.randn(600, 600, generator=draw, dtype=torch.float64)).Q
    )
    left, right, kept = best_factors(matrix, 20)
    values = torch.linalg.svdvals(matrix)
    assert kept == pytest.approx(float(values[:20].square().sum()), rel=1e-9)
    error = float((matrix - left @ right).square().sum())
    assert error == pytest.approx(float(values[20:].square().sum()), rel=1e-6)


def test_excluded_tensors_stay_and_are_counted(tmp_path: Path) -> None:
    base, _ = pair(tmp_path, 2)
    report = extract_lora(
        str(tmp_path / "tuned"),
        str(tmp_path / "base"),
        tmp_path / "adapter",
        rank=2,
        exclude=("norm", "bias"),
    )
    assert set(report.left_out) == {"up.bias", "norm.weight"}
    assert 0 < report.carried < 1
    result = merged(tmp_path)
    assert torch.equal(result["norm.weight"], base["norm.weight"])


def test_what_cannot_be_an_adapter_is_refused(tmp_path: Path) -> None:
    base, tuned = pair(tmp_path, 2)
    arguments = (str(tmp_path / "tuned"), str(tmp_path / "base"), tmp_path / "adapter")
    with pytest.raises(ValueError, match="rank 0"):
        extract_lora(*arguments, rank=0)
    with pytest.raises(ValueError, match="expected a regular expression"):
        extract_lora(*arguments, exclude=("(",))
    save_file({**tuned, "scale": torch.ones(3)}, tmp_path / "tuned" / "model.safetensors")
    with pytest.raises(CheckpointError, match="the base has no tensor 'scale'"):
        extract_lora(*arguments)
    save_file({**base, "scale": torch.zeros(3)}, tmp_path / "base" / "model.safetensors")
    with pytest.raises(CheckpointError, match="has no place for it"):
        extract_lora(*arguments)
    assert not (tmp_path / "adapter").exists()
    (tmp_path / "adapter").mkdir()
    with pytest.raises(FileExistsError, match="is no adapter"):
        extract_lora(*arguments, overwrite=True)


def test_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair(tmp_path, 2)
    arguments = [str(tmp_path / "tuned"), "--base", str(tmp_path / "base"), "-o", str(tmp_path / "adapter")]
    assert main(["extract-lora", *arguments, "--rank", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["carried"] == pytest.approx(1.0)
    assert main(["extract-lora", *arguments]) == 2
    assert "--overwrite replaces" in capsys.readouterr().err
    assert main(["extract-lora", *arguments, "--overwrite"]) == 0
    assert "of the squared difference" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["llama", "llama, tied", "gpt2"])
def test_peft_loads_it(kind: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="needs the package peft")
    transformers = pytest.importorskip("transformers", reason="needs the package transformers")
    torch.manual_seed(0)
    if kind != "gpt2":
        config = transformers.LlamaConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=20,
            tie_word_embeddings=kind.endswith("tied"),
        )
        base = transformers.LlamaForCausalLM(config).eval()
    else:
        config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=4, vocab_size=20, n_positions=16)
        base = transformers.GPT2LMHeadModel(config).eval()
    base.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if name != "transformer.wte.weight":
                parameter.add_(0.1 * torch.randn_like(parameter))
    base.save_pretrained(tmp_path / "tuned")
    tokens = torch.arange(10)[None]
    expected = base(tokens).logits
    report = extract_lora(str(tmp_path / "tuned"), str(tmp_path / "base"), tmp_path / "adapter", rank=64)
    assert report.carried == pytest.approx(1.0)
    fresh = type(base).from_pretrained(tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(tokens).logits, expected, rtol=0, atol=1e-4)
    result, tuned = merged(tmp_path), load_file(tmp_path / "tuned" / "model.safetensors")
    assert result.keys() == tuned.keys()
    for name, tensor in result.items():
        torch.testing.assert_close(tensor, tuned[name], rtol=0, atol=1e-5)
    if kind == "gpt2":  # its head is the embedding, which peft would not tie
        with torch.no_grad():
            base.transformer.wte.weight.add_(1.0)
        base.save_pretrained(tmp_path / "tuned")
        with pytest.raises(CheckpointError, match="is the output head too"):
            extract_lora(str(tmp_path / "tuned"), str(tmp_path / "base"), tmp_path / "other")
