"""Reinforcement learning, graphs and equivariance in code of other libraries, as it builds."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import torch
from torch import nn

from idiom import Idiom, Idioms

idiom = Idioms()
Tensors = list[torch.Tensor]


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
def columns_normalized_after_the_draw() -> nn.Module:
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
def graph_normalization_by_degrees() -> dict[str, torch.Tensor]:
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


@idiom(expect_lazy=None, reads="a distance between two centers becomes a python number")
def radial_basis_centers_and_cutoffs() -> nn.Module:
    model = nn.Module()
    offset = torch.linspace(0.0, 5.0, 16)
    model.coeff = -0.5 / (offset[1] - offset[0]).item() ** 2
    model.register_buffer("offset", offset)
    model.frequencies = nn.Parameter(torch.arange(1, 9).mul(math.pi))
    return model


@idiom(expect_lazy=0.9, reads="torch.Tensor of a list holds numbers that exist already")
def vector_quantizer_codebooks() -> nn.Module:
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


@idiom.parametrize()
def test_equals_eager(case: Idiom) -> None:
    case.check()
