"""Tables computed while building: positions, rotary angles, masks, windows, factorisations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from idiom import Idiom, Idioms

idiom = Idioms()
Tensors = list[torch.Tensor]


@idiom(marks=(pytest.mark.core,))
def sinusoidal_positions() -> nn.Module:
    model = nn.Module()
    position = torch.arange(0, 50, dtype=torch.float).unsqueeze(1)
    step = torch.exp(torch.arange(0, 16, 2).float() * (-math.log(10000.0) / 16))
    table = torch.zeros(50, 16)
    table[:, 0::2] = torch.sin(position * step)
    table[:, 1::2] = torch.cos(position * step)
    model.register_buffer("table", table.unsqueeze(0), persistent=False)
    return model


@idiom
def rotary_frequencies() -> nn.Module:
    model = nn.Module()
    inverse = 1.0 / (10000 ** (torch.arange(0, 16, 2, dtype=torch.int64).float() / 16))
    angles = torch.outer(torch.arange(32), inverse)
    model.register_buffer("inverse", inverse)
    model.register_buffer("cos", torch.cat((angles, angles), -1).cos().to(torch.bfloat16))
    model.register_buffer("complex", torch.polar(torch.ones_like(angles), angles))
    return model


@idiom(marks=(pytest.mark.core,))
def causal_masks() -> Tensors:
    full = torch.full((8, 8), float("-inf"))
    return [
        torch.triu(full, diagonal=1),
        torch.tril(torch.ones(8, 8, dtype=torch.bool)).view(1, 1, 8, 8),
        torch.zeros(8, 8).masked_fill(torch.ones(8, 8, dtype=torch.bool).triu(1), -1e9),
        torch.ones(5, 5).tril_().bool().logical_not_(),
        nn.Transformer.generate_square_subsequent_mask(6),
    ]


@idiom(expect_lazy=0.0, reads="their kernels fill memory that they allocate themselves")
def indices_of_triangles() -> Tensors:
    return [torch.tril_indices(4, 4), torch.triu_indices(4, 5, 1)]


@idiom
def alibi_slopes() -> torch.Tensor:
    slopes = torch.pow(torch.tensor(2 ** (-(2**-3))), torch.arange(1, 9))
    return slopes.unsqueeze(1).unsqueeze(1) * torch.arange(10).view(1, 1, -1).expand(8, -1, -1)


@idiom
def relative_position_index_of_swin() -> torch.Tensor:
    coords = torch.stack(torch.meshgrid(torch.arange(7), torch.arange(7), indexing="ij"))
    flat = torch.flatten(coords, 1)
    relative = (flat[:, :, None] - flat[:, None, :]).permute(1, 2, 0).contiguous()
    relative[:, :, 0] += 6
    relative[:, :, 1] += 6
    relative[:, :, 0] *= 13
    return relative.sum(-1)


@idiom
def shifted_window_mask() -> torch.Tensor:
    image = torch.zeros(1, 8, 8, 1)
    count = 0
    for rows in (slice(0, -4), slice(-4, -2), slice(-2, None)):
        for columns in (slice(0, -4), slice(-4, -2), slice(-2, None)):
            image[:, rows, columns, :] = count
            count += 1
    windows = image.view(1, 2, 4, 2, 4, 1).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16)
    mask = windows.unsqueeze(1) - windows.unsqueeze(2)
    return mask.masked_fill(mask != 0, -100.0).masked_fill(mask == 0, 0.0)


@idiom
def diffusion_schedules() -> dict[str, torch.Tensor]:
    betas = torch.linspace(0.0001**0.5, 0.02**0.5, 100, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])
    return {
        "betas": betas.float(),
        "alphas": alphas,
        "variance": betas * (1 - before) / (1 - alphas),
        "log": torch.log(alphas.clamp(min=1e-20)),
        "sums": betas.cumsum(0),
        "sigmas": ((1 - alphas) / alphas).sqrt().flip(0),
        "logcumsum": torch.logcumsumexp(betas, 0),
    }


@idiom(marks=(pytest.mark.core,))
def cat_stack_where_and_friends() -> Tensors:
    a, b = torch.randn(4, 3), torch.rand(4, 3)
    return [
        torch.cat([a, b], 1),
        torch.cat([a, torch.arange(3).unsqueeze(0)]),
        torch.stack((a, b), 2),
        torch.hstack([a, b]),
        torch.vstack([a, b]),
        torch.where(a > 0, a, b),
        torch.where(a > 0, 1.0, b),
        torch.block_diag(a, b),
        torch.cartesian_prod(a[:, 0], b[:, 0]),
        torch.nn.functional.pad(a, (1, 2), value=3),
        torch.maximum(a, b),
        torch.einsum("ij,kj->ik", a, b),
        a.lerp(b, 0.5),
        torch.kron(a, b),
    ]


@idiom(expect_lazy=0.02, reads="the strides of a transform are those of its CPU kernel")
def fourier_transforms() -> Tensors:
    a = torch.randn(4, 8)
    spectrum = torch.fft.rfft(a)
    return [
        spectrum,
        torch.fft.irfft(spectrum, n=8),
        torch.fft.fft2(a).abs(),
        torch.fft.fftfreq(8),
        torch.fft.fftshift(a),
        torch.view_as_real(torch.fft.fft(torch.eye(8))),
    ]


@idiom(expect_lazy=None, reads="some windows are computed by kernels that touch data")
def spectral_windows() -> Tensors:
    return [
        torch.hann_window(16),
        torch.hamming_window(16, periodic=False),
        torch.blackman_window(9),
        torch.bartlett_window(8),
        torch.kaiser_window(12, True, 8.0),
        torch.signal.windows.gaussian(10, std=2.0),
        torch.hann_window(1),
        torch.kaiser_window(0),
    ]


@idiom(expect_lazy=None, reads="LAPACK checks its status, which reads values")
def linear_algebra() -> Tensors:
    a = torch.randn(5, 5)
    symmetric = a @ a.t() + 5 * torch.eye(5)
    q, r = torch.linalg.qr(a)
    u, s, v = torch.linalg.svd(a)
    return [
        q,
        r,
        u,
        s,
        v,
        torch.linalg.eigh(symmetric)[0],
        torch.linalg.eig(a)[1],
        torch.linalg.inv(symmetric),
        torch.linalg.cholesky(symmetric),
        torch.linalg.solve(symmetric, a),
        torch.linalg.det(a),
        torch.linalg.norm(a),
        torch.linalg.matrix_exp(a - a.t()),
        torch.linalg.matrix_power(a, 3),
        torch.linalg.lu(a)[0],
        torch.linalg.pinv(a),
        *torch.slogdet(a),
    ]


@idiom(expect_lazy=0.98, reads="histc and one_hot look at their input")
def products_and_reductions() -> Tensors:
    a, b = torch.randn(33, 65), torch.randn(65, 17)
    return [
        a @ b,
        torch.addmm(torch.ones(17), a, b, beta=0.5),
        torch.bmm(a[None], b[None]),
        a.sum(0),
        a.mean(1, keepdim=True),
        a.std(),
        a.var(0),
        a.norm(dim=1),
        a.prod(1),
        a.softmax(-1),
        a.amax(0),
        *a.max(1),
        *a.topk(3),
        *a.sort(0),
        a.argsort(1),
        a.argmin(),
        a.logsumexp(0),
        torch.nn.functional.normalize(a, dim=1),
        torch.nn.functional.layer_norm(a, (65,)),
        torch.nn.functional.one_hot(torch.arange(5), 7),
        *torch.aminmax(a),
        torch.histc(a, 5),
        torch.trapezoid(a),
        torch.cdist(a, a[:4]),
    ]


@idiom(expect_lazy=0.4, reads="indices are checked against bounds at once, as in eager")
def tables_and_indices_that_are_transposed() -> Tensors:
    table, index = torch.randn(4, 5, 1), torch.tensor([[0, 1], [2, 3], [1, 0]])
    return [
        table[index.t()],
        table.transpose(0, 1)[index.t()],
        table[:, index.t()],
        table[index.t(), index.t().contiguous()],
        table.permute(2, 0, 1)[index[:1, :1] * 0],
    ]


@idiom(expect_lazy=0.4, reads="indices are checked against bounds at once, as in eager")
def indices_and_masks() -> Tensors:
    a = torch.randn(6, 5)
    index = torch.tensor([0, 2, 5])
    picked = a[index]
    a[index, index.clamp(max=4)] = 9.0
    a[a < 0] = 0.0
    a.index_fill_(0, torch.tensor([1]), -1)
    a.index_add_(0, index, torch.rand(3, 5))
    a.index_copy_(1, torch.tensor([4]), torch.rand(6, 1))
    a.scatter_(1, torch.arange(6).unsqueeze(1) % 5, 0.25)
    a.scatter_add_(0, torch.zeros(1, 5, dtype=torch.int64), torch.ones(1, 5))
    a.index_put_((index,), torch.rand(5), accumulate=True)
    a.masked_scatter_(a > 1, torch.rand(30))
    return [
        a,
        picked,
        a.gather(1, torch.zeros(6, 2, dtype=torch.int64)),
        a.take(torch.tensor([1, 7])),
        a.index_select(1, index.clamp(max=4)),
        a[[0, 1], [2, 3]],
        a[..., torch.tensor([True, False, True, False, True])],
        torch.take_along_dim(a, a.argsort(1), 1),
        a[torch.randperm(6)],
        torch.bucketize(a, torch.linspace(-1, 1, 5)),
        torch.searchsorted(torch.arange(0.0, 5), a),
    ]


@idiom
def factories_of_every_kind() -> list[Any]:
    like = torch.empty(3, 4, dtype=torch.float64)
    return [
        torch.zeros(2, 3),
        torch.ones(3, dtype=torch.int16),
        torch.full((2, 2), 7),
        torch.full((2,), True),
        torch.arange(2, 10, 3),
        torch.arange(0, 1, 0.1),
        torch.range(1, 4),
        torch.linspace(-1, 1, 7),
        torch.logspace(0, 2, 5, base=2),
        torch.eye(3),
        torch.eye(2, 5, dtype=torch.bool),
        torch.zeros_like(like),
        torch.ones_like(like, dtype=torch.bfloat16),
        torch.full_like(like, math.pi),
        torch.empty_like(like).fill_(2),
        like.new_zeros(2),
        like.new_ones(2, 2),
        like.new_full((3,), 5),
        like.new_empty(4).zero_(),
        torch.complex(torch.ones(3), torch.zeros(3)),
        torch.vander(torch.arange(1.0, 4)),
        torch.diag(torch.arange(3.0)),
        torch.diag_embed(torch.rand(2, 3)),
        torch.tril(torch.randn(4, 4)),
        torch.meshgrid(torch.arange(3), torch.arange(2), indexing="xy"),
    ]


@idiom
def a_fixed_filter_bank_as_convolution_weight() -> nn.Module:
    conv = nn.Conv2d(3, 3, 5, groups=3, bias=False)
    kernel = torch.outer(*(torch.exp(-((torch.arange(5.0) - 2) ** 2) / 2),) * 2)
    conv.weight.data = (kernel / kernel.sum()).view(1, 1, 5, 5).repeat(3, 1, 1, 1)
    conv.weight.requires_grad = False
    return conv


@idiom(expect_lazy=None, reads="convolution of a lazy input computes")
def functional_layers_inside_a_constructor() -> Tensors:
    image = torch.rand(1, 3, 8, 8)
    return [
        torch.nn.functional.conv2d(image, torch.randn(4, 3, 3, 3)),
        torch.nn.functional.interpolate(image, scale_factor=2, mode="bilinear"),
        torch.nn.functional.avg_pool2d(image, 2),
        torch.nn.functional.max_pool2d(image, 2),
        torch.nn.functional.unfold(image, 2),
        torch.nn.functional.affine_grid(torch.eye(2, 3)[None], [1, 3, 4, 4], False),
        torch.nn.functional.gelu(image),
        torch.nn.functional.embedding(torch.arange(4), torch.randn(5, 3)),
        torch.nn.functional.linear(image, torch.randn(4, 8)),
    ]


@idiom.parametrize()
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_equals_eager(case: Idiom) -> None:
    case.check()
