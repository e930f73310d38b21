"""State spaces, attention, language and speech in code of other libraries, as it builds."""

from __future__ import annotations

import math
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


@idiom.parametrize()
def test_equals_eager(case: Idiom) -> None:
    case.check()
