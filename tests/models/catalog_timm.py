"""Image models of timm, one or two for each family; depth and width cut where the family allows."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from catalog import Model


def timm_model(name: str, **options: Any) -> Model:
    """A row that builds ``timm.create_model(name, num_classes=16, **options)``."""

    def build() -> torch.nn.Module:
        import timm

        model: torch.nn.Module = timm.create_model(name, num_classes=16, **options)
        return model

    return Model(name, build)


def timm_class(name: str, module: str, *, label: str | None = None, **options: Any) -> Model:
    """A row that builds a class, for families whose entry points fix what has to be cut."""

    def build() -> torch.nn.Module:
        home = importlib.import_module(f"timm.models.{module}")
        model: torch.nn.Module = getattr(home, name)(num_classes=16, **options)
        return model

    return Model(label or name, build)


VIT = {"img_size": 64, "embed_dim": 96, "depth": 2, "num_heads": 4}
STAGES = {"depths": (1, 1, 1, 1), "dims": (16, 32, 64, 128)}

TRANSFORMERS = [
    timm_model("vit_tiny_patch16_224", **VIT),
    timm_model("vit_base_patch16_224", **VIT, weight_init="jax"),
    timm_model("vit_base_patch16_clip_224", **VIT, weight_init="moco"),
    timm_model("vit_base_patch14_dinov2", **{**VIT, "img_size": 56}),
    timm_model("vit_relpos_small_patch16_224", **VIT),
    timm_model("vit_srelpos_small_patch16_224", **VIT),
    timm_model("samvit_base_patch16", **VIT, global_attn_indexes=(1,)),
    timm_model("naflexvit_base_patch16_gap", embed_dim=96, depth=2, num_heads=4),
    timm_model("deit_tiny_distilled_patch16_224", **VIT),
    timm_model("deit3_small_patch16_224", **VIT),
    timm_model("beit_base_patch16_224", **VIT),
    timm_model("beitv2_base_patch16_224", **VIT),
    timm_model("eva02_tiny_patch14_224", **{**VIT, "img_size": 56}),
    timm_model("vit_base_patch16_rope_224", **VIT),
    timm_model("cait_xxs24_224", **VIT),
    timm_model("convit_tiny", **VIT),
    timm_model("crossvit_9_240", embed_dim=(48, 96), num_heads=(2, 4)),
    timm_model("xcit_nano_12_p16_224", **VIT),
    timm_model("pit_ti_224", img_size=64, base_dims=(16, 16, 16), depth=(1, 1, 1), heads=(2, 4, 8)),
    timm_model(
        "swin_tiny_patch4_window7_224",
        img_size=64,
        window_size=4,
        embed_dim=48,
        depths=(2, 2),
        num_heads=(2, 4),
    ),
    timm_model(
        "swinv2_tiny_window8_256",
        img_size=64,
        window_size=4,
        embed_dim=48,
        depths=(2, 2),
        num_heads=(2, 4),
    ),
    timm_model("swinv2_cr_tiny_224", img_size=64, embed_dim=48, depths=(2, 2), num_heads=(2, 4)),
    timm_model("twins_svt_small", img_size=64, embed_dims=(32, 64, 96, 128), depths=(1, 1, 1, 1)),
    timm_model("hiera_tiny_224", img_size=(64, 64), embed_dim=32, stages=(1, 1, 1, 1)),
    timm_class("TNT", "tnt", img_size=64, embed_dim=96, inner_dim=24, depth=2, num_heads_outer=4),
    timm_class(
        "TNT",
        "tnt",
        img_size=64,
        embed_dim=96,
        inner_dim=24,
        depth=2,
        num_heads_outer=4,
        legacy=True,
        label="TNT-legacy",
    ),
    timm_class(
        "VOLO",
        "volo",
        layers=[1, 1, 1, 1],
        img_size=64,
        stem_hidden_dim=16,
        embed_dims=[32, 128, 128, 128],
        num_heads=[2, 4, 4, 4],
    ),
    timm_class(
        "PyramidVisionTransformerV2", "pvt_v2", depths=(1, 1, 1, 1), embed_dims=(32, 64, 96, 128)
    ),
    timm_class(
        "Nest",
        "nest",
        img_size=64,
        embed_dims=(32, 64, 96),
        depths=(1, 1, 1),
        num_heads=(2, 4, 4),
        num_levels=3,
    ),
    timm_class("GlobalContextVit", "gcvit", depths=(1, 1, 1, 1), embed_dim=32),
    timm_class("FocalNet", "focalnet", depths=(1, 1, 1, 1), embed_dim=32),
    timm_class("TinyVit", "tiny_vit", embed_dims=(48, 48, 96, 96), depths=(1, 1, 1, 1)),
    timm_model("levit_128s", embed_dim=(64, 96, 128), depth=(1, 1, 1)),
    timm_model(
        "davit_tiny", depths=(1, 1, 1, 1), embed_dims=(32, 64, 96, 128), num_heads=(2, 4, 4, 4)
    ),
    timm_model("coat_lite_tiny", img_size=64, embed_dims=(32, 64, 96, 128)),
    timm_model("visformer_tiny", img_size=64, embed_dim=96, depth=(1, 1, 1)),
    timm_model(
        "sequencer2d_s",
        img_size=64,
        layers=(1, 1, 1, 1),
        embed_dims=(64, 96, 96, 96),
        hidden_sizes=(32, 32, 32, 32),
    ),
]

HYBRIDS = [
    timm_model("maxvit_tiny_rw_224", img_size=224, depths=(1, 1, 1, 1), embed_dim=(32, 32, 64, 64)),
    timm_model("coatnet_nano_rw_224", img_size=64, depths=(1, 1, 1, 1), embed_dim=(32, 32, 64, 64)),
    timm_model(
        "coatnet_rmlp_nano_rw_224", img_size=64, depths=(1, 1, 1, 1), embed_dim=(32, 32, 64, 64)
    ),
    timm_model("mobilevit_xxs"),
    timm_model("mobilevitv2_050"),
    timm_model("edgenext_xx_small"),
    timm_model("efficientformer_l1", embed_dims=(16, 32, 64, 96), depths=(1, 1, 1, 2)),
    timm_model("efficientformerv2_s0"),
    timm_model("efficientvit_m0"),
    timm_model("efficientvit_b0"),
    timm_model("repvit_m0_9"),
    timm_model("halonet26t"),
    timm_model("botnet26t_256"),
    timm_model("vit_tiny_r_s16_p8_224", **VIT),
]

MIXERS = [
    timm_class("MlpMixer", "mlp_mixer", img_size=64, embed_dim=96, num_blocks=2),
    timm_model("gmlp_ti16_224", img_size=64),
    timm_model("resmlp_12_224", img_size=64),
    timm_class("MetaFormer", "metaformer", depths=(1, 1, 1, 1), dims=(16, 32, 64, 128)),
    timm_model("poolformer_s12"),
    timm_class("ConvMixer", "convmixer", dim=128, depth=2),
]

CONVOLUTIONS = [
    timm_model("convnext_atto", **STAGES),
    timm_model("convnextv2_atto", **STAGES),
    timm_model("inception_next_atto", **STAGES),
    timm_model("efficientnet_b0"),
    timm_model("mixnet_s"),
    timm_model("efficientnet_b0_gn", channel_multiplier=0.5, depth_multiplier=0.25),
    timm_model("mobilenetv2_050"),
    timm_model("mobilenetv3_small_050"),
    timm_model("mobilenetv4_conv_small_050"),
    timm_model("lcnet_050"),
    timm_model("ghostnet_050"),
    timm_model("resnet10t"),
    timm_model("resnetv2_50", layers=(1, 1, 1, 1), channels=(32, 64, 128, 256)),
    timm_model("resnest14d"),
    timm_model("regnetx_002"),
    timm_model("regnety_002"),
    timm_model("regnetz_b16"),
    timm_model("rexnet_100", width_mult=0.5),
    timm_model("nf_regnet_b0"),
    timm_model("eca_nfnet_l0"),
    timm_model("repvgg_a0"),
    timm_model("mobileone_s0"),
    timm_model("densenet121", block_config=(2, 2, 2, 2), growth_rate=32),
    timm_model("dla46_c"),
    timm_model("ese_vovnet19b_slim"),
    timm_model("hgnetv2_b0"),
    timm_model("starnet_s050"),
]

MODELS: list[Model] = [*TRANSFORMERS, *HYBRIDS, *MIXERS, *CONVOLUTIONS]
