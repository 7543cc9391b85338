"""A Hugging Face configuration of the same structure at a size at which a proof takes seconds.

Fewer layers, heads, experts and tokens, narrower widths; the ratio of query heads to key-value heads, the
kinds of layers, the activation, the norms, the positions and every switch stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import gcd
from typing import Any

LAYERS = 2
HEAD_WIDTH = 8
VOCABULARY = 64
POSITIONS = 64
EXPERTS = 4

_LAYERS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers", "num_encoder_layers"),
    *("encoder_layers", "decoder_layers"),
)
_HEADS = (
    *("num_attention_heads", "n_head", "n_heads", "num_heads"),
    *("encoder_attention_heads", "decoder_attention_heads"),
)
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
_HEAD_WIDTHS = ("head_dim", "d_kv", "kv_channels", "qk_nope_head_dim", "v_head_dim")
_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim", "embed_dim")
_INNER = (
    *("intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size", "hidden_dim"),
    *("encoder_ffn_dim", "decoder_ffn_dim", "moe_intermediate_size", "shared_expert_intermediate_size"),
)
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_POSITIONS = (
    *("max_position_embeddings", "n_positions", "n_ctx", "max_source_positions", "max_target_positions"),
    *("max_length", "max_seq_len"),
)
_OTHER: Mapping[str, int] = {
    "vocab_size": VOCABULARY,
    "rotary_dim": HEAD_WIDTH // 2,
    "qk_rope_head_dim": HEAD_WIDTH // 2,
    "q_lora_rank": 12,
    "kv_lora_rank": 12,
    "embedding_size": 8,
    "embedding_dim": 8,
    "projection_dim": 12,
    "state_size": 4,
    "time_step_rank": 4,
    "num_mel_bins": 16,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "num_codevectors_per_group": 8,
    "codevector_dim": 8,
    "proj_codevector_dim": 8,
    "classifier_proj_size": 12,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "patch_size": 4,
    "window_size": 2,
    "pooler_hidden_size": 12,
}
"""Setting -> the size that it is brought down to."""


def reduced_config(config: Any) -> tuple[Any, str]:
    """Return a small configuration of the same structure, and what was reduced, as text.

    Args:
        config: of a model of ``transformers``.

    Raises:
        ValueError: the configuration does not accept the smaller sizes.
    """
    data = config.to_dict()
    changes: dict[str, tuple[Any, Any]] = {}
    small = _reduce(data, changes)
    try:
        result = type(config).from_dict(small)
    except Exception as error:
        # Whatever the configuration's own checks raise.
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"a smaller {type(config).__name__} is refused ({type(error).__name__}: {reason})"
        ) from None
    result.architectures = getattr(config, "architectures", None)
    shown = [f"{name} {new} of {old}" for name, (old, new) in changes.items() if not isinstance(old, list)]
    return result, ", ".join(shown)


def _reduce(data: Mapping[str, Any], changes: dict[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Reduce one configuration and those inside it; what changed goes into ``changes``."""
    small = dict(data)

    def put(name: str, value: Any) -> None:
        if small.get(name) != value:
            changes.setdefault(name, (data[name], value))
        small[name] = value

    def sizes(names: tuple[str, ...], change: Callable[[int], int]) -> None:
        for name in names:
            if _is_size(data.get(name)):
                put(name, change(data[name]))

    for name, limit in _OTHER.items():
        sizes((name,), lambda old, limit=limit: min(old, limit))  # type: ignore[misc]
    sizes(_POSITIONS, lambda old: min(old, POSITIONS))
    _layers(data, put, sizes)
    _experts(data, put)
    _widths(data, put, sizes)
    _stages(data, put)
    _images(data, small, put)
    _token_ids(data, small, put)
    for name, value in data.items():
        if isinstance(value, dict) and name.endswith("_config") and name != "quantization_config":
            put(name, _reduce(value, changes))
            changes.pop(name, None)
        elif isinstance(value, dict) and _is_list(value.get("mrope_section")):
            put(name, {**value, "mrope_section": [1, 1, HEAD_WIDTH // 2 - 2]})
            changes.pop(name, None)
    return small


def _layers(data: Mapping[str, Any], put: Callable[[str, Any], None], sizes: Callable[..., None]) -> None:
    """Keep the first layers, as many as it takes to have one of each kind."""
    kinds = data.get("layer_types")
    total = next((data[name] for name in _LAYERS if _is_size(data.get(name))), 0)
    kept = LAYERS
    if isinstance(kinds, list) and kinds:
        kept = max(kept, 1 + max(kinds.index(kind) for kind in set(kinds)))
    sizes(_LAYERS, lambda old: min(old, kept))
    for name, value in data.items():
        if isinstance(value, list) and total > kept and len(value) == total:
            put(name, value[:kept])


def _experts(data: Mapping[str, Any], put: Callable[[str, Any], None]) -> None:
    for name in ("num_experts_per_tok", "moe_topk", "moe_k"):
        if _is_size(data.get(name)):
            put(name, min(data[name], EXPERTS // 2))
    for name in _EXPERTS:
        if _is_size(data.get(name)):
            put(name, min(data[name], EXPERTS))


def _widths(data: Mapping[str, Any], put: Callable[[str, Any], None], sizes: Callable[..., None]) -> None:
    """Make heads few and narrow, at the old ratio of queries to keys and values; widths follow."""
    heads = next((data[name] for name in _HEADS if _is_size(data.get(name))), None)
    width = next((data[name] for name in _WIDTHS if _is_size(data.get(name))), None)
    if width is None:
        return
    shared = next((data[name] for name in _KEY_VALUE_HEADS if _is_size(data.get(name))), heads)
    if data.get("multi_query") is True and not data.get("new_decoder_architecture"):
        shared = 1
    if heads is None or shared is None or heads % shared:
        small = 2 * HEAD_WIDTH
    else:
        few = min(shared, 2)
        many = few * (heads // shared)
        sizes(_HEADS, lambda old: many)
        sizes(_KEY_VALUE_HEADS, lambda old: few if old < heads else many)
        own = next((data[name] for name in _HEAD_WIDTHS if _is_size(data.get(name))), width // heads)
        small = many * HEAD_WIDTH
        if own * heads != width:
            small = max(HEAD_WIDTH, round(small * width / (own * heads) / HEAD_WIDTH) * HEAD_WIDTH)
    sizes(_HEAD_WIDTHS, lambda old: HEAD_WIDTH)
    sizes(_WIDTHS, lambda old: small)
    if data.get("model_type") == "mamba" and _is_size(data.get("intermediate_size")):
        put("intermediate_size", int(data.get("expand", 2) * small))
        return
    inner = min(2 * small, small + 24)
    sizes(_INNER, lambda old: inner)


def _stages(data: Mapping[str, Any], put: Callable[[str, Any], None]) -> None:
    """Reduce what is listed stage by stage: depths, widths, heads."""
    if _is_list(data.get("depths")):
        put("depths", [min(depth, 2) for depth in data["depths"]])
    for name in ("hidden_sizes", "conv_dim", "neck_hidden_sizes"):
        if _is_list(data.get(name)):
            smallest = min(data[name])
            put(name, [HEAD_WIDTH * max(1, round(size / smallest)) for size in data[name]])
    if _is_list(data.get("num_heads")):
        common = gcd(*data["num_heads"])
        put("num_heads", [2 * heads // common for heads in data["num_heads"]])
        if _is_size(data.get("embed_dim")):
            put("embed_dim", 2 * HEAD_WIDTH * data["num_heads"][0] // common)
            if _is_size(data.get("hidden_size")):
                put("hidden_size", 2 * HEAD_WIDTH * data["num_heads"][-1] // common)


def _images(data: Mapping[str, Any], small: Mapping[str, Any], put: Callable[[str, Any], None]) -> None:
    """Make images a few patches wide."""
    if _is_size(data.get("image_size")):
        patch, patches = 4, 8
        if _is_size(small.get("patch_size")):
            patch, patches = small["patch_size"], 2
        if _is_size(data.get("window_size")) and _is_list(data.get("depths")):
            patches = small["window_size"] << (len(data["depths"]) - 1)
        put("image_size", min(data["image_size"], patches * patch))


def _token_ids(data: Mapping[str, Any], small: Mapping[str, Any], put: Callable[[str, Any], None]) -> None:
    """Bring special tokens into the smaller vocabulary, each to a place of its own."""
    free = VOCABULARY - 1
    for name, value in data.items():
        if name.endswith("token_id") and _is_size(value) and value >= VOCABULARY:
            put(name, free)
            free -= 1
        elif name == "eos_token_id" and _is_list(value):
            put(name, [min(token, 3) for token in value[:1]])


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_list(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_size, value))
