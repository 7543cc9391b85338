"""Matching by data: networks at hand in Python, and language models on a text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metanet import GroupElement, spec_of
from metanet_tasks.cli import main
from metanet_zoo import open_checkpoint, open_images, save_checkpoint
from tests.metanet_tasks.test_text_barrier import TEXT, tokenizer_of
from tests.metanet_zoo.huggingface import transformers

NETWORK = """
from torch import nn

def small():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5, 10),
    )
"""


@pytest.fixture
def convolutions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, GroupElement]:
    """A permuted copy of a convolutional network with batch norm, and its code in the current folder."""
    (tmp_path / "matchable.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    exec(NETWORK, space)
    torch.manual_seed(0)
    model = space["small"]()  # type: ignore[operator]
    assert isinstance(model, nn.Module)
    images = open_images("digits", limit=500)
    assert images.labels is not None
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(25):
        optimizer.zero_grad()
        F.cross_entropy(model(images.images[:, None]), images.labels).backward()
        optimizer.step()
    spec = spec_of(model.eval(), torch.rand(2, 1, 8, 8))
    planted = GroupElement.random(spec, torch.Generator().manual_seed(1))
    save_checkpoint(tmp_path / "b.safetensors", model.state_dict())
    save_checkpoint(tmp_path / "a.safetensors", planted @ model.state_dict())
    return "a.safetensors", "b.safetensors", planted


@pytest.mark.parametrize("method", ["activations", "straight-through"])
def test_a_network_at_hand_is_run_and_proven(
    convolutions: tuple[str, str, GroupElement], method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, _ = convolutions
    options = ["--network", "matchable:small", "--data", "digits", "--limit", "80"]
    if method != "activations":
        options += ["--set", "steps=2"]
    assert main(["match", a, b, "--method", method, *options, "--out", "out.safetensors", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["proof"]["proven"] is True
    assert "Sequential" in report["proof"]["how"]
    first, aligned = open_checkpoint(a), open_checkpoint("out.safetensors")
    assert all(torch.equal(first[name], aligned[name]) for name in first)


@pytest.mark.parametrize("method", ["activations", pytest.param("straight-through", marks=pytest.mark.slow)])
def test_language_models_are_matched_on_a_text(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tokenizer_of(TEXT)
    config = transformers.LlamaConfig(
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=len(tokenizer),
        max_position_embeddings=32,
        initializer_range=0.3,
        tie_word_embeddings=True,
        dtype="float32",
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    ids = tokenizer(TEXT, return_tensors="pt").input_ids[:, :240].reshape(10, 24)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    spec = spec_of(model, input_ids=torch.arange(6)[None], use_cache=False)
    planted = GroupElement.random(spec, torch.Generator().manual_seed(1))
    for name, state in (("b", model.state_dict()), ("a", planted @ model.state_dict())):
        model.load_state_dict(state)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    options = ["--text", str(text), "--limit", "4"]
    if method == "straight-through":
        options += ["--set", "steps=2"]
    assert main(["match", a, b, "--method", method, *options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["used"] is True
    assert report["proof"]["proven"] is True
    assert report["after"] < 0.6 * report["before"]
    assert report["moved"]["model.layers.0.mlp.gate_proj"] > 0.5
