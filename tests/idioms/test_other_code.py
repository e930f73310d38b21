"""What model code of other libraries does while it builds: each once, in its shortest form."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import create_block_mask

from idiom import Idiom, Idioms

idiom = Idioms()
Tensors = list[torch.Tensor]


# --- state spaces and sequence models -----------------------------------------------------------


class SelectiveScan(nn.Module):
    """mamba-ssm's Mamba: real A, and a bias that is the inverse softplus of drawn step sizes."""

    def __init__(self, width: int = 16, state: int = 4, rank: int = 3) -> None:
        super().__init__()
        self.in_proj = nn.Linear(width, width * 2, bias=False)
        self.conv1d = nn.Conv1d(width, width, 4, groups=width, padding=3)
        self.dt_proj = nn.Linear(rank, width)
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        low, high = math.log(1e-3), math.log(1e-1)
        steps = torch.exp(torch.rand(width) * (high - low) + low).clamp(min=1e-4)
        inverse = steps + torch.log(-torch.expm1(-steps))
        with torch.no_grad():
            self.dt_proj.bias.copy_(inverse)
        self.dt_proj.bias._no_reinit = True
        decay = torch.arange(1, state + 1, dtype=torch.float32).repeat(width, 1).contiguous()
        self.A_log = nn.Parameter(torch.log(decay))
        self.A_log._no_weight_decay = True
        self.D = nn.Parameter(torch.ones(width))


@idiom
def mamba_with_rescaled_residuals() -> nn.Module:
    model = nn.ModuleList([SelectiveScan() for _ in range(2)])
    for name, parameter in model.named_parameters():
        if name.endswith("in_proj.weight"):
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
            with torch.no_grad():
                parameter /= math.sqrt(2 * len(model))
    return model


@idiom
def mamba2_heads() -> nn.Module:
    model = nn.Module()
    heads = torch.empty(8, dtype=torch.float32).uniform_(1, 16)
    model.A_log = nn.Parameter(torch.log(heads).to(dtype=torch.bfloat16))
    steps = torch.exp(torch.rand(8) * 4 - 6)
    steps = torch.clamp(steps, min=1e-4)
    model.dt_bias = nn.Parameter(steps + torch.log(-torch.expm1(-steps)))
    return model


@idiom(expect_lazy=None, reads="the eigenvalues of a numpy matrix exist already")
def hippo_matrix_of_s4() -> nn.Module:
    size = 8
    roots = numpy.sqrt(1 + 2 * numpy.arange(size))
    matrix = numpy.tril(roots[:, None] * roots[None]) - numpy.diag(numpy.arange(size))
    skew = -matrix + 0.5 * numpy.diag(roots**2)
    values, vectors = numpy.linalg.eigh(skew * -1j + (skew * -1j).conj().T)
    model = nn.Module()
    model.Lambda = nn.Parameter(torch.view_as_real(torch.from_numpy(1j * values)))
    model.V = torch.tensor(vectors, dtype=torch.cfloat)
    model.C = nn.Parameter(torch.view_as_real(torch.randn(4, size, dtype=torch.cfloat) @ model.V))
    return model


@idiom
def diagonal_complex_state_space() -> nn.Module:
    model = nn.Module()
    magnitude = torch.rand(4, 8).mul_(0.1).add_(0.9)
    phase = torch.rand(4, 8) * 2 * math.pi
    model.nu = nn.Parameter(torch.log(-torch.log(magnitude)))
    model.theta = nn.Parameter(phase.log())
    model.B = nn.Parameter(torch.complex(torch.randn(4, 8), torch.randn(4, 8)) / math.sqrt(8))
    return model


@idiom
def rwkv_decay_speeds_written_one_by_one() -> nn.Module:
    model, width, layer, layers = nn.Module(), 12, 1, 3
    with torch.no_grad():
        ratio = layer / (layers - 1)
        speed = torch.ones(width)
        for i in range(width):
            speed[i] = -5 + 8 * (i / (width - 1)) ** (0.7 + 1.3 * ratio)
        model.time_decay = nn.Parameter(speed)
        zigzag = torch.tensor([(i + 1) % 3 - 1 for i in range(width)]) * 0.5
        model.time_first = nn.Parameter(torch.ones(width) * math.log(0.3) + zigzag)
        mix = torch.ones(1, 1, width)
        for i in range(width):
            mix[0, 0, i] = i / width
        model.time_mix_k = nn.Parameter(torch.pow(mix, 1 - ratio))
    return model


@idiom
def hyena_and_long_convolution_filters() -> nn.Module:
    model = nn.Module()
    position = torch.linspace(0, 1, 64)[None, :, None]
    band = torch.linspace(1e-4, 3, 4)[None, None]
    angle = 2 * math.pi * torch.linspace(0, 63, 64)[None, :, None] / 64
    wave = torch.exp(-1j * band * angle)
    model.register_buffer("z", torch.cat([position, wave.real, wave.imag], dim=-1))
    deltas = torch.linspace(math.log(1e-2) / 1.5, math.log(1e-2) / 0.3, 8)[None, None]
    model.register_buffer("decay", torch.exp(-position * deltas.abs()))
    return model


# --- attention ----------------------------------------------------------------------------------


class RotaryEmbedding(nn.Module):
    """flash-attn's: tables for the longest sequence so far, kept outside the state dict."""

    def __init__(self, dim: int, scale_base: float) -> None:
        super().__init__()
        frequencies = 1.0 / (10000.0 ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
        self.register_buffer("inv_freq", frequencies, persistent=False)
        scale = (torch.arange(0, dim, 2, dtype=torch.float32) + 0.4 * dim) / (1.4 * dim)
        self.register_buffer("scale", scale, persistent=False)
        positions = torch.arange(32, dtype=torch.float32)
        angles = torch.outer(positions, self.inv_freq)
        power = (positions - 16) / scale_base
        scale = self.scale.to(dtype=power.dtype) ** power[:, None]
        self._cos_cached = (torch.cos(angles) * scale).to(torch.bfloat16)
        self._sin_k_cached = (torch.sin(angles) / scale).to(torch.bfloat16)


@idiom
def rotary_tables_with_a_scale() -> nn.Module:
    return RotaryEmbedding(8, 512.0)


@idiom
def rotary_tables_as_complex_numbers() -> nn.Module:
    model = nn.Module()
    frequencies = 1.0 / (500000.0 ** (torch.arange(0, 16, 2)[:8].float() / 16))
    angles = torch.outer(torch.arange(64), frequencies).float()
    model.freqs_cis = torch.polar(torch.ones_like(angles), angles)
    model.real = torch.view_as_real(model.freqs_cis)
    return model


@idiom
def llama3_frequencies_chosen_by_wavelength() -> torch.Tensor:
    frequencies = 1.0 / (5e5 ** (torch.arange(0, 32, 2, dtype=torch.int64).float() / 32))
    wavelength = 2 * math.pi / frequencies
    scaled = torch.where(wavelength > 2048, frequencies / 8, frequencies)
    smooth = (8192 / wavelength - 1) / 3
    smoothed = (1 - smooth) * scaled / 8 + smooth * scaled
    medium = ~(wavelength < 2048) * ~(wavelength > 8192)
    return torch.where(medium, smoothed, scaled)


@idiom
def yarn_ramp_between_two_dimensions() -> Tensors:
    ramp = torch.clamp((torch.arange(16, dtype=torch.float32) - 3) / (9 - 3), 0, 1)
    extrapolated = 1.0 / (1e4 ** (torch.arange(0, 32, 2).float() / 32))
    return [extrapolated / 4 * ramp + extrapolated * (1 - ramp)]


@idiom
def t5_buckets_of_relative_positions() -> torch.Tensor:
    relative = torch.arange(40)[None, :] - torch.arange(40)[:, None]
    buckets = (relative > 0).to(torch.long) * 16
    distance = relative.abs()
    large = 8 + (torch.log(distance.float() / 8) / math.log(16) * 8).to(torch.long)
    large = torch.min(large, torch.full_like(large, 15))
    return buckets + torch.where(distance < 8, distance, large)


@idiom
def music_transformer_skew() -> torch.Tensor:
    embedded = nn.Embedding(7, 4).weight.detach()
    padded = F.pad(embedded @ embedded.t(), (1, 0))
    return padded.view(padded.size(1), padded.size(0))[1:].tril()


@idiom
def linear_attention_random_features() -> nn.Module:
    """Performer: orthogonal blocks from QR, rescaled by the norms of other draws."""
    blocks = []
    for rows in (8, 8, 3):
        q, _ = torch.linalg.qr(torch.randn(8, 8), mode="reduced")
        blocks.append(q.t()[:rows])
    matrix = torch.cat(blocks)
    scale = torch.randn(19, 8).norm(dim=1)
    model = nn.Module()
    model.register_buffer("projection_matrix", torch.diag(scale) @ matrix)
    return model


@idiom
def block_sparse_attention_layouts() -> Tensors:
    layout = torch.zeros(2, 8, 8, dtype=torch.int64)
    for head in range(2):
        for row in range(8):
            layout[head, row, max(0, row - 2) : row + 1] = 1
        layout[head, :, head] = 1
    rows = torch.arange(8).unsqueeze(1).expand(8, 8)
    window = (rows - rows.t()).abs() <= 1
    return [layout, window, window | layout[0].bool()]


@idiom
def block_masks_of_flex_attention() -> Tensors:
    def causal(batch: Any, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return query >= key

    mask = create_block_mask(causal, 1, 1, 256, 256, device="cpu")
    return [mask.kv_num_blocks, mask.kv_indices, mask.full_kv_num_blocks, mask.q_indices]


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
def zero_initialised_modules() -> nn.Module:
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


# --- language, speech and sentences --------------------------------------------------------------


@idiom
def fairseq_sinusoids_with_a_padding_row() -> torch.Tensor:
    half = 4
    scale = math.log(10000) / (half - 1)
    scale = torch.exp(torch.arange(half, dtype=torch.float) * -scale)
    table = torch.arange(20, dtype=torch.float).unsqueeze(1) * scale.unsqueeze(0)
    table = torch.cat([torch.sin(table), torch.cos(table)], dim=1).view(20, -1)
    table = torch.cat([table, torch.zeros(20, 1)], dim=1)
    table[1, :] = 0
    return table


@idiom
def gpt2_scaled_residual_projections() -> nn.Module:
    model = nn.ModuleDict({"c_proj": nn.Linear(8, 8), "c_fc": nn.Linear(8, 8)})
    for name, parameter in model.named_parameters():
        if name.endswith("c_proj.weight"):
            nn.init.normal_(parameter, mean=0.0, std=0.02 / math.sqrt(2 * 12))
    return model


@idiom
def nanogpt_with_the_tie_before_init() -> nn.Module:
    model = nn.ModuleDict({"wte": nn.Embedding(20, 8), "lm_head": nn.Linear(8, 20, bias=False)})
    model["wte"].weight = model["lm_head"].weight
    model.register_buffer("bias", torch.tril(torch.ones(16, 16)).view(1, 1, 16, 16))

    def init(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            torch.nn.init.normal_(module.weight, mean=0.0, std=0.02)

    model.apply(init)
    return model


@idiom
def resized_embeddings_keep_the_old_rows() -> nn.Module:
    old, new = nn.Embedding(10, 6), nn.Embedding(16, 6)
    new.weight.data[:10] = old.weight.data[:10]
    mean = old.weight.data.mean(dim=0)
    new.weight.data[10:] = mean
    return nn.ModuleList([old, new])


@idiom(expect_lazy=0.99, reads="the distribution checks its covariance")
def new_embeddings_from_a_multivariate_normal() -> nn.Module:
    old, new = nn.Embedding(40, 4), nn.Embedding(48, 4)
    mean = torch.mean(old.weight.data, dim=0)
    centered = old.weight.data - mean
    covariance = centered.T @ centered / 40 + 1e-6 * torch.eye(4)
    draw = torch.distributions.MultivariateNormal(mean, covariance_matrix=1e-3 * covariance)
    new.weight.data[:40] = old.weight.data
    new.weight.data[40:] = draw.sample(sample_shape=(8,))
    return new


@idiom
def megatron_master_weight_cut_by_rank() -> nn.Module:
    model = nn.Module()
    master = torch.empty(16, 12, dtype=torch.float32, requires_grad=False)
    nn.init.normal_(master, std=0.02)
    shards = torch.split(master.to(dtype=torch.bfloat16), 4, dim=0)
    model.weight = nn.Parameter(torch.empty(8, 12, dtype=torch.bfloat16))
    with torch.no_grad():
        model.weight.copy_(torch.cat(shards[1::2], dim=0))
    model.weight.partition_dim = 0
    model.master = master
    return model


@idiom
def mixtures_with_one_tensor_for_all_experts() -> nn.Module:
    model = nn.Module()
    model.w1 = nn.Parameter(torch.empty(4, 8, 6))
    model.gate = nn.Parameter(torch.empty(8, 4))
    for expert in range(4):
        nn.init.kaiming_uniform_(model.w1[expert], a=math.sqrt(5))
    nn.init.orthogonal_(model.gate, gain=0.32)
    model.register_buffer("tokens_per_expert", torch.zeros(4, dtype=torch.long))
    return model


@idiom
def mel_filters_and_windows() -> nn.Module:
    """speechbrain's and torchaudio's triangular filters."""
    model = nn.Module()
    low, high = 0.0, 2595 * math.log10(1 + 8000 / 700)
    mel = torch.linspace(low, high, 12)
    hertz = 700 * (10 ** (mel / 2595) - 1)
    band = (hertz[1:] - hertz[:-1])[:-1]
    frequencies = torch.linspace(0, 8000, 33)
    slope = (frequencies.repeat(10, 1).t() - hertz[1:-1]) / band
    filters = torch.max(torch.zeros(1), torch.min(slope + 1.0, -slope + 1.0))
    model.register_buffer("fbank", filters)
    model.register_buffer("window", torch.hamming_window(16, periodic=False))
    return model


@idiom
def sincnet_cutoffs() -> nn.Module:
    model = nn.Module()
    mel = torch.linspace(30.0, 2500.0, 9)
    hertz = 700 * (10 ** (mel / 2595) - 1)
    model.low_hz_ = nn.Parameter(hertz[:-1].unsqueeze(1))
    model.band_hz_ = nn.Parameter(torch.diff(hertz).unsqueeze(1))
    n = torch.linspace(0, 12, steps=12)
    model.window_ = 0.54 - 0.46 * torch.cos(2 * math.pi * n / 25)
    model.n_ = 2 * math.pi * torch.arange(-12, 0).view(1, -1) / 16000
    return model


@idiom
def wavenet_and_hifigan_init_by_class_name() -> nn.Module:
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ConvTranspose1d(4, 2, 4, 2), nn.BatchNorm1d(2))

    def init_weights(module: nn.Module, mean: float = 0.0, std: float = 0.01) -> None:
        if type(module).__name__.find("Conv") != -1:
            module.weight.data.normal_(mean, std)

    model.apply(init_weights)
    return nn.ModuleList(list(model)[:2])


@idiom
def recurrent_gates_with_a_forget_bias() -> nn.Module:
    model = nn.LSTM(4, 6, 2, bidirectional=True)
    for name, parameter in model.named_parameters():
        if "weight_ih" in name:
            nn.init.xavier_uniform_(parameter)
        elif "weight_hh" in name:
            for gate in parameter.chunk(4):
                nn.init.orthogonal_(gate)
        else:
            parameter.data.fill_(0)
            size = parameter.size(0)
            parameter.data[size // 4 : size // 2].fill_(1)
    return model


# --- reinforcement learning, graphs, equivariance ------------------------------------------------


@idiom
def orthogonal_layers_with_gains() -> nn.Module:
    def layer(module: nn.Linear, gain: float) -> nn.Linear:
        nn.init.orthogonal_(module.weight, gain)
        nn.init.constant_(module.bias, 0.0)
        return module

    gain = nn.init.calculate_gain("leaky_relu", 0.2)
    model = nn.Sequential(layer(nn.Linear(6, 16), math.sqrt(2)), layer(nn.Linear(16, 4), gain))
    model.log_std = nn.Parameter(torch.zeros(1, 4))
    return model


@idiom(expect_lazy=None, reads="distributions check their parameters")
def policies_that_hold_distributions() -> dict[str, Any]:
    mean, deviation = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(4))
    normal = torch.distributions.Normal(mean, deviation)
    choice = torch.distributions.Categorical(logits=torch.zeros(3))
    return {"normal": normal, "drawn": normal.rsample(), "actions": choice.sample((5,))}


@idiom
def columns_normalised_after_the_draw() -> nn.Module:
    model = nn.Linear(6, 4)
    model.weight.data.normal_(0, 1)
    model.weight.data *= 0.01 / torch.sqrt(model.weight.data.pow(2).sum(1, keepdim=True))
    model.bias.data.fill_(0)
    return model


@idiom
def noisy_layers() -> nn.Module:
    model = nn.Module()
    model.mu = nn.Parameter(torch.empty(4, 6).uniform_(-(6**-0.5), 6**-0.5))
    model.sigma = nn.Parameter(torch.full((4, 6), 0.5 / math.sqrt(6)))

    def noise(size: int) -> torch.Tensor:
        drawn = torch.randn(size)
        return drawn.sign().mul_(drawn.abs().sqrt_())

    model.register_buffer("epsilon", noise(4).outer(noise(6)))
    return model


@idiom
def target_networks_and_twins() -> nn.Module:
    actor = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2))
    target = copy.deepcopy(actor).requires_grad_(False)
    for slow, fast in zip(target.parameters(), actor.parameters(), strict=True):
        slow.data.copy_(0.005 * fast.data + 0.995 * slow.data)
    replay = {"state": torch.zeros(16, 3), "done": torch.zeros(16, dtype=torch.bool)}
    model = nn.ModuleList([actor, target])
    model.replay = replay
    return model


@idiom
def two_hot_bins_and_symlog() -> nn.Module:
    model = nn.Module()
    bins = torch.linspace(-20, 20, 41)
    model.register_buffer("bins", torch.sign(bins) * (torch.exp(torch.abs(bins)) - 1))
    return model


@idiom(expect_lazy=0.6, reads="the bounds of an index are checked at once")
def graph_normalisation_by_degrees() -> dict[str, torch.Tensor]:
    """torch_geometric's gcn_norm and its glorot on views."""
    rows, columns = torch.arange(6), (torch.arange(6) * 5 + 1) % 6
    edges = torch.stack([torch.cat([rows, columns]), torch.cat([columns, rows])])
    weight = torch.ones(edges.size(1))
    degree = torch.zeros(6).scatter_add_(0, edges[1], weight)
    inverse = degree.pow(-0.5).masked_fill_(degree == 0, 0)
    norm = inverse.index_select(0, edges[0]) * weight * inverse[edges[1]]
    value = torch.empty(3, 4, 5)
    bound = math.sqrt(6.0 / (value.size(-2) + value.size(-1)))
    value.data.uniform_(-bound, bound)
    mean = torch.zeros(6, 4).index_add_(0, edges[0], torch.randn(12, 4))
    best = torch.full((6,), -1.0).scatter_reduce_(0, edges[0], weight, "amax", include_self=False)
    return {"norm": norm, "value": value, "mean": mean, "best": best, "edges": edges}


@idiom(expect_lazy=None, reads="the number of distinct edges decides a shape")
def graph_coalesced_by_unique() -> Tensors:
    edges = torch.randint(0, 5, (2, 20))
    index, inverse = torch.unique(edges[0] * 5 + edges[1], return_inverse=True)
    weight = torch.zeros(index.numel()).scatter_add_(0, inverse, torch.rand(20))
    return [index // 5, index % 5, weight]


@idiom
def equivariant_constants() -> nn.Module:
    """e3nn-like: a flat weight with views for each path, and a basis from Legendre recursion."""
    model = nn.Module()
    model.weight = nn.Parameter(torch.randn(24))
    paths = [(2, 3), (3, 4), (6, 1)]
    start, model.views = 0, []
    for rows, columns in paths:
        model.views.append(model.weight.data.narrow(0, start, rows * columns).view(rows, columns))
        start += rows * columns
    model.register_buffer("output_mask", torch.cat([torch.ones(6), torch.zeros(3)]))
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)
    basis = [torch.ones_like(x), x]
    for n in range(2, 5):
        basis.append(((2 * n - 1) * x * basis[-1] - (n - 1) * basis[-2]) / n)
    model.register_buffer("legendre", torch.stack(basis, dim=-1).to(torch.get_default_dtype()))
    eye = torch.eye(3)
    model.epsilon = torch.stack([torch.linalg.cross(eye[i].expand(3, 3), eye) for i in range(3)])
    return model


@idiom(expect_lazy=None, reads="a distance between two centres becomes a python number")
def radial_basis_centres_and_cutoffs() -> nn.Module:
    model = nn.Module()
    offset = torch.linspace(0.0, 5.0, 16)
    model.coeff = -0.5 / (offset[1] - offset[0]).item() ** 2
    model.register_buffer("offset", offset)
    model.frequencies = nn.Parameter(torch.arange(1, 9).mul(math.pi))
    return model


@idiom(expect_lazy=0.9, reads="torch.Tensor of a list holds numbers that exist already")
def vector_quantiser_codebooks() -> nn.Module:
    model = nn.Module()
    model.embed = nn.Embedding(16, 4)
    model.embed.weight.data.uniform_(-1.0 / 16, 1.0 / 16)
    model.register_buffer("cluster_size", torch.zeros(16))
    model.register_buffer("embed_avg", model.embed.weight.data.clone())
    model.register_buffer("initted", torch.Tensor([False]))
    levels = torch.tensor([8, 5, 5], dtype=torch.int32)
    model.register_buffer("basis", torch.cumprod(torch.tensor([1, 8, 5]), dim=0))
    model.register_buffer("levels", levels, persistent=False)
    return model


@idiom
def invertible_convolutions_from_lu() -> nn.Module:
    """Glow: a random rotation in parts, with a permutation that stays fixed."""
    rotation, _ = torch.linalg.qr(torch.randn(6, 6))
    p, lower, upper = torch.linalg.lu(rotation)
    diagonal = torch.diagonal(upper)
    model = nn.Module()
    model.register_buffer("p", p)
    model.register_buffer("sign_s", torch.sign(diagonal))
    model.lower = nn.Parameter(lower)
    model.log_s = nn.Parameter(torch.log(torch.abs(diagonal)))
    model.upper = nn.Parameter(torch.triu(upper, 1))
    model.register_buffer("l_mask", torch.tril(torch.ones(6, 6), -1))
    return model


@idiom
def masks_of_autoregressive_layers() -> nn.Module:
    degrees = [torch.arange(4), torch.arange(8) % 3, torch.arange(4) % 4 - 1]
    model = nn.ModuleList()
    for before, after in itertools.pairwise(degrees):
        layer = nn.Linear(len(before), len(after))
        layer.register_buffer("mask", (after.unsqueeze(-1) >= before.unsqueeze(0)).float())
        layer.weight.data.mul_(layer.mask)
        model.append(layer)
    return model


@idiom
def splines_of_kan_layers() -> nn.Module:
    model = nn.Module()
    step = 2 / 5
    grid = (torch.arange(-3, 9) * step - 1).expand(4, -1).contiguous()
    model.register_buffer("grid", grid)
    x = ((torch.rand(6, 4) - 0.5) * 2).unsqueeze(-1)
    bases = ((x >= grid[:, :-1]) & (x < grid[:, 1:])).to(x.dtype)
    for k in range(1, 4):
        left = (x - grid[:, : -(k + 1)]) / (grid[:, k:-1] - grid[:, : -(k + 1)])
        right = (grid[:, k + 1 :] - x) / (grid[:, k + 1 :] - grid[:, 1:-k])
        bases = left * bases[:, :, :-1] + right * bases[:, :, 1:]
    model.spline_weight = nn.Parameter(bases.permute(1, 2, 0).contiguous())
    return model


# --- functional styles ---------------------------------------------------------------------------


@idiom
def parameters_in_plain_nested_dictionaries() -> dict[str, Any]:
    """JAX-like: no modules, an initialiser for each leaf, a generator split by seeds."""

    def dense(seed: int, rows: int, columns: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(rows, columns, generator=generator) / math.sqrt(columns)
        return {"w": weight.requires_grad_(), "b": torch.zeros(rows, requires_grad=True)}

    seeds = torch.randint(0, 2**31, (3,))
    return {f"layer_{i}": dense(7 + i, 8, 4) for i in range(3)} | {"seeds": seeds}


@idiom
def an_ensemble_stacked_by_hand() -> dict[str, torch.Tensor]:
    models = [nn.Linear(3, 2) for _ in range(4)]
    with torch.no_grad():
        return {
            name: torch.stack([dict(model.named_parameters())[name] for model in models])
            for name in ("weight", "bias")
        }


@idiom
def initialisers_mapped_over_an_ensemble() -> Tensors:
    def scaled(weight: torch.Tensor) -> torch.Tensor:
        return weight / weight.norm()

    return [torch.vmap(scaled)(torch.randn(4, 3, 2)), torch.vmap(torch.diag)(torch.rand(2, 3))]


@idiom
def tree_map_over_parameters() -> dict[str, Any]:
    tree = {"a": torch.randn(3), "b": [torch.rand(2), (torch.ones(2), None)]}
    moved = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.to(torch.bfloat16), tree)
    return {"tree": tree, "moved": moved}


def _registry() -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    return {
        "zeros": nn.init.zeros_,
        "he": functools.partial(nn.init.kaiming_normal_, mode="fan_out"),
    }


@idiom
def initialisers_from_a_registry() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4))
    for layer, name in zip(model, ("he", "zeros"), strict=True):
        _registry()[name](layer.weight)
    return model


@idiom
def foreach_operations_over_lists_of_parameters() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        parameters = list(model.parameters())
        torch._foreach_mul_(parameters, 0.5)
        torch._foreach_add_(parameters, [torch.ones_like(p) for p in parameters], alpha=0.1)
        torch._foreach_zero_([model[0].bias])
        model.norms = torch._foreach_norm(parameters)
        torch._foreach_lerp_(parameters, [torch.zeros_like(p) for p in parameters], 0.25)
        model.copies = torch._foreach_mul(parameters, 2.0)
    return model


@idiom.parametrize()
def test_equals_eager(case: Idiom) -> None:
    case.check()
