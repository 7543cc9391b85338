"""Vision models of `transformers`: classifiers, backbones, detectors, segmenters, depth, video."""

from __future__ import annotations

from typing import Any

from architectures.family import Family, families, normal, tokens
from architectures.transformers_family import pretrained

IMAGE: dict[str, Any] = {"pixel_values": normal(2, 3, 32, 32)}
LARGE: dict[str, Any] = {"pixel_values": normal(1, 3, 64, 64)}

CLASSIFIERS = families(
    "vision",
    {
        "ViT": pretrained("ViTForImageClassification", **IMAGE),
        "DeiT": pretrained("DeiTForImageClassificationWithTeacher", **IMAGE),
        "BEiT": pretrained(
            "BeitForImageClassification", config={"use_relative_position_bias": True}, **IMAGE
        ),
        "Swin": pretrained(
            "SwinForImageClassification",
            config={"embed_dim": 8, "depths": [2, 1], "num_heads": [2, 4], "window_size": 2, "patch_size": 4},
            **IMAGE,
        ),
        "Swin v2": pretrained(
            "Swinv2ForImageClassification",
            config={"embed_dim": 8, "depths": [2, 1], "num_heads": [2, 4], "window_size": 2, "patch_size": 4},
            **IMAGE,
        ),
        "ConvNeXt": pretrained("ConvNextForImageClassification", **IMAGE),
        "ConvNeXt v2": pretrained("ConvNextV2ForImageClassification", **IMAGE),
        "ResNet": pretrained("ResNetForImageClassification", config={"embedding_size": 8}, **IMAGE),
        "RegNet": pretrained(
            "RegNetForImageClassification", config={"embedding_size": 8, "groups_width": 4}, **IMAGE
        ),
        "MobileNet v1": pretrained(
            "MobileNetV1ForImageClassification", config={"depth_multiplier": 0.25, "min_depth": 4}, **IMAGE
        ),
        "MobileNet v2": pretrained(
            "MobileNetV2ForImageClassification", config={"depth_multiplier": 0.25}, **IMAGE
        ),
        "MobileViT": pretrained(
            "MobileViTForImageClassification",
            config={
                "hidden_sizes": [16, 20, 24],
                "neck_hidden_sizes": [8, 8, 12, 16, 16, 20, 24],
                "image_size": 128,
                "patch_size": 2,
            },
            pixel_values=normal(1, 3, 128, 128),
        ),
        "MobileViT v2": pretrained(
            "MobileViTV2ForImageClassification",
            config={"width_multiplier": 0.25, "image_size": 64, "patch_size": 2},
            **LARGE,
        ),
        "EfficientNet": pretrained(
            "EfficientNetForImageClassification",
            config={
                "width_coefficient": 0.25,
                "depth_coefficient": 0.3,
                "hidden_dim": 320,
                "depth_divisor": 4,
            },
            **IMAGE,
        ),
        "PoolFormer": pretrained("PoolFormerForImageClassification", **LARGE),
        "PVT": pretrained(
            "PvtForImageClassification",
            config={"num_attention_heads": [1, 2, 2, 4], "image_size": 64},
            **LARGE,
        ),
        "PVT v2": pretrained(
            "PvtV2ForImageClassification",
            config={"num_attention_heads": [1, 2, 2, 4], "mlp_ratios": [2, 2, 2, 2], "image_size": 64},
            **LARGE,
        ),
        "FocalNet": pretrained(
            "FocalNetForImageClassification",
            config={
                "embed_dim": 8,
                "depths": [1, 1],
                "focal_levels": [2, 2],
                "focal_windows": [3, 3],
                "hidden_sizes": [8, 16],
                "patch_size": 4,
            },
            **IMAGE,
        ),
        "DINOv2": pretrained("Dinov2ForImageClassification", **IMAGE),
        "DINOv2 with registers": pretrained("Dinov2WithRegistersForImageClassification", **IMAGE),
        "DINOv3 ViT": pretrained("DINOv3ViTModel", **IMAGE),
        "I-JEPA": pretrained("IJepaForImageClassification", **IMAGE),
        "LeViT": pretrained(
            "LevitForImageClassification",
            config={
                "hidden_sizes": [16, 24, 32],
                "num_attention_heads": [2, 3, 4],
                "depths": [1, 1, 1],
                "key_dim": [8, 8, 8],
                "image_size": 128,
                "patch_size": 16,
            },
            pixel_values=normal(1, 3, 128, 128),
        ),
        "CvT": pretrained(
            "CvtForImageClassification",
            config={"embed_dim": [8, 16, 24], "num_heads": [1, 2, 3], "depth": [1, 2, 3]},
            **LARGE,
        ),
        "BiT": pretrained(
            "BitForImageClassification", config={"embedding_size": 8, "num_groups": 4}, **IMAGE
        ),
        "Hiera": pretrained(
            "HieraForImageClassification",
            config={
                "embed_dim": 8,
                "depths": [1, 1, 1],
                "num_heads": [1, 2, 4],
                "image_size": [64, 64],
                "mask_unit_size": [4, 4],
                "query_stride": [2, 2],
                "num_query_pool": 2,
                "patch_size": [7, 7],
            },
            **LARGE,
        ),
        "SwiftFormer": pretrained(
            "SwiftFormerForImageClassification", config={"embed_dims": [8, 12, 16, 24]}, **IMAGE
        ),
        "ViT-MSN": pretrained("ViTMSNForImageClassification", **IMAGE),
        "TextNet": pretrained(
            "TextNetForImageClassification",
            config={
                "stem_out_channels": 8,
                "conv_layer_kernel_sizes": [[[3, 3]], [[3, 1]], [[1, 3]], [[3, 3]]],
                "conv_layer_strides": [[1], [2], [2], [2]],
                "hidden_sizes": [8, 8, 12, 12, 16],
            },
            **LARGE,
        ),
        "HGNet v2": pretrained(
            "HGNetV2ForImageClassification",
            config={
                "embedding_size": 8,
                "hidden_sizes": [8, 12, 16, 24],
                "stem_channels": [3, 4, 8],
                "stage_in_channels": [8, 8, 12, 16],
                "stage_mid_channels": [4, 4, 4, 4],
                "stage_out_channels": [8, 12, 16, 24],
                "stage_num_blocks": [1, 1, 1, 1],
            },
            **LARGE,
        ),
    },
)

DENSE = families(
    "vision: detection, segmentation, depth",
    {
        "SegFormer": pretrained(
            "SegformerForSemanticSegmentation",
            config={
                "num_attention_heads": [1, 2, 2, 4],
                "decoder_hidden_size": 16,
                "mlp_ratios": [2, 2, 2, 2],
            },
            **LARGE,
        ),
        "ViTDet": pretrained(
            "VitDetModel",
            config={"window_block_indices": [0], "window_size": 2, "residual_block_indices": [1]},
            **IMAGE,
        ),
        "YOLOS": pretrained(
            "YolosForObjectDetection", config={"image_size": [32, 32], "num_detection_tokens": 3}, **IMAGE
        ),
        "DETR": pretrained(
            "DetrForObjectDetection",
            config={
                "backbone_config": {
                    "model_type": "resnet",
                    "embedding_size": 8,
                    "hidden_sizes": [8, 12, 16, 24],
                    "depths": [1, 1, 1, 1],
                    "layer_type": "basic",
                    "out_features": ["stage4"],
                },
                "use_timm_backbone": False,
                "backbone": None,
            },
            **LARGE,
        ),
        "Conditional DETR": pretrained(
            "ConditionalDetrForObjectDetection",
            config={
                "backbone_config": {
                    "model_type": "resnet",
                    "embedding_size": 8,
                    "hidden_sizes": [8, 12, 16, 24],
                    "depths": [1, 1, 1, 1],
                    "layer_type": "basic",
                    "out_features": ["stage4"],
                },
                "use_timm_backbone": False,
                "backbone": None,
            },
            **LARGE,
        ),
        "DPT": pretrained(
            "DPTForDepthEstimation",
            config={
                "num_hidden_layers": 4,
                "backbone_out_indices": [0, 1, 2, 3],
                "is_hybrid": False,
                "neck_hidden_sizes": [8, 8, 12, 12],
                "fusion_hidden_size": 8,
            },
            **IMAGE,
        ),
        "GLPN": pretrained(
            "GLPNForDepthEstimation",
            config={
                "num_attention_heads": [1, 2, 2, 4],
                "decoder_hidden_size": 8,
                "mlp_ratios": [2, 2, 2, 2],
            },
            **LARGE,
        ),
        "Depth Anything": pretrained(
            "DepthAnythingForDepthEstimation",
            config={
                "backbone_config": {
                    "model_type": "dinov2",
                    "hidden_size": 32,
                    "num_hidden_layers": 4,
                    "num_attention_heads": 4,
                    "image_size": 32,
                    "patch_size": 8,
                    "out_indices": [1, 2, 3, 4],
                    "reshape_hidden_states": False,
                },
                "patch_size": 8,
                "reassemble_hidden_size": 32,
                "neck_hidden_sizes": [8, 8, 12, 12],
                "fusion_hidden_size": 8,
                "head_hidden_size": 8,
            },
            **IMAGE,
        ),
        "UPerNet": pretrained(
            "UperNetForSemanticSegmentation",
            config={
                "backbone_config": {
                    "model_type": "convnext",
                    "hidden_sizes": [8, 12, 16, 24],
                    "depths": [1, 1, 1, 1],
                    "out_features": ["stage1", "stage2", "stage3", "stage4"],
                },
                "hidden_size": 8,
                "auxiliary_in_channels": 16,
                "auxiliary_channels": 8,
            },
            **LARGE,
        ),
        "SuperPoint": pretrained(
            "SuperPointForKeypointDetection",
            config={
                "encoder_hidden_sizes": [8, 8, 12, 12],
                "decoder_hidden_size": 16,
                "keypoint_decoder_dim": 65,
                "descriptor_decoder_dim": 16,
            },
            **LARGE,
        ),
        "Swin2SR": pretrained(
            "Swin2SRForImageSuperResolution",
            config={
                "embed_dim": 16,
                "depths": [2, 2],
                "num_heads": [2, 2],
                "window_size": 4,
                "image_size": 16,
                "patch_size": 1,
            },
            pixel_values=normal(1, 3, 16, 16),
        ),
        "SAM vision encoder": pretrained(
            "SamVisionModel",
            config={"global_attn_indexes": [1], "window_size": 2, "output_channels": 12, "mlp_dim": 40},
            pixel_values=normal(1, 3, 32, 32),
        ),
        "ViTPose": pretrained(
            "VitPoseForPoseEstimation",
            config={
                "backbone_config": {
                    "model_type": "vitpose_backbone",
                    "hidden_size": 32,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "image_size": [32, 32],
                    "patch_size": [8, 8],
                },
                "use_simple_decoder": True,
            },
            **IMAGE,
        ),
        "SegGPT": pretrained(
            "SegGptForImageSegmentation",
            config={
                "image_size": [64, 32],
                "pretrain_image_size": 32,
                "patch_size": 8,
                "decoder_hidden_size": 8,
                "intermediate_hidden_state_indices": [0, 1],
                "merge_index": 0,
                "mlp_dim": 40,
            },
            pixel_values=normal(1, 3, 32, 32),
            prompt_pixel_values=normal(1, 3, 32, 32),
            prompt_masks=normal(1, 3, 32, 32),
        ),
        "RT-DETR": pretrained(
            "RTDetrForObjectDetection",
            config={
                "backbone_config": {
                    "model_type": "rt_detr_resnet",
                    "embedding_size": 8,
                    "hidden_sizes": [8, 12, 16, 24],
                    "depths": [1, 1, 1, 1],
                    "layer_type": "basic",
                    "out_features": ["stage2", "stage3", "stage4"],
                },
                "encoder_hidden_dim": 32,
                "encoder_in_channels": [12, 16, 24],
                "decoder_in_channels": [32, 32, 32],
                "d_model": 32,
                "num_denoising": 0,
                "num_queries": 5,
            },
            **LARGE,
        ),
        "MaskFormer Swin": pretrained(
            "MaskFormerSwinModel",
            config={"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "patch_size": 4},
            **IMAGE,
        ),
    },
)

VIDEO = families(
    "vision: video and generation",
    {
        "TimeSformer": pretrained(
            "TimesformerForVideoClassification",
            config={"num_frames": 4},
            pixel_values=normal(1, 4, 3, 32, 32),
        ),
        "VideoMAE": pretrained(
            "VideoMAEForVideoClassification", config={"num_frames": 4}, pixel_values=normal(1, 4, 3, 32, 32)
        ),
        "ViViT": pretrained(
            "VivitForVideoClassification",
            config={"num_frames": 4, "tubelet_size": [2, 8, 8]},
            pixel_values=normal(1, 4, 3, 32, 32),
        ),
        "V-JEPA 2": pretrained(
            "VJEPA2Model",
            config={
                "frames_per_clip": 4,
                "crop_size": 32,
                "pred_hidden_size": 24,
                "pred_num_attention_heads": 2,
                "pred_num_hidden_layers": 1,
                "pred_num_mask_tokens": 2,
            },
            pixel_values_videos=normal(1, 4, 3, 32, 32),
        ),
        "ImageGPT": pretrained("ImageGPTForImageClassification", input_ids=tokens(2, 8)),
        "ViT-MAE decoder": pretrained(
            "ViTMAEForPreTraining",
            config={
                "decoder_hidden_size": 24,
                "decoder_num_attention_heads": 2,
                "decoder_num_hidden_layers": 1,
                "decoder_intermediate_size": 40,
            },
            noise=normal(2, 16),
            **IMAGE,
        ),
    },
)

FAMILIES: list[Family] = [*CLASSIFIERS, *DENSE, *VIDEO]
