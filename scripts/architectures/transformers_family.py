"""Small random models of `transformers`: every size in a default configuration is replaced by a tiny one."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from architectures.family import Example, example

HIDDEN, HEADS, KEY_VALUE_HEADS, INNER, VOCABULARY = 32, 4, 2, 40, 61

SIZES: dict[str, int] = {
    **dict.fromkeys(
        (
            *("hidden_size", "d_model", "n_embd", "embed_dim", "dim", "model_dim", "emb_dim", "hidden_dim"),
            *("decoder_hidden_size", "encoder_hidden_size", "projection_dim", "embedding_size"),
            *("out_hidden_size", "projector_hidden_size", "fusion_hidden_size", "image_text_hidden_size"),
            *("text_hidden_size", "output_dim", "attention_hidden_size", "lru_width", "word_embed_proj_dim"),
            *("decoder_dim", "num_filters", "mask_feature_size", "feature_size", "fpn_hidden_size"),
            *("auxiliary_hidden_size", "reassemble_hidden_size", "contrastive_hidden_size", "d_embed"),
            *("output_hidden_size", "backbone_hidden_size", "encoder_hidden_dim", "latent_channels"),
        ),
        HIDDEN,
    ),
    **dict.fromkeys(
        (
            *("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner"),
            *("moe_intermediate_size", "ffn_hidden_size", "mlp_dim", "shared_expert_intermediate_size"),
            *("decoder_intermediate_size", "dim_feedforward", "encoder_feedforward_dim", "dff"),
            *("shared_intermediate_size", "intermediate_size_mlp", "expert_ffn_hidden_size"),
            *("moe_shared_expert_intermediate_size", "mlp_hidden_size", "feedforward_size"),
        ),
        INNER,
    ),
    **dict.fromkeys(
        (
            *("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "heads"),
            *("decoder_attention_heads", "decoder_num_attention_heads", "attention_heads", "mamba_n_heads"),
            *("num_encoder_attention_heads", "num_decoder_attention_heads", "num_ngrams_heads"),
            *("num_self_attention_heads", "num_cross_attention_heads", "decoder_cross_attention_heads"),
        ),
        HEADS,
    ),
    **dict.fromkeys(
        (
            *("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"),
            *("decoder_num_hidden_layers", "num_decoder_layers", "num_encoder_layers", "depth", "layers"),
            *("decoder_num_layers", "l_layers", "x_layers", "r_layers", "encoder_num_layers"),
            *("num_blocks", "num_self_attends_per_block", "num_fusion_layers", "decoder_depth"),
        ),
        2,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "multi_query_group_num"), KEY_VALUE_HEADS),
    **dict.fromkeys(
        ("head_dim", "kv_channels", "attention_head_dim", "d_kv", "v_head_dim", "d_head", "dim_head"), 8
    ),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "text_vocab_size"), VOCABULARY),
    **dict.fromkeys(
        (
            *("max_position_embeddings", "n_positions", "max_source_positions", "max_target_positions"),
            *("max_seq_len", "context_length_limit", "model_max_length", "max_sequence_length", "n_ctx"),
        ),
        64,
    ),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_top_k", "num_experts_per_token", "moe_k", "top_k"), 2),
    "image_size": 32,
    "pretrain_image_size": 32,
    "patch_size": 8,
    "num_queries": 6,
    "kv_lora_rank": 12,
    "q_lora_rank": 10,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 6,
    "sliding_window": 16,
    "state_size": 6,
    "mamba_d_state": 6,
    "mamba_chunk_size": 8,
    "chunk_size": 8,
    "time_step_rank": 5,
    "num_mel_bins": 16,
    "num_labels": 3,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 12,
    "query_pre_attn_scalar": 8,
    "num_frames": 4,
    "n_mels": 16,
}
"""Field of a configuration to its size; fields that are not integers by default stay as they are."""

LISTS: dict[str, list[int]] = {
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [8, 12, 16, 24],
    "encoder_hidden_sizes": [8, 12, 16, 24],
    "neck_hidden_sizes": [8, 12, 16, 24],
    "conv_dim": [8, 8],
    "conv_stride": [4, 2],
    "conv_kernel": [8, 4],
    "tdnn_dim": [8, 8],
    "tdnn_kernel": [3, 1],
    "tdnn_dilation": [1, 1],
}
"""The same for fields that list one size per stage; a longer or shorter default is cut or continued."""

SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "sep_token_id": 3, "cls_token_id": 4}


def sizes_of(config_class: Any, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of a tiny configuration: known sizes shrunk, then the overrides."""
    names = {name for base in config_class.__mro__ for name in getattr(base, "__annotations__", {})}
    names |= set(inspect.signature(config_class.__init__).parameters)
    default = _default(config_class)
    found: dict[str, Any] = {}
    for name in sorted(names):
        value = getattr(default, name, None) if default is not None else None
        if name in config_class.sub_configs and name not in overrides:
            part = _part_class(config_class.sub_configs[name], value)
            if part is not None:
                found[name] = sizes_of(part, {})
        elif isinstance(value, int) and not isinstance(value, bool) and name in SIZES:
            found[name] = min(SIZES[name], value) if value > 0 else value
        elif isinstance(value, (list, tuple)) and name in LISTS:
            found[name] = (LISTS[name] + LISTS[name][-1:] * len(value))[: len(value)]
        elif name in SPECIAL and value is not None:
            found[name] = SPECIAL[name]
    for name, value in overrides.items():
        nested = isinstance(value, Mapping) and name in config_class.sub_configs
        part = _part_class(config_class.sub_configs[name], getattr(default, name, None)) if nested else None
        found[name] = value if part is None else sizes_of(part, value)
    return found


def _default(config_class: Any) -> Any:
    try:
        return config_class()
    except Exception:  # some configurations have no default; their overrides say everything
        return None


def _part_class(declared: Any, value: Any) -> Any:
    """Return the configuration class of a part, unless it is only known by an instance and there is none."""
    generic = getattr(declared, "__name__", "") in ("AutoConfig", "PreTrainedConfig")
    return (None if value is None else type(value)) if generic else declared


def pretrained(
    class_name: str, *args: Any, config: Mapping[str, Any] | None = None, **kwargs: Any
) -> Callable[[], Example]:
    """Return a builder of a `transformers` model class at a tiny random configuration.

    Args:
        class_name: such as ``"LlamaForCausalLM"``.
        *args: inputs.
        config: fields of the configuration that differ from the shrunk default; a mapping for a part.
        **kwargs: further inputs.
    """

    def make() -> nn.Module:
        import transformers

        logging.getLogger("transformers").setLevel(logging.CRITICAL)
        model_class = getattr(transformers, class_name)
        settings = sizes_of(model_class.config_class, config or {})
        if "use_cache" in {
            n for b in model_class.config_class.__mro__ for n in getattr(b, "__annotations__", {})
        }:
            settings.setdefault("use_cache", False)
        made = model_class.config_class(**settings)
        model: nn.Module = model_class(made)
        return model

    return example(make, *args, **kwargs)
