"""Vision models of transformers: classifiers, masked modelling, detectors, segmenters, depth."""

from __future__ import annotations

from catalog import Model, transformers_model

# 8 x 8 patches of a 64 x 64 image; the patch projection and the widened MLPs exceed 64 KiB.
VIT = {
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "image_size": 64,
    "patch_size": 8,
}
SWIN = {
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 48,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "mlp_ratio": 4.0,
}
PYRAMID = {"hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 1, 1]}
RESNET_BACKBONE = {
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 32, 64, 128],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage2", "stage3", "stage4"],
}
SWIN_BACKBONE = {
    **SWIN,
    "model_type": "swin",
    "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 2, 4],
    "embed_dim": 16,
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
DETR = {
    "d_model": 64,
    "num_queries": 10,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 256,
    "decoder_ffn_dim": 256,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "backbone_config": {**RESNET_BACKBONE, "out_features": ["stage4"]},
}
DEFORMABLE = {
    **DETR,
    "decoder_layers": 2,
    "encoder_n_points": 2,
    "decoder_n_points": 2,
    "num_feature_levels": 3,
    "backbone_config": RESNET_BACKBONE,
}

CLASSIFIERS = [
    transformers_model("ViTModel", "ViTConfig", VIT),
    transformers_model("ViTForImageClassification", "ViTConfig", VIT),
    transformers_model("ViTForMaskedImageModeling", "ViTConfig", {**VIT, "encoder_stride": 8}),
    transformers_model("DeiTForImageClassificationWithTeacher", "DeiTConfig", VIT),
    transformers_model(
        "BeitForMaskedImageModeling",
        "BeitConfig",
        {**VIT, "vocab_size": 512, "use_relative_position_bias": True, "use_mask_token": True},
    ),
    transformers_model(
        "Data2VecVisionModel",
        "Data2VecVisionConfig",
        {**VIT, "use_shared_relative_position_bias": True},
    ),
    transformers_model("Dinov2Model", "Dinov2Config", VIT),
    transformers_model("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", VIT),
    transformers_model("DINOv3ViTModel", "DINOv3ViTConfig", VIT),
    transformers_model("IJepaModel", "IJepaConfig", VIT),
    transformers_model(
        "ViTMAEForPreTraining",
        "ViTMAEConfig",
        {
            **VIT,
            "decoder_hidden_size": 64,
            "decoder_intermediate_size": 128,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 4,
        },
    ),
    transformers_model("ViTMSNModel", "ViTMSNConfig", VIT),
    transformers_model(
        "VivitModel", "VivitConfig", {**VIT, "num_frames": 4, "tubelet_size": [2, 8, 8]}
    ),
    transformers_model(
        "VideoMAEForPreTraining",
        "VideoMAEConfig",
        {
            **VIT,
            "num_frames": 4,
            "decoder_hidden_size": 64,
            "decoder_intermediate_size": 128,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 4,
        },
    ),
    transformers_model("TimesformerModel", "TimesformerConfig", {**VIT, "num_frames": 4}),
    transformers_model(
        "HieraModel",
        "HieraConfig",
        {
            "embed_dim": 32,
            "image_size": [64, 64],
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 2, 4, 8],
        },
    ),
    transformers_model("SwinModel", "SwinConfig", SWIN),
    transformers_model("SwinForMaskedImageModeling", "SwinConfig", SWIN),
    transformers_model("Swinv2ForImageClassification", "Swinv2Config", SWIN),
    transformers_model("Swin2SRForImageSuperResolution", "Swin2SRConfig", SWIN),
    transformers_model(
        "CvtModel",
        "CvtConfig",
        {"embed_dim": [16, 48, 96], "num_heads": [1, 2, 3], "depth": [1, 2, 3]},
    ),
    transformers_model(
        "PvtModel", "PvtConfig", {**PYRAMID, "image_size": 64, "num_attention_heads": [1, 2, 4, 4]}
    ),
    transformers_model(
        "PvtV2ForImageClassification",
        "PvtV2Config",
        {**PYRAMID, "image_size": 64, "num_attention_heads": [1, 2, 4, 4]},
    ),
    transformers_model("ConvNextModel", "ConvNextConfig", PYRAMID),
    transformers_model("ConvNextV2ForImageClassification", "ConvNextV2Config", PYRAMID),
    transformers_model(
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 16, "hidden_sizes": [32, 64, 128, 256], "depths": [1, 1, 1, 1]},
    ),
    transformers_model(
        "RegNetModel",
        "RegNetConfig",
        {
            "embedding_size": 16,
            "hidden_sizes": [32, 64, 96, 128],
            "depths": [1, 1, 1, 1],
            "groups_width": 16,
        },
    ),
    transformers_model(
        "BitModel",
        "BitConfig",
        {
            "embedding_size": 16,
            "hidden_sizes": [32, 64, 128, 256],
            "depths": [1, 1, 1, 1],
            "num_groups": 4,
        },
    ),
    transformers_model(
        "EfficientNetModel",
        "EfficientNetConfig",
        {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 128},
    ),
    transformers_model("MobileNetV1Model", "MobileNetV1Config", {"depth_multiplier": 0.25}),
    transformers_model("MobileNetV2Model", "MobileNetV2Config", {"depth_multiplier": 0.35}),
    transformers_model(
        "MobileViTModel",
        "MobileViTConfig",
        {
            "hidden_sizes": [32, 48, 64],
            "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 128],
            "image_size": 64,
        },
    ),
    transformers_model("PoolFormerModel", "PoolFormerConfig", PYRAMID),
    transformers_model(
        "FocalNetModel",
        "FocalNetConfig",
        {
            "image_size": 64,
            "embed_dim": 32,
            "depths": [1, 1, 1, 1],
            "focal_levels": [1, 1, 1, 1],
            "focal_windows": [3, 3, 3, 3],
        },
    ),
    transformers_model(
        "LevitForImageClassification",
        "LevitConfig",
        {
            "image_size": 64,
            "hidden_sizes": [32, 64, 96],
            "num_attention_heads": [2, 4, 4],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
    ),
    transformers_model(
        "ImageGPTForCausalImageModeling",
        "ImageGPTConfig",
        {"vocab_size": 513, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4},
    ),
]

DENSE_PREDICTION = [
    transformers_model(
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {**PYRAMID, "num_attention_heads": [1, 2, 4, 4], "decoder_hidden_size": 128},
    ),
    transformers_model(
        "DPTForDepthEstimation",
        "DPTConfig",
        {
            **VIT,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 32, 64, 64],
            "fusion_hidden_size": 32,
        },
    ),
    transformers_model(
        "GLPNForDepthEstimation",
        "GLPNConfig",
        {**PYRAMID, "num_attention_heads": [1, 2, 4, 4], "decoder_hidden_size": 32},
    ),
    transformers_model(
        "DepthAnythingForDepthEstimation",
        "DepthAnythingConfig",
        {
            "backbone_config": {
                **VIT,
                "model_type": "dinov2",
                "num_hidden_layers": 4,
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
                "reshape_hidden_states": False,
                "apply_layernorm": True,
            },
            "reassemble_hidden_size": 96,
            "neck_hidden_sizes": [16, 32, 64, 64],
            "fusion_hidden_size": 32,
            "patch_size": 8,
        },
    ),
    transformers_model(
        "UperNetForSemanticSegmentation",
        "UperNetConfig",
        {
            "backbone_config": SWIN_BACKBONE,
            "hidden_size": 32,
            "auxiliary_in_channels": 64,
            "auxiliary_channels": 16,
        },
    ),
    transformers_model(
        "SamModel",
        "SamConfig",
        {
            "vision_config": {
                "hidden_size": 64,
                "output_channels": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": 64,
                "patch_size": 8,
                "mlp_dim": 320,
                "num_pos_feats": 16,
                "window_size": 4,
                "global_attn_indexes": [1],
            },
            "prompt_encoder_config": {"hidden_size": 32, "image_size": 64, "patch_size": 8},
            "mask_decoder_config": {
                "hidden_size": 32,
                "num_attention_heads": 4,
                "mlp_dim": 64,
                "iou_head_hidden_dim": 32,
            },
        },
    ),
    transformers_model(
        "VitDetModel",
        "VitDetConfig",
        {
            **{k: v for k, v in VIT.items() if k != "intermediate_size"},
            "window_block_indices": [0],
            "window_size": 4,
            "use_relative_position_embeddings": True,
        },
    ),
]

DETECTORS = [
    transformers_model("DetrForObjectDetection", "DetrConfig", DETR),
    transformers_model(
        "DetrForSegmentation",
        "DetrConfig",
        {
            **DETR,
            "encoder_attention_heads": 8,
            "decoder_attention_heads": 8,
            "backbone_config": RESNET_BACKBONE,
        },
    ),
    transformers_model("ConditionalDetrForObjectDetection", "ConditionalDetrConfig", DETR),
    transformers_model("TableTransformerForObjectDetection", "TableTransformerConfig", DETR),
    transformers_model("DeformableDetrForObjectDetection", "DeformableDetrConfig", DEFORMABLE),
    transformers_model("DabDetrForObjectDetection", "DabDetrConfig", {**DETR, "hidden_size": 64}),
    transformers_model(
        "YolosForObjectDetection",
        "YolosConfig",
        {**VIT, "image_size": [64, 64], "num_detection_tokens": 10},
    ),
    transformers_model(
        "RTDetrForObjectDetection",
        "RTDetrConfig",
        {
            "backbone_config": {
                "model_type": "rt_detr_resnet",
                "embedding_size": 16,
                "hidden_sizes": [16, 32, 64, 128],
                "depths": [1, 1, 1, 1],
                "layer_type": "basic",
                "out_features": ["stage2", "stage3", "stage4"],
            },
            "encoder_hidden_dim": 64,
            "encoder_in_channels": [32, 64, 128],
            "encoder_ffn_dim": 128,
            "encoder_attention_heads": 4,
            "d_model": 64,
            "num_queries": 10,
            "decoder_in_channels": [64, 64, 64],
            "decoder_ffn_dim": 128,
            "decoder_layers": 1,
            "decoder_attention_heads": 4,
        },
    ),
]

MODELS: list[Model] = [*CLASSIFIERS, *DENSE_PREDICTION, *DETECTORS]
