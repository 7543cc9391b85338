"""The output works: transformers loads it and generates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metanet_zoo.merging.run import merge_checkpoints

transformers = pytest.importorskip("transformers", reason="needs the package transformers")


@pytest.mark.parametrize("method", ["linear", "passthrough"])
def test_transformers_loads_the_output_and_generates(tmp_path: Path, method: str) -> None:
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=32, max_position_embeddings=32,
    )  # fmt: skip
    networks = []
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        networks.append(transformers.LlamaForCausalLM(config).to(torch.bfloat16))
        networks[-1].save_pretrained(tmp_path / name)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    if method == "linear":
        recipe = {"merge_method": method, "models": [{"model": a}, {"model": b}], "parameters": {"weight": 1}}
    else:
        slices = [{"sources": [{"model": model, "layer_range": [0, 2]}]} for model in (a, b)]
        recipe = {"merge_method": method, "slices": slices}
    merge_checkpoints(recipe, tmp_path / "out", max_shard_size=4000)
    merged, found = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype="auto"
    )
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert merged.dtype == torch.bfloat16
    assert len(merged.model.layers) == (2 if method == "linear" else 4)
    state, first, second = (network.state_dict() for network in (merged, *networks))
    name = "model.layers.1.mlp.up_proj.weight"
    wanted = (first[name].float() + second[name].float()) / 2 if method == "linear" else first[name].float()
    assert torch.equal(state[name], wanted.bfloat16())
    generated = merged.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False)
    assert generated.shape[1] > 3
