"""diffusers' denoisers and autoencoders at a few channels."""

from __future__ import annotations

from typing import Any

import torch
from catalog import Model


def diffusers_model(name: str, **options: Any) -> Model:
    """A row that builds ``diffusers.<name>(**options)``."""

    def build() -> torch.nn.Module:
        import diffusers

        model: torch.nn.Module = getattr(diffusers, name)(**options)
        return model

    return Model(name, build)


# Group norms inside the blocks have 32 groups unless told otherwise.
CHANNELS = {"block_out_channels": (32, 64), "norm_num_groups": 8}
DIT = {"num_attention_heads": 4, "attention_head_dim": 16, "num_layers": 2}

UNETS = [
    diffusers_model(
        "UNet2DModel",
        sample_size=16,
        layers_per_block=1,
        **CHANNELS,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    ),
    diffusers_model(
        "UNet2DConditionModel",
        sample_size=16,
        layers_per_block=1,
        **CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
    ),
    diffusers_model(
        "UNet3DConditionModel",
        sample_size=16,
        layers_per_block=1,
        **CHANNELS,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=32,
        attention_head_dim=8,
    ),
    diffusers_model(
        "UNetMotionModel",
        sample_size=16,
        layers_per_block=1,
        **CHANNELS,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        cross_attention_dim=32,
        num_attention_heads=2,
    ),
    diffusers_model(
        "UNet1DModel", sample_size=64, block_out_channels=(32, 64, 64), extra_in_channels=16
    ),
    diffusers_model(
        "ControlNetModel",
        layers_per_block=1,
        **CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        conditioning_embedding_out_channels=(8, 16),
    ),
]

TRANSFORMERS = [
    diffusers_model("DiTTransformer2DModel", **DIT, sample_size=16, norm_num_groups=8),
    diffusers_model(
        "PixArtTransformer2DModel",
        **DIT,
        sample_size=16,
        norm_num_groups=8,
        cross_attention_dim=64,
        caption_channels=32,
    ),
    diffusers_model(
        "SD3Transformer2DModel",
        **DIT,
        sample_size=16,
        joint_attention_dim=32,
        caption_projection_dim=64,
        pooled_projection_dim=32,
        pos_embed_max_size=32,
    ),
    diffusers_model(
        "FluxTransformer2DModel",
        **{**DIT, "num_layers": 1},
        num_single_layers=1,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    ),
    diffusers_model(
        "AuraFlowTransformer2DModel",
        sample_size=16,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=64,
        pos_embed_max_size=64,
    ),
    diffusers_model(
        "HunyuanDiT2DModel",
        in_channels=4,
        num_attention_heads=4,
        attention_head_dim=16,
        hidden_size=64,
        num_layers=2,
        sample_size=16,
        patch_size=2,
        cross_attention_dim=32,
        cross_attention_dim_t5=32,
        pooled_projection_dim=32,
        text_len=8,
        text_len_t5=8,
    ),
    diffusers_model(
        "CogVideoXTransformer3DModel",
        **DIT,
        time_embed_dim=32,
        text_embed_dim=32,
        sample_width=8,
        sample_height=8,
        sample_frames=5,
    ),
    diffusers_model("WanTransformer3DModel", **DIT, text_dim=32, freq_dim=32, ffn_dim=256),
    diffusers_model(
        "SanaTransformer2DModel",
        **DIT,
        num_cross_attention_heads=4,
        cross_attention_head_dim=16,
        cross_attention_dim=64,
        caption_channels=32,
        sample_size=16,
    ),
    diffusers_model("PriorTransformer", **DIT, embedding_dim=96, num_embeddings=200),
    diffusers_model(
        "UVit2DModel",
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        encoder_hidden_size=32,
        cond_embed_dim=32,
        block_out_channels=64,
        vocab_size=512,
        codebook_size=500,
    ),
]

AUTOENCODERS = [
    diffusers_model(
        "AutoencoderKL",
        **CHANNELS,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
    ),
    diffusers_model(
        "AsymmetricAutoencoderKL",
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        down_block_out_channels=(32, 64),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        up_block_out_channels=(32, 64),
    ),
    diffusers_model(
        "AutoencoderTiny",
        encoder_block_out_channels=(48, 48),
        decoder_block_out_channels=(48, 48),
        num_encoder_blocks=(1, 2),
        num_decoder_blocks=(2, 1),
    ),
    diffusers_model(
        "AutoencoderKLTemporalDecoder",
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
    ),
    diffusers_model(
        "AutoencoderKLCogVideoX",
        **CHANNELS,
        layers_per_block=1,
        down_block_types=("CogVideoXDownBlock3D", "CogVideoXDownBlock3D"),
        up_block_types=("CogVideoXUpBlock3D", "CogVideoXUpBlock3D"),
    ),
    diffusers_model(
        "AutoencoderOobleck",
        encoder_hidden_size=48,
        decoder_channels=48,
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 2],
        decoder_input_channels=8,
    ),
    diffusers_model(
        "AutoencoderDC",
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(32, 64),
        decoder_block_out_channels=(32, 64),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        latent_channels=8,
    ),
    diffusers_model(
        "VQModel",
        **CHANNELS,
        num_vq_embeddings=512,
        vq_embed_dim=48,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
    ),
]

MODELS: list[Model] = [*UNETS, *TRANSFORMERS, *AUTOENCODERS]
