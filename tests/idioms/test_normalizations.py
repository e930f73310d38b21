"""Weight and spectral normalization, old and new, and parametrizations."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from idiom import Idiom, Idioms

idiom = Idioms()


def old_weight_norm(module: nn.Module, *, dim: int | None = 0) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.nn.utils.weight_norm(module, dim=dim)


@idiom(marks=(pytest.mark.core,))
def old_weight_norm_of_a_linear() -> nn.Module:
    return old_weight_norm(nn.Linear(20, 40))


@idiom
def old_weight_norm_over_the_whole_weight() -> nn.Module:
    return old_weight_norm(nn.Conv1d(8, 16, 3), dim=None)


@idiom
def old_weight_norm_of_the_last_dimension() -> nn.Module:
    return old_weight_norm(nn.Conv1d(16, 16, 128, padding=64, groups=4), dim=2)


@idiom
def old_weight_norm_removed_again() -> nn.Module:
    return torch.nn.utils.remove_weight_norm(old_weight_norm(nn.Linear(20, 40)))


@idiom
def old_weight_norm_initialized_after_it_was_applied() -> nn.Module:
    module = old_weight_norm(nn.Linear(20, 40))
    nn.init.normal_(module.weight_v, std=0.02)
    nn.init.ones_(module.weight_g)
    return module


@idiom(marks=(pytest.mark.core,))
def weight_norm_parametrization() -> nn.Module:
    return parametrizations.weight_norm(nn.Conv1d(8, 16, 3))


@idiom
def weight_norm_parametrization_of_the_last_dimension() -> nn.Module:
    module = parametrizations.weight_norm(nn.Conv1d(16, 16, 16, groups=4), name="weight", dim=2)
    nn.init.constant_(module.parametrizations.weight.original0, 0.5)
    return module


@idiom
def weight_norm_parametrization_removed_again() -> nn.Module:
    module = parametrizations.weight_norm(nn.Linear(8, 16))
    return parametrize.remove_parametrizations(module, "weight")


@idiom
def old_spectral_norm_of_a_linear() -> nn.Module:
    return torch.nn.utils.spectral_norm(nn.Linear(20, 40))


@idiom
def old_spectral_norm_of_a_transposed_convolution() -> nn.Module:
    return torch.nn.utils.spectral_norm(nn.ConvTranspose2d(4, 6, 3))


@idiom(marks=(pytest.mark.core,))
def spectral_norm_parametrization() -> nn.Module:
    return parametrizations.spectral_norm(nn.Linear(20, 40))


@idiom
def spectral_norm_parametrization_of_a_convolution() -> nn.Module:
    return parametrizations.spectral_norm(nn.Conv2d(3, 8, 3), n_power_iterations=3)


@idiom(expect_lazy=None, reads="orthogonal checks and factorises the weight")
def orthogonal_parametrization_by_matrix_exponential() -> nn.Module:
    return parametrizations.orthogonal(nn.Linear(6, 6), orthogonal_map="matrix_exp")


@idiom(expect_lazy=None, reads="orthogonal checks and factorises the weight")
def orthogonal_parametrization_by_cayley() -> nn.Module:
    return parametrizations.orthogonal(nn.Linear(6, 6), orthogonal_map="cayley")


@idiom(expect_lazy=None, reads="orthogonal checks and factorises the weight")
def orthogonal_parametrization_by_householder() -> nn.Module:
    return parametrizations.orthogonal(nn.Linear(6, 9), orthogonal_map="householder")


class Symmetric(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.triu() + x.triu(1).transpose(-1, -2)

    def right_inverse(self, x: torch.Tensor) -> torch.Tensor:
        return x.triu()


class Skew(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - x.mT) * self.scale


@idiom
def a_custom_parametrization_with_a_right_inverse() -> nn.Module:
    module = nn.Linear(5, 5)
    parametrize.register_parametrization(module, "weight", Symmetric())
    return module


@idiom
def parametrizations_in_a_chain_then_written_to() -> nn.Module:
    module = nn.Linear(5, 5)
    parametrize.register_parametrization(module, "weight", Symmetric())
    parametrize.register_parametrization(module, "weight", Skew(5))
    with torch.no_grad():
        module.parametrizations.weight.original.normal_()
    return module


@idiom
def an_unsafe_parametrization_reads_nothing() -> nn.Module:
    module = nn.Linear(5, 5)
    parametrize.register_parametrization(module, "weight", Skew(5), unsafe=True)
    return module


@idiom
def pruning_masks_a_weight() -> nn.Module:
    module = prune.l1_unstructured(nn.Linear(8, 8), "weight", 0.5)
    return prune.random_unstructured(module, "bias", amount=3)


@idiom.parametrize()
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_equals_eager(case: Idiom) -> None:
    case.check()
