"""Shifts, rotations and orthogonal freedoms of the transformers library's own models, tiny and random."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn

from metanet import WeightSpec, fold_gains, spec_of, verify

pytest.importorskip("transformers", reason="needs the transformers library")

QUERIES: dict[str, int] = {"head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES: dict[str, Mapping[str, int | float | bool]] = {
    "llama.Llama": {**QUERIES, "attention_bias": True},
    "qwen3.Qwen3": QUERIES,
    "gemma2.Gemma2": QUERIES,
    "gptj.GPTJ": {"n_embd": 24, "n_layer": 1, "n_head": 2, "n_positions": 8, "rotary_dim": 8},
    "gpt_neox.GPTNeoX": {"num_attention_heads": 2, "rotary_pct": 0.5},
    "gpt2.GPT2": {"n_embd": 24, "n_layer": 1, "n_head": 4, "n_positions": 8},
    "bert.Bert": {"num_attention_heads": 4, "max_position_embeddings": 8},
}  # fmt: skip
COMMON = {"vocab_size": 11, "hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 1}
HEADS = {"gpt2.GPT2": "LMHeadModel", "bert.Bert": "Model"}


def model_of(name: str, **changes: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Return a tiny model and its inputs."""
    module, _, prefix = name.partition(".")
    family = import_module(f"transformers.models.{module}.modeling_{module}")
    config = import_module(f"transformers.models.{module}.configuration_{module}")
    sizes = {**({} if "n_embd" in SIZES[name] else COMMON), "vocab_size": 11, **SIZES[name], **changes}
    torch.manual_seed(0)
    model = getattr(family, prefix + HEADS.get(name, "ForCausalLM"))(
        getattr(config, f"{prefix}Config")(**sizes)
    )
    caches = {} if name == "bert.Bert" else {"use_cache": False}
    return model.eval(), {"input_ids": torch.arange(5)[None], **caches}


def found(spec: WeightSpec, kind: str) -> dict[str, str]:
    """Return, for every action of a kind, its header and the first entry it acts on, shortened."""
    return {
        ".".join(action.terms[0].entry.split(".")[-2:]): " ".join(
            word.rpartition(".")[2] for word in str(action).split()
        )
        for action in spec.actions
        if action.kind == kind
    }


KNOWN: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "llama.Llama": ({}, {"k_proj.weight": "rotation head 4 half"}),
    "qwen3.Qwen3": ({}, {}),
    "gptj.GPTJ": (
        {
            "wte.weight": "shift 11",
            "out_proj.weight": "shift head v",
            "fc_out.weight": "shift fc_in",
            "fc_out.bias": "shift",
        },
        {"k_proj.weight": "rotation head 4 interleaved"},
    ),
    "gpt_neox.GPTNeoX": (
        {
            "embed_in.weight": "shift 11",
            "query_key_value.bias": "shift head qk",
            "dense.weight": "shift head v",
            "dense.bias": "shift",
            "dense_4h_to_h.weight": "shift dense_h_to_4h",
            "dense_4h_to_h.bias": "shift",
        },
        {"query_key_value.weight": "rotation head 3 half"},
    ),
    "gpt2.GPT2": (
        {
            "wpe.weight": "shift 8",
            "c_attn.bias": "shift head qk",
            "c_proj.weight": "shift c_fc",
            "c_proj.bias": "shift",
        },
        {},
    ),
    "bert.Bert": (
        {
            "word_embeddings.weight": "shift 11",
            "position_embeddings.weight": "shift 8",
            "token_type_embeddings.weight": "shift 2",
            "key.bias": "shift head qk",
            "dense.weight": "shift dense",
            "dense.bias": "shift",
        },
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_shifts_and_rotations_are_the_known_ones(name: str) -> None:
    model, inputs = model_of(name)
    spec = spec_of(model, **inputs)
    shifts, rotations = KNOWN[name]
    assert found(spec, "shift") == shifts
    assert found(spec, "rotation") == rotations
    verification = verify(spec, model, draws=1, **inputs)
    assert verification.ok, str(verification)


def test_a_folded_llama_has_the_whole_known_continuous_group() -> None:
    """O(d), a complex number per head and pair, GL of values per head, and a scale per gated unit."""
    model, inputs = model_of("llama.Llama", num_hidden_layers=2, tie_word_embeddings=True)
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand_like(parameter) - 0.5)
    folded = fold_gains(model, spec_of(model, **inputs), untie=True)
    with torch.no_grad():
        error = (folded(**inputs).logits - model(**inputs).logits).abs().max()
    assert float(error) < 1e-5  # transformers normalises in float32
    assert not folded.config.tie_word_embeddings  # type: ignore[union-attr]
    spec = spec_of(folded, **inputs)
    assert spec.dimension() == 24 * 23 // 2 + 2 * (2 * 4 * 2 + 2 * 8 * 8 + 20)
    verification = verify(spec, folded, draws=1, **inputs)
    assert verification.ok, str(verification)
    assert not verification.dead


def test_a_model_on_the_meta_device_has_the_same_actions() -> None:
    model, inputs = model_of("llama.Llama")
    with torch.device("meta"):
        blank, _ = model_of("llama.Llama")
    assert spec_of(blank, **inputs).actions == spec_of(model, **inputs).actions


def test_sandwich_norms_keep_their_gains() -> None:
    model, inputs = model_of("gemma2.Gemma2")
    with pytest.raises(ValueError, match=r"post_attention_layernorm.*Sandwich norms and post norms"):
        fold_gains(model, spec_of(model, **inputs), untie=True)
