"""Speech, audio and time-series models of transformers."""

from __future__ import annotations

from catalog import Model, transformers_model

# The wav2vec 2.0 family: a convolutional front end, a weight-normed positional convolution.
WAV2VEC2 = {
    "vocab_size": 64,
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "conv_dim": [32, 32, 32],
    "conv_stride": [5, 2, 2],
    "conv_kernel": [10, 3, 3],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "pad_token_id": 0,
}
SPEECH_SEQ2SEQ = {
    "vocab_size": 512,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 320,
    "decoder_ffn_dim": 320,
    "max_source_positions": 64,
    "max_target_positions": 64,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
}
CODEBOOK = {"num_filters": 8, "hidden_size": 64, "codebook_size": 1024, "codebook_dim": 64}

SPEECH = [
    transformers_model("Wav2Vec2Model", "Wav2Vec2Config", WAV2VEC2),
    transformers_model("Wav2Vec2ForCTC", "Wav2Vec2Config", WAV2VEC2),
    transformers_model(
        "Wav2Vec2ForPreTraining",
        "Wav2Vec2Config",
        {
            **WAV2VEC2,
            "codevector_dim": 32,
            "proj_codevector_dim": 32,
            "num_codevectors_per_group": 16,
            "do_stable_layer_norm": True,
            "feat_extract_norm": "layer",
        },
    ),
    transformers_model("HubertModel", "HubertConfig", WAV2VEC2),
    transformers_model("HubertForCTC", "HubertConfig", WAV2VEC2),
    transformers_model("WavLMModel", "WavLMConfig", {**WAV2VEC2, "num_buckets": 32}),
    transformers_model(
        "UniSpeechForPreTraining",
        "UniSpeechConfig",
        {
            **WAV2VEC2,
            "codevector_dim": 32,
            "proj_codevector_dim": 32,
            "num_codevectors_per_group": 16,
            "num_ctc_classes": 64,
        },
    ),
    transformers_model("UniSpeechSatModel", "UniSpeechSatConfig", WAV2VEC2),
    transformers_model(
        "Data2VecAudioModel", "Data2VecAudioConfig", {**WAV2VEC2, "conv_pos_kernel_size": 5}
    ),
    transformers_model(
        "Wav2Vec2ConformerModel",
        "Wav2Vec2ConformerConfig",
        {**WAV2VEC2, "position_embeddings_type": "rotary"},
    ),
    transformers_model(
        "Wav2Vec2BertModel", "Wav2Vec2BertConfig", {**WAV2VEC2, "feature_projection_input_dim": 64}
    ),
    transformers_model("SEWModel", "SEWConfig", {**WAV2VEC2, "squeeze_factor": 2}),
    transformers_model(
        "SEWDModel",
        "SEWDConfig",
        {
            **WAV2VEC2,
            "squeeze_factor": 2,
            "max_position_embeddings": 64,
            "position_buckets": 16,
            "pos_att_type": ["p2c", "c2p"],
        },
    ),
    transformers_model("WhisperModel", "WhisperConfig", SPEECH_SEQ2SEQ),
    transformers_model("WhisperForConditionalGeneration", "WhisperConfig", SPEECH_SEQ2SEQ),
    transformers_model("WhisperForAudioClassification", "WhisperConfig", SPEECH_SEQ2SEQ),
    transformers_model(
        "Speech2TextForConditionalGeneration",
        "Speech2TextConfig",
        {**SPEECH_SEQ2SEQ, "conv_channels": 64, "input_feat_per_channel": 20},
    ),
    transformers_model(
        "MoonshineForConditionalGeneration",
        "MoonshineConfig",
        {
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 128,
            "encoder_num_hidden_layers": 2,
            "decoder_num_hidden_layers": 2,
            "encoder_num_attention_heads": 4,
            "decoder_num_attention_heads": 4,
            "pad_token_id": 0,
        },
    ),
    transformers_model(
        "SpeechT5ForTextToSpeech",
        "SpeechT5Config",
        {
            **WAV2VEC2,
            "vocab_size": 512,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 128,
            "decoder_ffn_dim": 128,
            "speech_decoder_prenet_units": 32,
            "speech_decoder_postnet_units": 32,
            "max_speech_positions": 64,
            "max_text_positions": 64,
        },
    ),
    transformers_model(
        "SpeechT5HifiGan",
        "SpeechT5HifiGanConfig",
        {
            "upsample_initial_channel": 64,
            "upsample_rates": [4, 4],
            "upsample_kernel_sizes": [8, 8],
            "resblock_kernel_sizes": [3, 7],
        },
    ),
    transformers_model(
        "VitsModel",
        "VitsConfig",
        {
            "vocab_size": 512,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "ffn_dim": 128,
            "flow_size": 64,
            "spectrogram_bins": 33,
            "prior_encoder_num_flows": 2,
            "upsample_initial_channel": 64,
            "upsample_rates": [4, 4],
            "upsample_kernel_sizes": [8, 8],
            "resblock_kernel_sizes": [3],
            "resblock_dilation_sizes": [[1, 3, 5]],
            "prior_encoder_num_wavenet_layers": 2,
            "posterior_encoder_num_wavenet_layers": 2,
            "duration_predictor_filter_channels": 64,
        },
    ),
    transformers_model(
        "FastSpeech2ConformerModel",
        "FastSpeech2ConformerConfig",
        {
            "hidden_size": 64,
            "vocab_size": 512,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_linear_units": 128,
            "decoder_linear_units": 128,
            "speech_decoder_postnet_layers": 2,
            "speech_decoder_postnet_units": 64,
            "num_mel_bins": 40,
            "duration_predictor_channels": 64,
            "energy_predictor_channels": 64,
            "pitch_predictor_channels": 64,
            "encoder_kernel_size": 3,
            "decoder_kernel_size": 3,
        },
    ),
]

AUDIO = [
    transformers_model(
        "ASTForAudioClassification",
        "ASTConfig",
        {
            "hidden_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 256,
            "max_length": 64,
            "num_mel_bins": 32,
        },
    ),
    transformers_model(
        "ClapModel",
        "ClapConfig",
        {
            "text_config": {
                "vocab_size": 512,
                "hidden_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "intermediate_size": 128,
                "projection_dim": 32,
            },
            "audio_config": {
                "num_mel_bins": 16,
                "spec_size": 64,
                "window_size": 4,
                "patch_embeds_hidden_size": 16,
                "hidden_size": 64,
                "depths": [1, 1, 1],
                "num_attention_heads": [2, 2, 2],
                "num_hidden_layers": 3,
                "projection_dim": 32,
                "patch_embed_input_channels": 1,
            },
            "projection_dim": 32,
        },
    ),
    transformers_model(
        "EncodecModel",
        "EncodecConfig",
        {**CODEBOOK, "upsampling_ratios": [4, 2], "num_lstm_layers": 1},
    ),
    transformers_model(
        "DacModel",
        "DacConfig",
        {
            "encoder_hidden_size": 16,
            "decoder_hidden_size": 64,
            "downsampling_ratios": [2, 2],
            "n_codebooks": 2,
            "codebook_size": 512,
            "codebook_dim": 8,
        },
    ),
    transformers_model(
        "MimiModel",
        "MimiConfig",
        {
            **CODEBOOK,
            "upsampling_ratios": [4, 2],
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 128,
            "num_quantizers": 4,
            "vector_quantization_hidden_dimension": 64,
            "upsample_groups": 64,
        },
    ),
    transformers_model(
        "MusicgenForCausalLM",
        "MusicgenDecoderConfig",
        {
            "vocab_size": 512,
            "hidden_size": 64,
            "ffn_dim": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_codebooks": 2,
        },
    ),
    transformers_model(
        "Pop2PianoForConditionalGeneration",
        "Pop2PianoConfig",
        {
            "vocab_size": 512,
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 128,
            "num_layers": 2,
            "num_heads": 4,
            "composer_vocab_size": 8,
        },
    ),
]

TIME_SERIES = [
    transformers_model(
        "TimeSeriesTransformerModel",
        "TimeSeriesTransformerConfig",
        {
            "prediction_length": 8,
            "d_model": 64,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_ffn_dim": 512,
            "decoder_ffn_dim": 512,
        },
    ),
    transformers_model(
        "AutoformerModel",
        "AutoformerConfig",
        {
            "prediction_length": 8,
            "d_model": 64,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_ffn_dim": 512,
            "decoder_ffn_dim": 512,
        },
    ),
    transformers_model(
        "InformerModel",
        "InformerConfig",
        {
            "prediction_length": 8,
            "d_model": 64,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_ffn_dim": 512,
            "decoder_ffn_dim": 512,
        },
    ),
    transformers_model(
        "PatchTSTForPretraining",
        "PatchTSTConfig",
        {
            "num_input_channels": 4,
            "context_length": 64,
            "patch_length": 8,
            "patch_stride": 8,
            "d_model": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "ffn_dim": 512,
        },
    ),
    transformers_model(
        "PatchTSMixerModel",
        "PatchTSMixerConfig",
        {
            "num_input_channels": 4,
            "context_length": 128,
            "patch_length": 8,
            "patch_stride": 4,
            "d_model": 128,
            "num_layers": 2,
            "expansion_factor": 4,
        },
    ),
]

MODELS: list[Model] = [*SPEECH, *AUDIO, *TIME_SERIES]
