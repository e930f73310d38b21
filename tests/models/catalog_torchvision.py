"""torchvision's models without weights: its entry points, and classes where those are large."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from catalog import Model


def torchvision_model(name: str, **options: Any) -> Model:
    """A row that builds ``torchvision.models.get_model(name, weights=None, **options)``."""

    def build() -> torch.nn.Module:
        from torchvision.models import get_model

        model: torch.nn.Module = get_model(name, weights=None, **options)
        return model

    return Model(name, build)


def _convnext() -> torch.nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    widths = (32, 64, 96, 128, None)
    settings = [CNBlockConfig(*pair, 1) for pair in itertools.pairwise(widths)]
    return ConvNeXt(settings, num_classes=16)


def _densenet() -> torch.nn.Module:
    from torchvision.models import DenseNet

    return DenseNet(growth_rate=32, block_config=(2, 2, 2, 2), num_classes=16)


def _maxvit() -> torch.nn.Module:
    from torchvision.models import MaxVit

    return MaxVit(
        input_size=(64, 64),
        stem_channels=16,
        partition_size=2,
        block_channels=[64, 128],
        block_layers=[1, 1],
        head_dim=16,
        stochastic_depth_prob=0.1,
        num_classes=16,
    )


def _mvit() -> torch.nn.Module:
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    block = MSBlockConfig(
        num_heads=2,
        input_channels=96,
        output_channels=96,
        kernel_q=[3, 3, 3],
        kernel_kv=[3, 3, 3],
        stride_q=[1, 1, 1],
        stride_kv=[1, 2, 2],
    )
    return MViT(
        spatial_size=(32, 32),
        temporal_size=4,
        block_setting=[block, block],
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        num_classes=16,
    )


def _resnext() -> torch.nn.Module:
    from torchvision.models.resnet import Bottleneck, ResNet

    return ResNet(
        Bottleneck,
        [1, 1, 1, 1],
        num_classes=16,
        groups=4,
        width_per_group=4,
        zero_init_residual=True,
    )


def _swin() -> torch.nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer(
        patch_size=[4, 4],
        embed_dim=48,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=[4, 4],
        num_classes=16,
    )


def _swin_v2() -> torch.nn.Module:
    from torchvision.models import swin_transformer as swin

    return swin.SwinTransformer(
        patch_size=[4, 4],
        embed_dim=48,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=[4, 4],
        num_classes=16,
        block=swin.SwinTransformerBlockV2,
        downsample_layer=swin.PatchMergingV2,
    )


def _vision_transformer() -> torch.nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(
        image_size=64,
        patch_size=8,
        num_layers=2,
        num_heads=4,
        hidden_dim=96,
        mlp_dim=256,
        representation_size=64,
        num_classes=16,
    )


HEADLESS = {"weights_backbone": None}

CLASSIFIERS = [
    torchvision_model("resnet18", num_classes=16),
    torchvision_model("squeezenet1_1", num_classes=16),
    torchvision_model("googlenet", num_classes=16, init_weights=True, aux_logits=False),
    torchvision_model("mobilenet_v2", num_classes=16, width_mult=0.5),
    torchvision_model("mobilenet_v3_small", num_classes=16),
    torchvision_model("mnasnet0_5", num_classes=16),
    torchvision_model("shufflenet_v2_x0_5", num_classes=16),
    torchvision_model("efficientnet_b0", num_classes=16),
    torchvision_model("regnet_x_400mf", num_classes=16),
    torchvision_model("regnet_y_400mf", num_classes=16),
    Model("ConvNeXt", _convnext),
    Model("DenseNet", _densenet),
    Model("MaxVit", _maxvit),
    Model("ResNeXt", _resnext),
    Model("SwinTransformer", _swin),
    Model("SwinTransformerV2", _swin_v2),
    Model("VisionTransformer", _vision_transformer),
]

DENSE_PREDICTION = [
    torchvision_model("lraspp_mobilenet_v3_large", **HEADLESS),
    torchvision_model("deeplabv3_mobilenet_v3_large", **HEADLESS),
    torchvision_model("ssdlite320_mobilenet_v3_large", **HEADLESS),
    torchvision_model("fasterrcnn_mobilenet_v3_large_320_fpn", **HEADLESS),
    torchvision_model("raft_small"),
]

VIDEO = [
    torchvision_model("s3d", num_classes=16),
    Model("MViT", _mvit),
]

MODELS: list[Model] = [*CLASSIFIERS, *DENSE_PREDICTION, *VIDEO]
