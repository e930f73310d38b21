"""accelerate's and torch's own ways to build without memory, used inside the context."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import accelerate
import accelerate.utils
import pytest
import torch
from libraries import models

import dormant
from compare import assert_same_bits, compare

LLAMA = {row.name: row for row in models("transformers")}["LlamaForCausalLM"].build


@contextmanager
def parameters_go_to(device: str) -> Iterator[None]:
    """The idiom under `init_empty_weights`: registration is patched to move each parameter."""
    register = torch.nn.Module.register_parameter

    def moved(module: torch.nn.Module, name: str, param: torch.nn.Parameter | None) -> None:
        register(module, name, param)
        if param is not None:
            entry = module._parameters[name]
            assert entry is not None
            options = {**entry.__dict__, "requires_grad": entry.requires_grad}
            module._parameters[name] = type(entry)(entry.to(device), **options)

    torch.nn.Module.register_parameter = moved  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]


@pytest.mark.parametrize("include_buffers", [False, True])
def test_init_empty_weights(include_buffers: bool) -> None:
    def build() -> torch.nn.Module:
        with accelerate.init_empty_weights(include_buffers=include_buffers):
            return torch.nn.Sequential(torch.nn.Linear(64, 300), torch.nn.BatchNorm1d(300))

    assert build()[0].weight.device.type == "meta"
    # A meta tensor has no bytes. Of BatchNorm's buffers num_batches_tracked, which torch.tensor
    # makes, is real.
    counts = compare(build, expect_lazy=0.99, min_tensors=7, min_bytes=0)
    assert not counts.reads, "moving a parameter to meta needs no values"


def test_registration_that_copies_parameters() -> None:
    def build() -> torch.nn.Module:
        with parameters_go_to("cpu"):
            return LLAMA()

    compare(build, expect_lazy=0.99, min_tensors=23, min_bytes=500_000)


def test_meta_model_filled_inside_the_context() -> None:
    def build() -> torch.nn.Module:
        with accelerate.init_empty_weights():
            model = torch.nn.Sequential(torch.nn.Linear(64, 300), torch.nn.LayerNorm(300))
        model.to_empty(device="cpu")
        for layer in model:
            layer.reset_parameters()
        return model

    compare(build, min_tensors=4, min_bytes=64 * 300 * 4)


def test_skip_init_then_reset() -> None:
    def build() -> torch.nn.Module:
        layer = torch.nn.utils.skip_init(torch.nn.Linear, 64, 300)
        torch.nn.init.xavier_uniform_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        return layer

    compare(build, min_tensors=2, min_bytes=64 * 300 * 4)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_set_module_tensor_to_device(dtype: torch.dtype | None) -> None:
    def build() -> torch.nn.Module:
        with accelerate.init_empty_weights():
            layer = torch.nn.Linear(64, 300)
        for name in ("weight", "bias"):
            shape = getattr(layer, name).shape
            accelerate.utils.set_module_tensor_to_device(
                layer, name, "cpu", value=torch.randn(shape), dtype=dtype
            )
        return layer

    compare(build, min_tensors=2, min_bytes=300)


def test_set_module_tensor_on_a_lazy_model() -> None:
    def build() -> torch.nn.Module:
        model = LLAMA()
        for name, param in list(model.named_parameters()):
            if "proj" in name:
                accelerate.utils.set_module_tensor_to_device(
                    model, name, "cpu", value=torch.full_like(param, 0.5, requires_grad=False)
                )
        return model

    compare(build, expect_lazy=0.99, min_tensors=20, min_bytes=500_000)


def checkpoint_in_model(folder: Path) -> torch.nn.Module:
    model = LLAMA()
    accelerate.load_checkpoint_in_model(model, str(folder))
    return model


def checkpoint_and_dispatch(folder: Path) -> torch.nn.Module:
    with accelerate.init_empty_weights():
        model = LLAMA()
    return accelerate.load_checkpoint_and_dispatch(model, str(folder), device_map={"": "cpu"})


@pytest.mark.parametrize("load", [checkpoint_in_model, checkpoint_and_dispatch])
def test_checkpoint_is_loaded_as_in_eager(
    load: Callable[[Path], torch.nn.Module], tmp_path: Path
) -> None:
    torch.manual_seed(1234)
    LLAMA().save_pretrained(tmp_path)
    # Large real tensors are written at once, so what comes from the file is not lazy.
    compare(lambda: load(tmp_path), expect_lazy=None, min_tensors=23, min_bytes=500_000)


def test_offloaded_weights_are_those_of_eager() -> None:
    def build() -> torch.nn.Module:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(64, 300), torch.nn.Linear(300, 8))
        return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))

    eager = build()
    with dormant.lazy_init():
        lazy = build()
    # The hooks keep the weights in a mapping whose iterator names keys that it lacks.
    dormant.materialize(lazy)
    sample = torch.randn(3, 64)
    assert_same_bits(eager(sample), lazy(sample), "the output of the offloaded model")


def test_device_context_of_the_module_tree() -> None:
    def build() -> torch.nn.Module:
        with accelerate.init_on_device(torch.device("cpu")):
            return LLAMA()

    compare(build, expect_lazy=0.99, min_tensors=23, min_bytes=500_000)
