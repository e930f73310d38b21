"""`dormant.load` into quantized models: from full precision, from packed bytes, all or nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchao.quantization as ao
import transformers
from peers import assert_same_quantized, assert_same_state, four_bit, int8
from torch import nn
from transformers import BitsAndBytesConfig

import dormant
from compare import assert_same_bits
from dormant.quantization.layers import quantized_weights

SCHEMES: dict[str, Any] = {
    "nf4": "nf4",
    "fp4": dormant.FourBit(kind="fp4", nested=False),
    "int8": "int8",
}


def build(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 96), nn.LayerNorm(96), nn.Linear(96, 64))


def quantized(seed: int, scheme: Any) -> Any:
    with dormant.lazy_init():
        model = build(seed)
    dormant.quantize(model, scheme, skip=())
    return model


def peer(model: nn.Sequential, scheme: str) -> nn.Sequential:
    def layer(each: nn.Module) -> nn.Module:
        if not isinstance(each, nn.Linear):
            return each
        if scheme == "int8":
            return int8(each)
        return four_bit(each, quant_type=scheme, compress_statistics=scheme == "nf4")

    return nn.Sequential(*(layer(each) for each in model))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(build(2).state_dict(), path)
    return path


@pytest.mark.parametrize("mmap", ["auto", "never"])
@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_a_checkpoint_in_full_precision(scheme: str, mmap: Any, checkpoint: Path) -> None:
    model = quantized(1, SCHEMES[scheme])
    parameters = list(model.parameters())
    report = dormant.load(model, checkpoint, missing="error", mmap=mmap)
    assert report.missing_keys == report.unexpected_keys == ()
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert not dormant.is_lazy(model)
    assert_same_state(model, peer(build(2), scheme))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_a_dtype_is_cast_to_before_quantizing(
    scheme: str, dtype: torch.dtype, checkpoint: Path
) -> None:
    model = quantized(1, SCHEMES[scheme])
    dormant.load(model, checkpoint, dtype=dtype)
    assert_same_state(model, peer(build(2).to(dtype), scheme))


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_weights_that_are_missing_are_initialized_and_quantized(
    scheme: str, checkpoint: Path
) -> None:
    model = quantized(1, SCHEMES[scheme])
    report = dormant.load(model, checkpoint, rename=_without_last)
    assert report.missing_keys == ("2.weight", "2.bias")
    expected = [*peer(build(2), scheme)[:2], peer(build(1), scheme)[2]]
    assert_same_state(model, nn.Sequential(*expected))


def _without_last(name: str) -> str | None:
    return None if name.startswith("2.") else name


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_lazy_afterwards(scheme: str, checkpoint: Path) -> None:
    model = quantized(1, SCHEMES[scheme])
    dormant.load(model, checkpoint, materialize=False)
    assert dormant.is_lazy(model[0].weight)
    assert dormant.is_lazy(model[2].weight)
    dormant.materialize(model)
    assert_same_state(model, peer(build(2), scheme))


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_a_model_that_is_real_already(scheme: str, checkpoint: Path) -> None:
    model = quantized(1, SCHEMES[scheme])
    dormant.materialize(model)
    model.eval()(torch.randn(2, 64))
    dormant.load(model, checkpoint)
    assert_same_state(model, peer(build(2), scheme))


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_a_refused_checkpoint_changes_nothing(scheme: str, tmp_path: Path) -> None:
    model = quantized(1, SCHEMES[scheme])
    state = build(2).state_dict()
    state["2.weight"] = torch.zeros(3, 3)
    safetensors.torch.save_file(state, tmp_path / "bad.safetensors")
    sources = [weight.source for weight in quantized_weights(model)]
    before = [dict(vars(weight.module.weight)) for weight in quantized_weights(model)]
    with pytest.raises(KeyError, match=r"2\.weight: \(3, 3\) in the checkpoint"):
        dormant.load(model, tmp_path / "bad.safetensors")
    for weight, source, attributes in zip(quantized_weights(model), sources, before, strict=True):
        assert weight.source is source
        assert vars(weight.module.weight) == attributes
    dormant.materialize(model)
    assert_same_state(model, peer(build(1), scheme))


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_an_interrupt_changes_nothing_and_a_second_call_works(
    scheme: str, real: bool, checkpoint: Path
) -> None:
    model = quantized(1, SCHEMES[scheme])
    if real:
        dormant.materialize(model)
    expected = peer(build(1), scheme)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dormant.load(model, checkpoint, progress=interrupt)
    assert dormant.is_lazy(model) is not real
    if real:
        assert_same_quantized(model[0], expected[0])
    dormant.load(model, checkpoint)
    assert_same_state(model, peer(build(2), scheme))


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_after_an_interrupt_the_initialization_is_still_there(
    scheme: str, checkpoint: Path
) -> None:
    model = quantized(1, SCHEMES[scheme])

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dormant.load(model, checkpoint, progress=interrupt)
    dormant.materialize(model)
    assert_same_state(model, peer(build(1), scheme))


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_a_deep_copy_and_its_original_load_each_for_themselves(
    scheme: str, checkpoint: Path
) -> None:
    model = quantized(1, SCHEMES[scheme])
    duplicate = copy.deepcopy(model)
    third = copy.deepcopy(duplicate)
    dormant.load(duplicate, checkpoint, missing="error", materialize=False)
    dormant.load(duplicate, checkpoint, missing="error")
    assert dormant.is_lazy(model)
    dormant.load(third, checkpoint, rename=_without_last)
    dormant.materialize(model)
    expected = peer(build(2), scheme), peer(build(1), scheme)
    for mine, theirs in ((duplicate, expected[0]), (model, expected[1])):
        assert_same_state(mine, theirs)
        for layer in (0, 2):
            assert_same_quantized(mine[layer], theirs[layer])
    assert_same_state(third, nn.Sequential(*expected[0][:2], expected[1][2]))


# --- packed checkpoints


@pytest.mark.parametrize("scheme", list(SCHEMES))
def test_a_checkpoint_that_was_saved_quantized(scheme: str, tmp_path: Path) -> None:
    theirs = peer(build(2), scheme)
    path = tmp_path / "packed.safetensors"
    safetensors.torch.save_file(theirs.state_dict(), path)
    model = quantized(1, SCHEMES[scheme])
    report = dormant.load(model, path, missing="error")
    assert report.unexpected_keys == ()
    assert_same_state(model, theirs)
    inputs = torch.randn(3, 64)
    assert_same_bits(model(inputs), theirs(inputs), "forward")


def test_a_packed_checkpoint_of_another_scheme_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "packed.safetensors"
    safetensors.torch.save_file(peer(build(2), "int8").state_dict(), path)
    model = quantized(1, "nf4")
    with pytest.raises((KeyError, ValueError), match="SCB"):
        dormant.load(model, path)
    dormant.materialize(model)
    assert_same_state(model, peer(build(1), "nf4"))


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_what_transformers_saved_quantized_loads_here(scheme: str, tmp_path: Path) -> None:
    configuration = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=96,
    )
    torch.manual_seed(4)
    transformers.LlamaForCausalLM(configuration).save_pretrained(tmp_path / "float")
    options = (
        {"load_in_8bit": True}
        if scheme == "int8"
        else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    )
    theirs = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "float",
        quantization_config=BitsAndBytesConfig(**options),
        dtype=torch.bfloat16,
    )
    theirs.save_pretrained(tmp_path / "packed")
    with dormant.lazy_init(dtype=torch.bfloat16):
        mine = transformers.LlamaForCausalLM(configuration)
    dormant.quantize(mine, BitsAndBytesConfig(**options))
    dormant.load(mine, tmp_path / "packed", missing="error")
    assert_same_state(mine, theirs)
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        assert_same_bits(mine.eval()(tokens)[0], theirs(tokens)[0], "output")


# --- layer by layer


def test_torchao_gets_loaded_layers(checkpoint: Path) -> None:
    with dormant.lazy_init():
        mine: Any = build(1)
    dormant.quantize(mine, ao.Int8WeightOnlyConfig(), skip=["2"])
    report = dormant.load(mine, checkpoint, missing="error")
    assert report.missing_keys == ()
    assert report.count("checkpoint") == len(report.tensors)
    assert report.read_bytes == sum(p.nbytes for p in build(2).parameters())
    theirs: Any = build(2)
    ao.quantize_(theirs[:2], ao.Int8WeightOnlyConfig())
    assert_same_bits(mine[0].weight.qdata, theirs[0].weight.qdata, "codes")
    assert_same_bits(mine[0].weight.scale, theirs[0].weight.scale, "scale")
    assert_same_bits(mine[2].weight, theirs[2].weight, "rest")
    assert not dormant.is_lazy(mine)


def test_lazy_afterwards_a_function_gets_loaded_layers_later(checkpoint: Path) -> None:
    with dormant.lazy_init():
        model: Any = build(1)
    dormant.quantize(model, lambda layer: layer.half(), skip=())
    dormant.load(model, checkpoint, materialize=False)
    assert model[0].weight.dtype is torch.float32
    dormant.materialize(model)
    assert_same_bits(model[0].weight, build(2)[0].half().weight, "weight")
