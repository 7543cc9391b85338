"""Text models of `transformers`: decoders, encoders, encoder-decoders, state-space and hybrid models."""

from __future__ import annotations

from typing import Any

import torch

from architectures.family import Family, families, tokens
from architectures.transformers_family import pretrained

IDS: dict[str, Any] = {"input_ids": tokens(2, 8)}
LONG: dict[str, Any] = {"input_ids": tokens(1, 16)}
PAIR: dict[str, Any] = {"input_ids": tokens(2, 8), "decoder_input_ids": tokens(2, 6)}
MASKS: dict[str, Any] = {"attention_mask": torch.ones(2, 8), "decoder_attention_mask": torch.ones(2, 6)}

DECODERS = families(
    "text decoder",
    {
        "GPT": pretrained("OpenAIGPTLMHeadModel", **IDS),
        "GPT-2": pretrained("GPT2LMHeadModel", **IDS),
        "GPT-BigCode": pretrained("GPTBigCodeForCausalLM", **IDS),
        "GPT-Neo": pretrained(
            "GPTNeoForCausalLM",
            config={"attention_types": [[["global", "local"], 1]], "window_size": 4},
            **IDS,
        ),
        "GPT-NeoX": pretrained("GPTNeoXForCausalLM", **IDS),
        "GPT-J": pretrained("GPTJForCausalLM", config={"rotary_dim": 4}, **IDS),
        "CodeGen": pretrained("CodeGenForCausalLM", config={"rotary_dim": 4}, **IDS),
        "CTRL": pretrained("CTRLLMHeadModel", **IDS),
        "XGLM": pretrained("XGLMForCausalLM", **IDS),
        "BioGPT": pretrained("BioGptForCausalLM", **IDS),
        "OPT": pretrained("OPTForCausalLM", **IDS),
        "BLOOM": pretrained("BloomForCausalLM", **IDS),
        "MPT": pretrained("MptForCausalLM", **IDS),
        "Falcon": pretrained("FalconForCausalLM", **IDS),
        "Llama": pretrained("LlamaForCausalLM", config={"num_key_value_heads": 2}, **IDS),
        "Llama 4": pretrained(
            "Llama4ForCausalLM",
            config={"no_rope_layers": [1, 0], "moe_layers": [1], "num_experts_per_tok": 1},
            **IDS,
        ),
        "Mistral": pretrained("MistralForCausalLM", **IDS),
        "Mixtral": pretrained("MixtralForCausalLM", **IDS),
        "Qwen2": pretrained("Qwen2ForCausalLM", config={"num_key_value_heads": 2}, **IDS),
        "Qwen2-MoE": pretrained("Qwen2MoeForCausalLM", config={"num_key_value_heads": 2}, **IDS),
        "Qwen3": pretrained("Qwen3ForCausalLM", config={"num_key_value_heads": 2}, **IDS),
        "Qwen3-MoE": pretrained("Qwen3MoeForCausalLM", config={"mlp_only_layers": [0]}, **IDS),
        "Gemma": pretrained("GemmaForCausalLM", **IDS),
        "Gemma 2": pretrained("Gemma2ForCausalLM", **IDS),
        "Gemma 3": pretrained("Gemma3ForCausalLM", **IDS),
        "Phi": pretrained("PhiForCausalLM", **IDS),
        "Phi-3": pretrained("Phi3ForCausalLM", **IDS),
        "Phi-MoE": pretrained("PhimoeForCausalLM", **IDS),
        "OLMo": pretrained("OlmoForCausalLM", **IDS),
        "OLMo 2": pretrained("Olmo2ForCausalLM", **IDS),
        "OLMoE": pretrained("OlmoeForCausalLM", **IDS),
        "StableLM": pretrained("StableLmForCausalLM", **IDS),
        "StarCoder2": pretrained("Starcoder2ForCausalLM", **IDS),
        "Cohere": pretrained("CohereForCausalLM", **IDS),
        "Cohere 2": pretrained("Cohere2ForCausalLM", **IDS),
        "Granite": pretrained("GraniteForCausalLM", **IDS),
        "Granite-MoE": pretrained("GraniteMoeForCausalLM", **IDS),
        "GLM": pretrained("GlmForCausalLM", **IDS),
        "GLM-4": pretrained("Glm4ForCausalLM", **IDS),
        "Helium": pretrained("HeliumForCausalLM", **IDS),
        "Persimmon": pretrained("PersimmonForCausalLM", **IDS),
        "DeepSeek-V2": pretrained(
            "DeepseekV2ForCausalLM",
            config={"num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "num_key_value_heads": 4},
            **IDS,
        ),
        "DeepSeek-V3": pretrained(
            "DeepseekV3ForCausalLM", config={"n_group": 2, "topk_group": 1, "num_key_value_heads": 4}, **IDS
        ),
        "DBRX": pretrained(
            "DbrxForCausalLM",
            config={
                "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            },
            **IDS,
        ),
        "gpt-oss": pretrained("GptOssForCausalLM", **IDS),
        "DiffLlama": pretrained("DiffLlamaForCausalLM", config={"num_key_value_heads": 2}, **IDS),
        "Nemotron": pretrained("NemotronForCausalLM", config={"num_key_value_heads": 2}, **IDS),
        "ERNIE 4.5": pretrained("Ernie4_5ForCausalLM", **IDS),
        "SmolLM3": pretrained("SmolLM3ForCausalLM", **IDS),
        "MiniMax": pretrained(
            "MiniMaxForCausalLM",
            config={"layer_types": ["full_attention", "linear_attention"], "block_size": 4},
            **IDS,
        ),
        "BitNet": pretrained("BitNetForCausalLM", **IDS),
        "Arcee": pretrained("ArceeForCausalLM", **IDS),
        "Apertus": pretrained("ApertusForCausalLM", **IDS),
        "JetMoE": pretrained("JetMoeForCausalLM", config={"num_key_value_heads": 2}, **IDS),
        "EXAONE 4": pretrained("Exaone4ForCausalLM", **IDS),
        "Doge": pretrained("DogeForCausalLM", config={"num_key_value_heads": 2}, **IDS),
        "nanochat": pretrained("NanoChatForCausalLM", **IDS),
        "XLNet": pretrained("XLNetLMHeadModel", config={"d_inner": 40}, **IDS),
    },
)

STATE_SPACE = families(
    "state space and linear attention",
    {
        "Mamba": pretrained("MambaForCausalLM", **IDS),
        "Mamba-2": pretrained(
            "Mamba2ForCausalLM", config={"num_heads": 8, "head_dim": 8, "n_groups": 2}, **IDS
        ),
        "Falcon-Mamba": pretrained("FalconMambaForCausalLM", **IDS),
        "Jamba": pretrained(
            "JambaForCausalLM",
            config={
                "attn_layer_period": 2,
                "attn_layer_offset": 1,
                "expert_layer_period": 2,
                "use_mamba_kernels": False,
            },
            **IDS,
        ),
        "Bamba": pretrained(
            "BambaForCausalLM",
            config={"mamba_n_heads": 8, "mamba_d_head": 8, "attn_layer_indices": [1], "mamba_d_state": 6},
            **IDS,
        ),
        "Zamba": pretrained(
            "ZambaForCausalLM",
            config={
                "num_hidden_layers": 4,
                "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
                "use_mamba_kernels": False,
                "attention_hidden_size": 64,
                "attention_head_dim": 16,
            },
            **IDS,
        ),
        "RecurrentGemma": pretrained("RecurrentGemmaForCausalLM", config={"num_hidden_layers": 3}, **IDS),
        "RWKV": pretrained("RwkvForCausalLM", **IDS),
        "Falcon-H1": pretrained(
            "FalconH1ForCausalLM", config={"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64}, **IDS
        ),
        "Qwen3-Next": pretrained(
            "Qwen3NextForCausalLM",
            config={
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 4,
                "linear_key_head_dim": 8,
                "linear_value_head_dim": 8,
                "layer_types": ["linear_attention", "full_attention"],
            },
            **IDS,
        ),
        "LFM2": pretrained("Lfm2ForCausalLM", config={"layer_types": ["conv", "full_attention"]}, **IDS),
    },
)

ENCODERS = families(
    "text encoder",
    {
        "BERT": pretrained("BertForMaskedLM", **IDS),
        "RoBERTa": pretrained("RobertaForMaskedLM", **IDS),
        "RoBERTa-PreLayerNorm": pretrained("RobertaPreLayerNormForMaskedLM", **IDS),
        "DistilBERT": pretrained("DistilBertForMaskedLM", **IDS),
        "ALBERT": pretrained("AlbertForMaskedLM", config={"embedding_size": 16}, **IDS),
        "ELECTRA": pretrained("ElectraForPreTraining", config={"embedding_size": 16}, **IDS),
        "DeBERTa": pretrained("DebertaForMaskedLM", config={"pos_att_type": ["c2p", "p2c"]}, **IDS),
        "DeBERTa-v2": pretrained(
            "DebertaV2ForMaskedLM", config={"pos_att_type": ["c2p", "p2c"], "relative_attention": True}, **IDS
        ),
        "MPNet": pretrained("MPNetForMaskedLM", **IDS),
        "MobileBERT": pretrained(
            "MobileBertForMaskedLM", config={"intra_bottleneck_size": 16, "true_hidden_size": 16}, **IDS
        ),
        "SqueezeBERT": pretrained("SqueezeBertForMaskedLM", config={"embedding_size": 32}, **IDS),
        "ConvBERT": pretrained("ConvBertForMaskedLM", config={"embedding_size": 32}, **IDS),
        "Funnel": pretrained(
            "FunnelForMaskedLM", config={"block_sizes": [1, 1], "d_inner": 40, "num_decoder_layers": 1}, **IDS
        ),
        "FNet": pretrained("FNetForMaskedLM", **IDS),
        "I-BERT": pretrained("IBertForMaskedLM", **IDS),
        "RoFormer": pretrained("RoFormerForMaskedLM", config={"embedding_size": 32}, **IDS),
        "Nystromformer": pretrained(
            "NystromformerForMaskedLM", config={"num_landmarks": 4, "segment_means_seq_len": 8}, **IDS
        ),
        "Longformer": pretrained("LongformerForMaskedLM", config={"attention_window": 8}, **LONG),
        "BigBird": pretrained("BigBirdForMaskedLM", config={"attention_type": "original_full"}, **LONG),
        "CANINE": pretrained(
            "CanineForSequenceClassification",
            config={
                "num_hash_buckets": 16,
                "num_hash_functions": 4,
                "downsampling_rate": 4,
                "local_transformer_stride": 8,
            },
            **LONG,
        ),
        "XLM": pretrained("XLMWithLMHeadModel", **IDS),
        "FlauBERT": pretrained("FlaubertWithLMHeadModel", **IDS),
        "LUKE": pretrained("LukeForMaskedLM", config={"entity_vocab_size": 11, "entity_emb_size": 16}, **IDS),
        "LayoutLM": pretrained(
            "LayoutLMForMaskedLM",
            config={"max_2d_position_embeddings": 64},
            bbox=tokens(2, 32).reshape(2, 8, 4).sort(-1).values,
            **IDS,
        ),
        "LiLT": pretrained(
            "LiltModel",
            config={"hidden_size": 48, "max_2d_position_embeddings": 64},
            bbox=tokens(2, 32).reshape(2, 8, 4).sort(-1).values,
            **IDS,
        ),
        "RemBERT": pretrained(
            "RemBertForMaskedLM", config={"input_embedding_size": 16, "output_embedding_size": 24}, **IDS
        ),
        "Megatron-BERT": pretrained("MegatronBertForMaskedLM", **IDS),
        "Splinter": pretrained("SplinterForQuestionAnswering", **IDS),
        "RoCBert": pretrained(
            "RoCBertForMaskedLM",
            config={
                "pronunciation_embed_dim": 8,
                "shape_embed_dim": 12,
                "pronunciation_vocab_size": 9,
                "shape_vocab_size": 11,
            },
            **IDS,
        ),
        "ModernBERT": pretrained("ModernBertForMaskedLM", config={"local_attention": 4}, **IDS),
        "ESM-2": pretrained(
            "EsmForMaskedLM",
            config={
                "vocab_size": 61,
                "pad_token_id": 0,
                "position_embedding_type": "rotary",
                "mask_token_id": 4,
            },
            **IDS,
        ),
        "X-MOD": pretrained("XmodForMaskedLM", config={"default_language": "en_XX"}, **IDS),
        "BROS": pretrained(
            "BrosModel", config={"hidden_size": 64}, bbox=tokens(2, 32).reshape(2, 8, 4) / 64, **IDS
        ),
        "EuroBERT": pretrained("EuroBertForMaskedLM", config={"num_key_value_heads": 2}, **IDS),
    },
)

ENCODER_DECODERS = families(
    "text encoder-decoder",
    {
        "T5": pretrained("T5ForConditionalGeneration", **PAIR),
        "Flan-T5 (gated)": pretrained(
            "T5ForConditionalGeneration",
            config={"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
            **PAIR,
        ),
        "UMT5": pretrained("UMT5ForConditionalGeneration", **PAIR),
        "LongT5": pretrained("LongT5ForConditionalGeneration", config={"local_radius": 4}, **PAIR, **MASKS),
        "Switch": pretrained(
            "SwitchTransformersForConditionalGeneration",
            config={"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
            **PAIR,
            **MASKS,
        ),
        "BART": pretrained("BartForConditionalGeneration", **PAIR),
        "mBART": pretrained("MBartForConditionalGeneration", **PAIR),
        "Pegasus": pretrained("PegasusForConditionalGeneration", **PAIR),
        "PEGASUS-X": pretrained(
            "PegasusXForConditionalGeneration", config={"block_size": 4, "num_global_tokens": 2}, **PAIR
        ),
        "Marian": pretrained("MarianMTModel", **PAIR),
        "Blenderbot": pretrained("BlenderbotForConditionalGeneration", **PAIR),
        "M2M-100": pretrained("M2M100ForConditionalGeneration", **PAIR),
        "NLLB-MoE": pretrained(
            "NllbMoeForConditionalGeneration",
            config={"encoder_sparse_step": 2, "decoder_sparse_step": 2, "expert_capacity": 8},
            **PAIR,
        ),
        "FSMT": pretrained(
            "FSMTForConditionalGeneration", config={"src_vocab_size": 61, "tgt_vocab_size": 61}, **PAIR
        ),
        "LED": pretrained(
            "LEDForConditionalGeneration",
            config={
                "attention_window": 8,
                "max_encoder_position_embeddings": 64,
                "max_decoder_position_embeddings": 64,
            },
            **PAIR,
        ),
        "ProphetNet": pretrained("ProphetNetForConditionalGeneration", **PAIR),
        "PLBart": pretrained("PLBartForConditionalGeneration", **PAIR),
        "T5Gemma": pretrained("T5GemmaForConditionalGeneration", **PAIR, use_cache=False),
    },
)

FAMILIES: list[Family] = [*DECODERS, *STATE_SPACE, *ENCODERS, *ENCODER_DECODERS]
