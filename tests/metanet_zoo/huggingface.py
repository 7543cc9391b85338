"""Small Hugging Face folders for tests, written by ``transformers`` itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

ATTENTION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 70,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**ATTENTION, "num_key_value_heads": 2, "architectures": ["LlamaForCausalLM"]},
    "mixtral": {
        **ATTENTION,
        "num_key_value_heads": 2,
        "num_hidden_layers": 1,
        "num_local_experts": 4,
        "architectures": ["MixtralForCausalLM"],
    },
    "bert": {**ATTENTION, "architectures": ["BertForMaskedLM"]},
    "vit": {
        **{name: ATTENTION[name] for name in list(ATTENTION)[:4]},
        "image_size": 16,
        "patch_size": 8,
        "architectures": ["ViTForImageClassification"],
    },
    "whisper": {
        **{"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4},
        **{"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 70},
        **{"num_mel_bins": 12, "max_source_positions": 10, "pad_token_id": 1, "bos_token_id": 2},
        **{"eos_token_id": 3, "decoder_start_token_id": 2, "suppress_tokens": None},
        **{"begin_suppress_tokens": None, "architectures": ["WhisperForConditionalGeneration"]},
    },
    "wav2vec2": {
        **ATTENTION,
        **{"num_hidden_layers": 1, "conv_dim": [16, 16], "conv_stride": [5, 2], "conv_kernel": [10, 3]},
        **{"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2},
        "architectures": ["Wav2Vec2ForCTC"],
    },
}


def config_of(kind: str, **settings: Any) -> Any:
    """Return one of the configurations, with other settings."""
    return transformers.AutoConfig.for_model(kind, **{**CONFIGS[kind], **settings})


def model_of(kind: str, **settings: Any) -> Any:
    """Return the model of a configuration, seed 0."""
    torch.manual_seed(0)
    config = config_of(kind, **settings)
    return getattr(transformers, config.architectures[0])._from_config(config).eval()


def save_folder(folder: Path, kind: str, **settings: Any) -> Path:
    """Write a folder as ``save_pretrained`` does; ``max_shard_size`` is passed on."""
    shard = settings.pop("max_shard_size", "1GB")
    model_of(kind, **settings).save_pretrained(folder, max_shard_size=shard)
    return folder


def edit_config(folder: Path, **settings: Any) -> None:
    """Change settings of a folder's ``config.json``; None takes one out."""
    path = folder / "config.json"
    data = {**json.loads(path.read_text()), **settings}
    path.write_text(json.dumps({name: value for name, value in data.items() if value is not None}))
