"""Adapters as peft writes them, merged as peft merges them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from metanet_zoo.merging.run import merge_checkpoints

peft = pytest.importorskip("peft", reason="needs the package peft")
transformers = pytest.importorskip("transformers", reason="needs the package transformers")

CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"v_proj": 3}},
    "whole modules": {"modules_to_save": ["lm_head"]},
    "embedding, stored beside its adapter": {"target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_merged_as_peft_merges(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=20,
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "base")
    settings = {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**{**settings, **CONFIGS[kind]}))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora" in name or "modules_to_save" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    adapted.save_pretrained(tmp_path / "adapter")
    expected = adapted.merge_and_unload().state_dict()
    reference = f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"
    recipe = {"merge_method": "passthrough", "models": [{"model": reference}]}
    merge_checkpoints(recipe, tmp_path / "out")
    result = load_file(tmp_path / "out" / "model.safetensors")
    assert result.keys() == expected.keys()
    for name, tensor in result.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)
