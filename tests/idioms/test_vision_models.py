"""Vision, diffusion and adapters in code of other libraries, as it builds."""

from __future__ import annotations

import functools
import math

import numpy
import torch
import torch.nn.functional as F
from torch import nn

from idiom import Idiom, Idioms

idiom = Idioms()
Tensors = list[torch.Tensor]


# --- vision -------------------------------------------------------------------------------------


class Anchors(nn.Module):
    """detectron2's: base boxes for each size, in buffers that are not saved."""

    def __init__(self) -> None:
        super().__init__()
        boxes = [
            torch.tensor(
                [
                    [-w / 2, -h / 2, w / 2, h / 2]
                    for ratio in (0.5, 1.0, 2.0)
                    for w in [math.sqrt(size * size / ratio)]
                    for h in [ratio * w]
                ]
            )
            for size in (32, 64)
        ]
        for i, base in enumerate(boxes):
            self.register_buffer(f"cell_anchors_{i}", base, persistent=False)
        y, x = torch.meshgrid(torch.arange(0, 64, 16), torch.arange(0, 48, 16), indexing="ij")
        shifts = torch.stack((x.reshape(-1), y.reshape(-1), x.reshape(-1), y.reshape(-1)), dim=1)
        self.anchors = (shifts.view(-1, 1, 4) + boxes[0].view(1, -1, 4)).reshape(-1, 4)


@idiom(expect_lazy=0.93, reads="torch.tensor of a list holds numbers that exist already")
def detection_anchors_and_prior_bias() -> nn.Module:
    model = nn.Module()
    model.anchors = Anchors()
    model.cls_score = nn.Conv2d(4, 6, 3)
    nn.init.constant_(model.cls_score.bias, -math.log((1 - 0.01) / 0.01))
    for group in (model.cls_score,):
        nn.init.normal_(group.weight, std=0.01)
    return model


@idiom
def frozen_batch_norm() -> nn.Module:
    model = nn.Module()
    for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0)):
        model.register_buffer(name, torch.full((5,), value))
    model.register_buffer("running_var", torch.ones(5) - 1e-5)
    model.scale = model.weight * (model.running_var + 1e-5).rsqrt()
    return model


@idiom
def deformable_detr_sampling_offsets() -> nn.Module:
    heads, levels, points = 4, 2, 3
    model = nn.Linear(8, heads * levels * points * 2)
    nn.init.constant_(model.weight.data, 0.0)
    angles = torch.arange(heads, dtype=torch.float32) * (2.0 * math.pi / heads)
    grid = torch.stack([angles.cos(), angles.sin()], -1)
    grid = (grid / grid.abs().max(-1, keepdim=True)[0]).view(heads, 1, 1, 2)
    grid = grid.repeat(1, levels, points, 1)
    for i in range(points):
        grid[:, :, i, :] *= i + 1
    with torch.no_grad():
        model.bias = nn.Parameter(grid.view(-1))
    return model


@idiom
def position_table_resized_and_joined() -> nn.Module:
    """open_clip and timm: a pretrained grid interpolated to another size, its prefix kept."""
    model = nn.Module()
    old = nn.Parameter(torch.randn(1 + 16, 8) * 0.02)
    prefix, grid = old.data[:1], old.data[1:]
    grid = grid.reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(6, 6), mode="bicubic", antialias=True, align_corners=False)
    grid = grid.permute(0, 2, 3, 1).reshape(36, -1)
    model.positional_embedding = nn.Parameter(torch.cat([prefix, grid], dim=0))
    return model


@idiom(expect_lazy=0.99, reads="torch.tensor holds a number that exists already")
def open_clip_towers() -> nn.Module:
    model = nn.Module()
    scale = 16**-0.5
    model.class_embedding = nn.Parameter(scale * torch.randn(16))
    model.proj = nn.Parameter(scale * torch.randn(16, 8))
    model.logit_scale = nn.Parameter(torch.ones([]) * numpy.log(1 / 0.07))
    model.logit_bias = nn.Parameter(torch.ones([]) * -10)
    mask = torch.empty(12, 12)
    mask.fill_(float("-inf"))
    mask.triu_(1)
    model.register_buffer("attn_mask", mask, persistent=False)
    model.resblocks = nn.ModuleList([nn.MultiheadAttention(16, 2) for _ in range(2)])
    for block in model.resblocks:
        nn.init.normal_(block.in_proj_weight, std=16**-0.5)
        nn.init.normal_(block.out_proj.weight, std=16**-0.5 * 4**-0.5)
    model.token = nn.Parameter(torch.tensor(0.5))
    return model


@idiom(expect_lazy=0.94, reads="as_tensor of a list holds numbers that exist already")
def stylegan_equalised_layers_and_blur() -> nn.Module:
    model = nn.Module()
    model.weight = nn.Parameter(torch.randn([6, 4, 3, 3]) / 0.01)
    model.register_buffer("noise_const", torch.randn([8, 8]))
    model.noise_strength = nn.Parameter(torch.zeros([]))
    taps = torch.as_tensor([1, 3, 3, 1], dtype=torch.float32)
    kernel = taps.ger(taps) / taps.sum() ** 2
    model.register_buffer("resample_filter", kernel.flip([0, 1]) * 4)
    model.register_buffer("w_avg", torch.zeros([16]))
    return model


@idiom
def a_gaussian_kernel_by_products() -> nn.Module:
    axes = torch.meshgrid([torch.arange(5, dtype=torch.float32)] * 2, indexing="ij")
    kernel = functools.reduce(
        lambda a, b: a * b,
        [torch.exp(-(((axis - 2) / 2) ** 2)) / (math.sqrt(2 * math.pi)) for axis in axes],
    )
    kernel = kernel / kernel.sum()
    model = nn.Module()
    model.register_buffer("weight", kernel.view(1, 1, 5, 5).repeat(3, 1, 1, 1))
    return model


@idiom(expect_lazy=0.95, reads="torch.tensor of a list holds numbers that exist already")
def nerf_frequencies_and_hash_tables() -> nn.Module:
    model = nn.Module()
    model.freq_bands = 2.0 ** torch.linspace(0.0, 9, 10)
    model.tables = nn.ModuleList([nn.Embedding(2**6, 2) for _ in range(4)])
    for table in model.tables:
        nn.init.uniform_(table.weight, a=-1e-4, b=1e-4)
    model.register_buffer("offsets", torch.tensor([[i, j] for i in (0, 1) for j in (0, 1)]))
    model.fourier = nn.Parameter(torch.normal(0.0, 10.0, size=(3, 8)), requires_grad=False)
    return model


@idiom
def siren_first_layer_drawn_otherwise() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 16), nn.Linear(16, 16))
    with torch.no_grad():
        model[0].weight.uniform_(-1 / 2, 1 / 2)
        bound = numpy.sqrt(6 / 16) / 30
        model[1].weight.uniform_(-bound, bound)
    return model


# --- diffusion ----------------------------------------------------------------------------------


@idiom
def karras_sigmas_with_a_final_zero() -> nn.Module:
    """k-diffusion's schedule, and its wrapper around a model of discrete steps."""
    model = nn.Module()
    ramp = torch.linspace(0, 1, 12)
    low, high = 0.03 ** (1 / 7), 14.6 ** (1 / 7)
    sigmas = (high + ramp * (low - high)) ** 7
    model.sigmas = torch.cat([sigmas, sigmas.new_zeros([1])])
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 20, dtype=torch.float64) ** 2
    cumulative = torch.cumprod(1 - betas, dim=0)
    model.register_buffer("alphas_cumprod", cumulative.float())
    model.register_buffer("log_sigmas", ((1 - cumulative) / cumulative).sqrt().log().float())
    model.fourier = nn.Parameter(torch.randn([8, 1]) * 1.0)
    return model


@idiom
def zero_initialized_modules() -> nn.Module:
    def zero_module(module: nn.Module) -> nn.Module:
        for parameter in module.parameters():
            parameter.detach().zero_()
        return module

    return nn.Sequential(nn.Conv2d(3, 3, 1), zero_module(nn.Conv2d(3, 3, 1)))


@idiom
def adaptive_norm_gates_of_dit() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 48), nn.Conv2d(3, 8, 2, stride=2))

    def basic(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
            nn.init.constant_(module.bias, 0)

    model.apply(basic)
    w = model[1].weight.data
    nn.init.xavier_uniform_(w.view([w.shape[0], -1]))
    with torch.no_grad():
        nn.init.zeros_(model[0].weight[-8:])
    return model


@idiom
def low_rank_adapters_and_their_merge() -> nn.Module:
    model = nn.Linear(12, 10)
    model.A = nn.Parameter(model.weight.new_zeros((4, 12)))
    model.B = nn.Parameter(model.weight.new_zeros((10, 4)))
    nn.init.kaiming_uniform_(model.A, a=math.sqrt(5))
    model.weight.requires_grad = False
    model.weight.data += (model.B @ model.A).detach() * 0.5
    return model


@idiom(expect_lazy=None, reads="the singular values of a weight")
def adapters_from_singular_vectors() -> nn.Module:
    model = nn.Linear(12, 10, bias=False)
    u, s, v = torch.linalg.svd(model.weight.data, full_matrices=False)
    model.A = nn.Parameter(torch.diag(torch.sqrt(s[:3])) @ v[:3])
    model.B = nn.Parameter(u[:, :3] @ torch.diag(torch.sqrt(s[:3])))
    model.weight.data = model.weight.data - model.B.data @ model.A.data
    return model


@idiom.parametrize()
def test_equals_eager(case: Idiom) -> None:
    case.check()
