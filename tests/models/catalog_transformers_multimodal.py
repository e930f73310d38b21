"""Models of transformers that join two modalities: contrastive, captioning, vision-language."""

from __future__ import annotations

from catalog import Model, transformers_model

TEXT = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
LLAMA = {**TEXT, "model_type": "llama", "num_key_value_heads": 2}
QWEN2 = {**TEXT, "model_type": "qwen2", "num_key_value_heads": 2}
CLIP = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 32}
BLIP2 = {
    "vision_config": VISION,
    "qformer_config": {**TEXT, "encoder_hidden_size": 64, "cross_attention_frequency": 1},
    "text_config": {
        "model_type": "opt",
        "vocab_size": 512,
        "hidden_size": 64,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 64,
    },
    "num_query_tokens": 4,
    "image_text_hidden_size": 32,
    "image_token_index": 5,
}
OWL = {
    "text_config": {**TEXT, "max_position_embeddings": 16},
    "vision_config": VISION,
    "projection_dim": 32,
}
QWEN_VISION = {
    "depth": 2,
    "embed_dim": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 4,
    "mlp_ratio": 2,
    "patch_size": 8,
    "out_hidden_size": 64,
}
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}

CONTRASTIVE = [
    transformers_model("CLIPModel", "CLIPConfig", CLIP),
    transformers_model("CLIPVisionModelWithProjection", "CLIPVisionConfig", VISION),
    transformers_model(
        "CLIPSegForImageSegmentation",
        "CLIPSegConfig",
        {
            **CLIP,
            "extract_layers": [0, 1],
            "reduce_dim": 16,
            "decoder_num_attention_heads": 4,
            "decoder_intermediate_size": 32,
        },
    ),
    transformers_model("ChineseCLIPModel", "ChineseCLIPConfig", CLIP),
    transformers_model(
        "AltCLIPModel", "AltCLIPConfig", {**CLIP, "text_config": {**TEXT, "project_dim": 32}}
    ),
    transformers_model("SiglipModel", "SiglipConfig", CLIP),
    transformers_model(
        "Siglip2Model",
        "Siglip2Config",
        {"text_config": TEXT, "vision_config": {**VISION, "num_patches": 16}},
    ),
    transformers_model(
        "AlignModel",
        "AlignConfig",
        {
            "text_config": TEXT,
            "vision_config": {
                "width_coefficient": 0.25,
                "depth_coefficient": 0.25,
                "hidden_dim": 64,
            },
            "projection_dim": 64,
        },
    ),
    transformers_model(
        "GroupViTModel",
        "GroupViTConfig",
        {
            "text_config": TEXT,
            "vision_config": {
                **VISION,
                "depths": [1, 1, 1],
                "num_group_tokens": [8, 4, 0],
                "num_output_groups": [8, 4, 1],
            },
            "projection_dim": 32,
            "projection_intermediate_dim": 64,
        },
    ),
    transformers_model(
        "FlavaModel",
        "FlavaConfig",
        {
            "text_config": TEXT,
            "image_config": VISION,
            "multimodal_config": {**VISION, "num_hidden_layers": 1},
            "hidden_size": 64,
            "projection_dim": 32,
        },
    ),
    transformers_model("OwlViTForObjectDetection", "OwlViTConfig", OWL),
    transformers_model("Owlv2ForObjectDetection", "Owlv2Config", OWL),
    transformers_model(
        "BridgeTowerModel",
        "BridgeTowerConfig",
        {
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "text_config": TEXT,
            "vision_config": {**VISION, "init_layernorm_from_vision_encoder": False},
        },
    ),
]

CAPTIONING = [
    transformers_model(
        "BlipForConditionalGeneration",
        "BlipConfig",
        {
            "text_config": {
                **TEXT,
                "encoder_hidden_size": 64,
                "projection_dim": 32,
                "sep_token_id": 2,
            },
            "vision_config": VISION,
            "projection_dim": 32,
        },
    ),
    transformers_model("Blip2Model", "Blip2Config", BLIP2),
    transformers_model("Blip2ForConditionalGeneration", "Blip2Config", BLIP2),
    transformers_model("Blip2ForImageTextRetrieval", "Blip2Config", BLIP2),
    transformers_model("InstructBlipForConditionalGeneration", "InstructBlipConfig", BLIP2),
    transformers_model("GitForCausalLM", "GitConfig", {**TEXT, "vision_config": VISION}),
    transformers_model(
        "Pix2StructForConditionalGeneration",
        "Pix2StructConfig",
        {
            "text_config": {
                "vocab_size": 512,
                "hidden_size": 64,
                "d_kv": 16,
                "d_ff": 128,
                "num_layers": 2,
                "num_heads": 4,
            },
            "vision_config": {
                **VISION,
                "d_ff": 128,
                "d_kv": 16,
                "patch_embed_hidden_size": 192,
                "seq_len": 16,
            },
        },
    ),
    transformers_model(
        "ViltForQuestionAnswering", "ViltConfig", {**TEXT, "image_size": 32, "patch_size": 8}
    ),
    transformers_model("VisualBertModel", "VisualBertConfig", {**TEXT, "visual_embedding_dim": 32}),
    transformers_model(
        "LayoutLMModel", "LayoutLMConfig", {**TEXT, "max_2d_position_embeddings": 64}
    ),
    transformers_model(
        "LayoutLMv3Model",
        "LayoutLMv3Config",
        {
            **TEXT,
            "max_2d_position_embeddings": 64,
            "coordinate_size": 8,
            "shape_size": 16,
            "input_size": 32,
            "patch_size": 8,
        },
    ),
    transformers_model(
        "LxmertModel",
        "LxmertConfig",
        {
            "vocab_size": 512,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "l_layers": 1,
            "x_layers": 1,
            "r_layers": 1,
            "visual_feat_dim": 32,
            "max_position_embeddings": 64,
        },
    ),
]

VISION_LANGUAGE = [
    transformers_model(
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {
            "text_config": LLAMA,
            "vision_config": {**VISION, "model_type": "clip_vision_model", "projection_dim": 32},
            "image_token_index": 5,
        },
    ),
    transformers_model(
        "LlavaNextForConditionalGeneration",
        "LlavaNextConfig",
        {
            "text_config": LLAMA,
            "vision_config": {**VISION, "model_type": "clip_vision_model", "projection_dim": 32},
            "image_token_index": 5,
            "image_grid_pinpoints": [[32, 32]],
        },
    ),
    transformers_model(
        "PaliGemmaForConditionalGeneration",
        "PaliGemmaConfig",
        {
            "text_config": {
                **TEXT,
                "model_type": "gemma",
                "head_dim": 16,
                "num_key_value_heads": 2,
            },
            "vision_config": {
                **VISION,
                "model_type": "siglip_vision_model",
                "projection_dim": 64,
                "vision_use_head": False,
            },
            "image_token_index": 5,
            "projection_dim": 64,
        },
    ),
    transformers_model(
        "Idefics2ForConditionalGeneration",
        "Idefics2Config",
        {
            "vision_config": VISION,
            "perceiver_config": {
                "hidden_size": 64,
                "resampler_n_latents": 4,
                "resampler_depth": 1,
                "resampler_n_heads": 2,
                "resampler_head_dim": 16,
                "num_key_value_heads": 1,
            },
            "text_config": {**LLAMA, "model_type": "mistral"},
            "image_token_id": 5,
        },
    ),
    transformers_model(
        "Idefics3ForConditionalGeneration",
        "Idefics3Config",
        {"vision_config": VISION, "text_config": LLAMA, "image_token_id": 5},
    ),
    transformers_model(
        "Qwen2VLForConditionalGeneration",
        "Qwen2VLConfig",
        {
            "text_config": {**QWEN2, "model_type": "qwen2_vl_text", "rope_parameters": MROPE},
            "vision_config": QWEN_VISION,
        },
    ),
    transformers_model(
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLConfig",
        {
            "text_config": {**QWEN2, "model_type": "qwen2_5_vl_text", "rope_parameters": MROPE},
            "vision_config": {**QWEN_VISION, "fullatt_block_indexes": [1]},
        },
    ),
    transformers_model(
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        {
            "text_config": {**TEXT, "head_dim": 16, "num_key_value_heads": 2},
            "vision_config": VISION,
            "mm_tokens_per_image": 4,
        },
    ),
    transformers_model(
        "InternVLForConditionalGeneration",
        "InternVLConfig",
        {
            "text_config": QWEN2,
            "vision_config": {**VISION, "image_size": [32, 32], "patch_size": [8, 8]},
            "image_token_id": 5,
        },
    ),
    transformers_model(
        "MllamaForConditionalGeneration",
        "MllamaConfig",
        {
            "vision_config": {
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_global_layers": 1,
                "attention_heads": 4,
                "image_size": 32,
                "patch_size": 8,
                "intermediate_layers_indices": [0],
                "vision_output_dim": 128,
                "supported_aspect_ratios": [[1, 1], [1, 2]],
                "max_num_tiles": 2,
            },
            "text_config": {**TEXT, "num_key_value_heads": 2, "cross_attention_layers": [1]},
        },
    ),
    transformers_model(
        "ChameleonForConditionalGeneration",
        "ChameleonConfig",
        {
            **TEXT,
            "num_key_value_heads": 2,
            "vocabulary_map": {"<image>": 5},
            "vq_config": {
                "embed_dim": 32,
                "num_embeddings": 64,
                "base_channels": 32,
                "channel_multiplier": [1, 2],
                "num_res_blocks": 1,
                "latent_channels": 32,
                "resolution": 32,
            },
        },
    ),
    transformers_model(
        "FuyuForCausalLM",
        "FuyuConfig",
        {
            **TEXT,
            "image_size": 32,
            "patch_size": 8,
            "text_config": {**TEXT, "model_type": "persimmon"},
        },
    ),
    transformers_model(
        "UdopForConditionalGeneration",
        "UdopConfig",
        {
            "vocab_size": 512,
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 128,
            "num_layers": 2,
            "num_heads": 4,
            "max_2d_position_embeddings": 64,
            "image_size": 32,
            "patch_size": 8,
        },
    ),
    transformers_model(
        "Kosmos2ForConditionalGeneration",
        "Kosmos2Config",
        {
            "text_config": {
                "vocab_size": 512,
                "embed_dim": 64,
                "layers": 2,
                "ffn_dim": 128,
                "attention_heads": 4,
                "max_position_embeddings": 64,
            },
            "vision_config": VISION,
            "latent_query_num": 4,
        },
    ),
]

MODELS: list[Model] = [*CONTRASTIVE, *CAPTIONING, *VISION_LANGUAGE]
