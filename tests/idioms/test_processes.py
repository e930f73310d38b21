"""Lazy models among processes that are started from this one."""

from __future__ import annotations

import torch
import torch.multiprocessing as mp
from torch import nn

import dormant
from compare import assert_same_bits


def build() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 20, bias=False))
    model[1].weight = model[0].weight
    return model


def add_one(model: nn.Module, results: mp.SimpleQueue) -> None:
    """Runs in the other process: says what came, and writes to it."""
    tied = model[0].weight is model[1].weight
    results.put((tied, model[0].weight.detach().numpy().tobytes()))
    with torch.no_grad():
        model[0].weight.add_(1)


def test_a_lazy_model_given_to_a_spawned_process_is_shared_with_it() -> None:
    with dormant.lazy_init():
        model = build()
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=add_one, args=(model, results))
    process.start()
    process.join(100)
    assert process.exitcode == 0
    tied, values = results.get()
    expected = build()[0].weight.detach()
    assert tied
    assert values == expected.numpy().tobytes()
    assert model[0].weight is model[1].weight
    assert_same_bits(expected + 1, model[0].weight.detach())


def test_lazy_tensors_of_a_data_loaders_dataset_reach_its_workers() -> None:
    torch.manual_seed(0)
    expected = torch.randn(6, 3)
    torch.manual_seed(0)
    with dormant.lazy_init():
        table = torch.randn(6, 3)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(table), num_workers=1)
    for row, (got,) in zip(expected, loader, strict=True):
        assert_same_bits(row[None], got)
