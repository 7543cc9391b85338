"""Multimodal models of `transformers`: image, text and audio encoders joined by attention or a contrast."""

from __future__ import annotations

from typing import Any

import torch

from architectures.family import Family, families, normal, tokens
from architectures.transformers_family import pretrained

IDS = tokens(2, 8)
IMAGES = normal(2, 3, 32, 32)
BOTH: dict[str, Any] = {"input_ids": IDS, "pixel_values": IMAGES}
PLACES = torch.cat([torch.full((1, 16), 60), tokens(1, 6, 60)], 1)

MULTIMODAL = families(
    "multimodal",
    {
        "CLIP": pretrained("CLIPModel", **BOTH),
        "SigLIP": pretrained("SiglipModel", **BOTH),
        "ALIGN text": pretrained("AlignTextModel", input_ids=IDS),
        "AltCLIP": pretrained("AltCLIPModel", **BOTH),
        "Chinese-CLIP": pretrained("ChineseCLIPModel", **BOTH),
        "MetaCLIP 2": pretrained("MetaClip2Model", **BOTH),
        "BLIP": pretrained("BlipForImageTextRetrieval", **BOTH),
        "BLIP-2 Q-Former": pretrained(
            "Blip2QFormerModel",
            config={"encoder_hidden_size": 24, "cross_attention_frequency": 1},
            query_embeds=normal(2, 4, 32),
            encoder_hidden_states=normal(2, 5, 24),
        ),
        "BridgeTower": pretrained(
            "BridgeTowerModel",
            config={
                "text_config": {"hidden_size": 64},
                "vision_config": {"hidden_size": 64},
                "hidden_size": 64,
            },
            **BOTH,
        ),
        "FLAVA": pretrained("FlavaModel", bool_masked_pos=None, **BOTH),
        "GIT": pretrained("GitForCausalLM", config={"num_image_with_embedding": None}, **BOTH),
        "GroupViT vision": pretrained(
            "GroupViTVisionModel",
            config={"depths": [1, 1, 1], "num_group_tokens": [6, 4, 0], "num_output_groups": [6, 4, 0]},
            pixel_values=IMAGES,
        ),
        "ViLT": pretrained("ViltModel", config={"max_image_length": -1}, **BOTH),
        "VisualBERT": pretrained(
            "VisualBertModel",
            config={"visual_embedding_dim": 12},
            input_ids=IDS,
            visual_embeds=normal(2, 3, 12),
        ),
        "LXMERT": pretrained(
            "LxmertModel",
            config={"visual_feat_dim": 12, "visual_pos_dim": 4},
            input_ids=IDS,
            visual_feats=normal(2, 3, 12),
            visual_pos=normal(2, 3, 4),
        ),
        "OWL-ViT": pretrained("OwlViTForObjectDetection", **BOTH),
        "CLIPSeg": pretrained(
            "CLIPSegForImageSegmentation",
            config={
                "extract_layers": [0, 1],
                "reduce_dim": 16,
                "decoder_num_attention_heads": 4,
                "decoder_intermediate_size": 40,
                "projection_dim": 32,
            },
            **BOTH,
        ),
        "X-CLIP text": pretrained("XCLIPTextModel", input_ids=IDS),
        "LLaVA": pretrained(
            "LlavaForConditionalGeneration",
            config={
                "text_config": {
                    "model_type": "llama",
                    "vocab_size": 61,
                    "hidden_size": 32,
                    "intermediate_size": 40,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 2,
                    "use_cache": False,
                },
                "vision_config": {
                    "model_type": "clip_vision_model",
                    "hidden_size": 32,
                    "intermediate_size": 40,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "image_size": 32,
                    "patch_size": 8,
                },
                "image_token_index": 60,
                "image_seq_length": 16,
            },
            input_ids=PLACES,
            pixel_values=normal(1, 3, 32, 32),
        ),
        "PaliGemma": pretrained(
            "PaliGemmaForConditionalGeneration",
            config={
                "text_config": {
                    "model_type": "gemma",
                    "vocab_size": 61,
                    "hidden_size": 32,
                    "intermediate_size": 40,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 1,
                    "head_dim": 8,
                    "use_cache": False,
                },
                "vision_config": {
                    "model_type": "siglip_vision_model",
                    "hidden_size": 32,
                    "intermediate_size": 40,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "image_size": 32,
                    "patch_size": 8,
                },
                "image_token_index": 60,
            },
            input_ids=PLACES,
            pixel_values=normal(1, 3, 32, 32),
            attention_mask=torch.ones(1, 22, dtype=torch.long),
        ),
        "Pix2Struct": pretrained(
            "Pix2StructForConditionalGeneration",
            config={
                "text_config": {"hidden_size": 32, "is_decoder": True},
                "vision_config": {"hidden_size": 32, "patch_embed_hidden_size": 12, "seq_len": 16},
            },
            flattened_patches=torch.cat([torch.ones(1, 6, 2), normal(1, 6, 12)], 2),
            attention_mask=torch.ones(1, 6),
            decoder_input_ids=tokens(1, 5),
        ),
        "TrOCR decoder": pretrained(
            "TrOCRForCausalLM", config={"cross_attention_hidden_size": 24}, input_ids=IDS
        ),
        "LayoutLMv3": pretrained(
            "LayoutLMv3Model",
            config={
                "input_size": 32,
                "coordinate_size": 5,
                "shape_size": 6,
                "max_2d_position_embeddings": 64,
            },
            bbox=tokens(2, 32).reshape(2, 8, 4).sort(-1).values,
            **BOTH,
        ),
        "Florence-2 vision": pretrained(
            "Florence2VisionBackbone",
            config={
                "embed_dim": [8, 12, 16, 24],
                "num_heads": [2, 2, 2, 2],
                "num_groups": [2, 2, 2, 2],
                "depths": [1, 1, 1, 1],
                "window_size": 2,
                "projection_dim": 16,
            },
            hidden_states=normal(1, 3, 64, 64),
        ),
        "Perceiver": pretrained(
            "PerceiverForMaskedLM",
            config={
                "num_latents": 4,
                "d_latents": 32,
                "d_model": 32,
                "num_blocks": 1,
                "num_self_attends_per_block": 1,
                "num_self_attention_heads": 4,
                "num_cross_attention_heads": 4,
                "qk_channels": 32,
                "v_channels": 32,
                "max_position_embeddings": 8,
            },
            inputs=IDS,
        ),
        "Vision encoder-decoder": pretrained(
            "VisionEncoderDecoderModel",
            config={
                "encoder": {
                    "model_type": "vit",
                    "hidden_size": 32,
                    "intermediate_size": 40,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 4,
                    "image_size": 32,
                    "patch_size": 8,
                },
                "decoder": {
                    "model_type": "gpt2",
                    "n_embd": 32,
                    "n_layer": 1,
                    "n_head": 4,
                    "vocab_size": 61,
                    "n_positions": 32,
                    "is_decoder": True,
                    "add_cross_attention": True,
                    "use_cache": False,
                },
            },
            pixel_values=IMAGES,
            decoder_input_ids=tokens(2, 5),
        ),
        "SAM mask decoder": pretrained(
            "SamModel",
            config={
                "vision_config": {
                    "global_attn_indexes": [1],
                    "window_size": 2,
                    "output_channels": 16,
                    "num_pos_feats": 8,
                    "image_size": 32,
                    "patch_size": 8,
                },
                "prompt_encoder_config": {
                    "hidden_size": 16,
                    "image_size": 32,
                    "patch_size": 8,
                    "mask_input_channels": 4,
                },
                "mask_decoder_config": {
                    "hidden_size": 16,
                    "mlp_dim": 24,
                    "num_attention_heads": 2,
                    "iou_head_hidden_dim": 8,
                },
            },
            pixel_values=normal(1, 3, 32, 32),
            input_points=normal(1, 1, 2, 2).abs() * 8,
        ),
        "CLAP text": pretrained("ClapTextModel", input_ids=IDS),
    },
)

FAMILIES: list[Family] = [*MULTIMODAL]
