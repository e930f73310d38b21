"""Language models of transformers: encoders, decoders, encoder-decoders, state spaces, mixtures."""

from __future__ import annotations

from catalog import Model, transformers_model

# The embedding table is the tensor above 64 KiB (512 x 64 float32 = 128 KiB).
ENCODER = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
DECODER = {**ENCODER, "num_key_value_heads": 2}
GPT = {"vocab_size": 512, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
T5 = {"vocab_size": 512, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
SEQ2SEQ = {
    "vocab_size": 512,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}

ENCODERS = [
    transformers_model("BertModel", "BertConfig", ENCODER),
    transformers_model("BertForPreTraining", "BertConfig", ENCODER),
    transformers_model("BertForSequenceClassification", "BertConfig", ENCODER),
    transformers_model("RobertaForMaskedLM", "RobertaConfig", ENCODER),
    transformers_model(
        "AlbertForMaskedLM", "AlbertConfig", {**ENCODER, "vocab_size": 1024, "embedding_size": 32}
    ),
    transformers_model(
        "DistilBertForQuestionAnswering",
        "DistilBertConfig",
        {"vocab_size": 512, "dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4},
    ),
    transformers_model(
        "ElectraForPreTraining",
        "ElectraConfig",
        {**ENCODER, "vocab_size": 1024, "embedding_size": 32},
    ),
    transformers_model(
        "DebertaModel",
        "DebertaConfig",
        {**ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    ),
    transformers_model(
        "DebertaV2ForMaskedLM",
        "DebertaV2Config",
        {
            **ENCODER,
            "relative_attention": True,
            "position_buckets": 16,
            "pos_att_type": ["p2c", "c2p"],
            "conv_kernel_size": 3,
        },
    ),
    transformers_model(
        "XLNetLMHeadModel",
        "XLNetConfig",
        {"vocab_size": 512, "d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 128},
    ),
    transformers_model(
        "BigBirdForMaskedLM", "BigBirdConfig", {**ENCODER, "block_size": 8, "num_random_blocks": 1}
    ),
    transformers_model(
        "LongformerForMaskedLM", "LongformerConfig", {**ENCODER, "attention_window": [8, 8]}
    ),
    transformers_model(
        "ReformerModelWithLMHead",
        "ReformerConfig",
        {
            "vocab_size": 512,
            "hidden_size": 64,
            "feed_forward_size": 128,
            "num_attention_heads": 2,
            "attention_head_size": 32,
            "attn_layers": ["local", "lsh"],
            "axial_pos_shape": [8, 8],
            "axial_pos_embds_dim": [32, 32],
            "max_position_embeddings": 64,
            "is_decoder": True,
            "num_buckets": 4,
        },
    ),
    transformers_model(
        "FunnelForMaskedLM",
        "FunnelConfig",
        {
            "vocab_size": 512,
            "d_model": 64,
            "n_head": 4,
            "d_head": 16,
            "d_inner": 128,
            "block_sizes": [1, 1],
            "num_decoder_layers": 1,
        },
    ),
    transformers_model("FNetForMaskedLM", "FNetConfig", {**ENCODER, "type_vocab_size": 4}),
    transformers_model(
        "ConvBertModel", "ConvBertConfig", {**ENCODER, "vocab_size": 1024, "embedding_size": 32}
    ),
    transformers_model("MPNetForMaskedLM", "MPNetConfig", ENCODER),
    transformers_model("RoFormerForMaskedLM", "RoFormerConfig", {**ENCODER, "embedding_size": 64}),
    transformers_model(
        "NystromformerModel", "NystromformerConfig", {**ENCODER, "num_landmarks": 8}
    ),
    transformers_model("YosoModel", "YosoConfig", ENCODER),
    transformers_model("SqueezeBertModel", "SqueezeBertConfig", {**ENCODER, "embedding_size": 64}),
    transformers_model(
        "MobileBertModel",
        "MobileBertConfig",
        {
            **ENCODER,
            "vocab_size": 1024,
            "embedding_size": 32,
            "intra_bottleneck_size": 32,
            "true_hidden_size": 32,
        },
    ),
    transformers_model("ModernBertForMaskedLM", "ModernBertConfig", ENCODER),
    transformers_model(
        "ModernBertDecoderForCausalLM",
        "ModernBertDecoderConfig",
        {**ENCODER, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
    ),
    transformers_model("EsmForMaskedLM", "EsmConfig", {**ENCODER, "mask_token_id": 1}),
    transformers_model(
        "XLMWithLMHeadModel",
        "XLMConfig",
        {
            "vocab_size": 512,
            "emb_dim": 64,
            "n_layers": 2,
            "n_heads": 4,
            "n_langs": 2,
            "max_position_embeddings": 64,
        },
    ),
    transformers_model(
        "CanineModel", "CanineConfig", {**ENCODER, "num_hash_buckets": 512, "num_hash_functions": 4}
    ),
    transformers_model(
        "PerceiverForMaskedLM",
        "PerceiverConfig",
        {
            "vocab_size": 262,
            "d_model": 64,
            "d_latents": 64,
            "num_latents": 8,
            "num_blocks": 1,
            "num_self_attends_per_block": 2,
            "num_self_attention_heads": 4,
            "num_cross_attention_heads": 4,
            "max_position_embeddings": 256,
            "qk_channels": 64,
            "v_channels": 64,
        },
    ),
    transformers_model(
        "LukeModel", "LukeConfig", {**ENCODER, "entity_vocab_size": 64, "entity_emb_size": 32}
    ),
    transformers_model("TapasModel", "TapasConfig", ENCODER),
    transformers_model("IBertModel", "IBertConfig", ENCODER),
]

DECODERS = [
    transformers_model("LlamaModel", "LlamaConfig", DECODER),
    transformers_model("LlamaForCausalLM", "LlamaConfig", DECODER),
    transformers_model(
        "LlamaForCausalLM",
        "LlamaConfig",
        {
            **DECODER,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
        label="LlamaForCausalLM-tied-llama3-rope",
    ),
    transformers_model("MistralForCausalLM", "MistralConfig", DECODER),
    transformers_model(
        "MixtralForCausalLM",
        "MixtralConfig",
        {**DECODER, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    transformers_model("Qwen2ForCausalLM", "Qwen2Config", DECODER),
    transformers_model("Qwen3ForCausalLM", "Qwen3Config", {**DECODER, "head_dim": 16}),
    transformers_model(
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {
            **DECODER,
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
        },
    ),
    transformers_model(
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        {
            **DECODER,
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
    ),
    transformers_model(
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {
            **DECODER,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 32,
            "n_routed_experts": 8,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 16,
            "first_k_dense_replace": 1,
        },
    ),
    transformers_model("GemmaForCausalLM", "GemmaConfig", {**DECODER, "head_dim": 16}),
    transformers_model(
        "Gemma3ForCausalLM", "Gemma3TextConfig", {**DECODER, "head_dim": 16, "sliding_window": 16}
    ),
    transformers_model("Phi3ForCausalLM", "Phi3Config", DECODER),
    transformers_model("PhiForCausalLM", "PhiConfig", DECODER),
    transformers_model("CohereForCausalLM", "CohereConfig", DECODER),
    transformers_model("Olmo2ForCausalLM", "Olmo2Config", DECODER),
    transformers_model("StableLmForCausalLM", "StableLmConfig", DECODER),
    transformers_model("Starcoder2ForCausalLM", "Starcoder2Config", DECODER),
    transformers_model("GPT2LMHeadModel", "GPT2Config", GPT),
    transformers_model("GPT2DoubleHeadsModel", "GPT2Config", {**GPT, "num_labels": 1}),
    transformers_model("GPTJForCausalLM", "GPTJConfig", {**GPT, "rotary_dim": 8}),
    transformers_model("GPTBigCodeForCausalLM", "GPTBigCodeConfig", GPT),
    transformers_model("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", GPT),
    transformers_model("CTRLLMHeadModel", "CTRLConfig", {**GPT, "dff": 128}),
    transformers_model("CodeGenForCausalLM", "CodeGenConfig", {**GPT, "rotary_dim": 8}),
    transformers_model(
        "GPTNeoForCausalLM",
        "GPTNeoConfig",
        {
            "vocab_size": 512,
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 64,
        },
    ),
    transformers_model("GPTNeoXForCausalLM", "GPTNeoXConfig", ENCODER),
    transformers_model(
        "GptOssForCausalLM",
        "GptOssConfig",
        {**DECODER, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    transformers_model(
        "BloomForCausalLM",
        "BloomConfig",
        {"vocab_size": 512, "hidden_size": 64, "n_layer": 2, "n_head": 4},
    ),
    transformers_model("FalconForCausalLM", "FalconConfig", ENCODER),
    transformers_model(
        "OPTForCausalLM",
        "OPTConfig",
        {
            "vocab_size": 512,
            "hidden_size": 64,
            "ffn_dim": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 48,
            "do_layer_norm_before": False,
        },
    ),
    transformers_model(
        "MptForCausalLM",
        "MptConfig",
        {"vocab_size": 512, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    ),
    transformers_model(
        "XGLMForCausalLM",
        "XGLMConfig",
        {
            "vocab_size": 512,
            "d_model": 64,
            "ffn_dim": 128,
            "num_layers": 2,
            "attention_heads": 4,
            "max_position_embeddings": 64,
        },
    ),
    transformers_model("BioGptForCausalLM", "BioGptConfig", ENCODER),
]

STATE_SPACES = [
    transformers_model(
        "MambaForCausalLM",
        "MambaConfig",
        {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
    ),
    transformers_model(
        "Mamba2ForCausalLM",
        "Mamba2Config",
        {
            "vocab_size": 512,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "state_size": 8,
            "num_heads": 8,
            "head_dim": 16,
            "n_groups": 2,
        },
    ),
    transformers_model(
        "FalconMambaForCausalLM",
        "FalconMambaConfig",
        {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
    ),
    transformers_model(
        "JambaForCausalLM",
        "JambaConfig",
        {
            **DECODER,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 4,
            "mamba_d_state": 8,
        },
    ),
    transformers_model(
        "BambaForCausalLM",
        "BambaConfig",
        {
            **DECODER,
            "attn_layer_indices": [1],
            "mamba_n_heads": 8,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
        },
    ),
    transformers_model(
        "RecurrentGemmaForCausalLM",
        "RecurrentGemmaConfig",
        {
            **DECODER,
            "lru_width": 64,
            "block_types": ["recurrent", "attention"],
            "attention_window_size": 16,
        },
    ),
    transformers_model(
        "RwkvForCausalLM",
        "RwkvConfig",
        {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "context_length": 32},
    ),
]

ENCODER_DECODERS = [
    transformers_model("T5Model", "T5Config", T5),
    transformers_model("T5ForConditionalGeneration", "T5Config", T5),
    transformers_model("T5EncoderModel", "T5Config", {**T5, "feed_forward_proj": "gated-gelu"}),
    transformers_model("MT5ForConditionalGeneration", "MT5Config", T5),
    transformers_model(
        "SwitchTransformersForConditionalGeneration",
        "SwitchTransformersConfig",
        {**T5, "num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    ),
    transformers_model("LongT5ForConditionalGeneration", "LongT5Config", T5),
    transformers_model("BartForConditionalGeneration", "BartConfig", SEQ2SEQ),
    transformers_model("MBartForConditionalGeneration", "MBartConfig", SEQ2SEQ),
    transformers_model("MarianMTModel", "MarianConfig", {**SEQ2SEQ, "decoder_start_token_id": 0}),
    transformers_model("PegasusForConditionalGeneration", "PegasusConfig", SEQ2SEQ),
    transformers_model("M2M100ForConditionalGeneration", "M2M100Config", SEQ2SEQ),
    transformers_model(
        "LEDForConditionalGeneration",
        "LEDConfig",
        {
            **SEQ2SEQ,
            "attention_window": 8,
            "max_encoder_position_embeddings": 64,
            "max_decoder_position_embeddings": 64,
        },
    ),
    transformers_model(
        "BigBirdPegasusForConditionalGeneration",
        "BigBirdPegasusConfig",
        {**SEQ2SEQ, "block_size": 8},
    ),
    transformers_model(
        "ProphetNetForConditionalGeneration",
        "ProphetNetConfig",
        {
            "vocab_size": 512,
            "hidden_size": 64,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "num_encoder_attention_heads": 4,
            "num_decoder_attention_heads": 4,
            "max_position_embeddings": 64,
        },
    ),
]

MODELS: list[Model] = [*ENCODERS, *DECODERS, *STATE_SPACES, *ENCODER_DECODERS]
