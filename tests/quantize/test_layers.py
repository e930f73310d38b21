"""Which layers become quantized ones, which stay, and what stays of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
import transformers
from parallel_layers import (
    ColumnParallelLinear,
    MegatronColumnParallelLinear,
    RowParallelLinear,
)
from peers import assert_same_quantized, assert_same_state, four_bit, int8
from torch import nn
from torch.nn.utils import parametrizations
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

import dormant
from compare import assert_same_bits

SCHEMES = ("nf4", "fp4", "int8")


def peer(layer: nn.Linear, scheme: str) -> Any:
    return int8(layer) if scheme == "int8" else four_bit(layer, quant_type=scheme)


def body(*extra: nn.Module) -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), *extra)


def lazy_body(*extra: nn.Module) -> nn.Sequential:
    with dormant.lazy_init():
        return body(*extra)


class OwnLinear(nn.Linear):
    pass


def test_only_the_exact_class_is_replaced() -> None:
    with dormant.lazy_init():
        model = nn.ModuleDict(
            {
                "plain": nn.Linear(64, 64),
                "own": OwnLinear(64, 64),
                "bilinear": nn.Bilinear(4, 4, 4),
                "attention": nn.MultiheadAttention(64, 4),
                "convolution": nn.Conv1d(4, 4, 1),
                "embedding": nn.Embedding(16, 64),
            }
        )
    report = dormant.quantize(model, "nf4", skip=())
    assert [layer.name for layer in report.layers] == ["plain"]
    assert type(model["own"]) is OwnLinear
    assert type(model["attention"].out_proj) is nn.modules.linear.NonDynamicallyQuantizableLinear


def test_the_module_bias_hooks_and_attributes_stay_the_same_objects() -> None:
    model: Any = lazy_body()
    layer, bias = model[0], model[0].bias
    layer.note = note = object()
    calls: list[nn.Module] = []
    layer.register_forward_hook(lambda module, *_: calls.append(module))
    layer.eval()
    dormant.quantize(model, "nf4", skip=())
    assert model[0] is layer
    assert type(layer) is bitsandbytes.nn.Linear4bit
    assert layer.bias is bias
    assert bias.requires_grad
    assert layer.note is note
    assert layer.training is False
    assert model[2].training is True
    dormant.materialize(model)
    model(torch.randn(2, 64))
    assert calls == [layer]


def test_other_parameters_stay_the_same_objects_and_get_eager_values() -> None:
    def build() -> nn.Sequential:
        return body().extend([nn.LayerNorm(64), nn.Linear(64, 8)])

    with dormant.lazy_init():
        model = build()
    before = dict(model.named_parameters())
    dormant.quantize(model, "nf4", skip=["4"])
    dormant.materialize(model)
    eager = dict(build().named_parameters())
    for name, parameter in model.named_parameters():
        if name not in ("0.weight", "2.weight"):
            assert parameter is before[name]
            assert_same_bits(parameter, eager[name], name)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_inside_and_outside_the_context(scheme: str, inside: bool) -> None:
    with dormant.lazy_init():
        model: Any = body()
        if inside:
            dormant.quantize(model, scheme, skip=())
    if not inside:
        dormant.quantize(model, scheme, skip=())
    assert dormant.is_lazy(model[0].weight)
    dormant.materialize(model)
    for mine, eager in zip(model, body(), strict=True):
        if isinstance(eager, nn.Linear):
            assert_same_quantized(mine, peer(eager, scheme))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_real_model_is_quantized_at_once(scheme: str) -> None:
    model: Any = body()
    dormant.quantize(model, scheme, skip=())
    assert not dormant.is_lazy(model)
    assert_same_quantized(model[0], peer(body()[0], scheme))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_conv1d_is_quantized_transposed(scheme: str) -> None:
    def build() -> Conv1D:
        torch.manual_seed(2)
        return Conv1D(96, 64)

    with dormant.lazy_init():
        layer: Any = build()
    dormant.quantize(layer, scheme)
    dormant.materialize(layer)
    eager = build()
    linear = nn.Linear(64, 96)
    with torch.no_grad():
        linear.weight.copy_(eager.weight.t())
        linear.bias.copy_(eager.bias)
    theirs = peer(linear, scheme)
    assert_same_state(layer, theirs)
    inputs = torch.randn(3, 64)
    assert_same_bits(layer(inputs), theirs(inputs), "forward")


def test_a_transposed_weight_is_never_whole_in_full_precision() -> None:
    def build() -> Conv1D:
        torch.manual_seed(2)
        return Conv1D(1408, 1024)

    with dormant.lazy_init():
        layer: Any = build()
    dormant.quantize(layer, "nf4")
    # Replayed whole, it would take twice as much.
    dormant.materialize(layer, memory_budget=1408 * 1024 * 4)
    linear = nn.Linear(1024, 1408)
    eager = build()
    with torch.no_grad():
        linear.weight.copy_(eager.weight.t())
        linear.bias.copy_(eager.bias)
    assert_same_state(layer, peer(linear, "nf4"))


# --- parallel layers


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_parallel_layers_keep_their_forward(scheme: str, parts: int) -> None:
    gathered: list[torch.Size] = []

    def gather(output: torch.Tensor) -> torch.Tensor:
        gathered.append(output.shape)
        return torch.cat([output] * parts, dim=-1)

    def build() -> nn.Sequential:
        torch.manual_seed(6)
        return nn.Sequential(
            ColumnParallelLinear(64, 128, parts=parts, gather=gather),
            nn.Unflatten(-1, (parts, 128 // parts)),
            RowParallelLinear(128, 64, parts=parts, reduce=lambda output: output.sum(-2)),
        )

    with dormant.lazy_init():
        model = build()
    dormant.quantize(model, scheme, skip=())
    assert type(model[0]) is ColumnParallelLinear
    dormant.materialize(model)

    eager = build()
    column, row = linear_of(eager[0]), linear_of(eager[2])
    inputs = torch.randn(3, 64)
    mine = model(inputs)
    assert gathered == [torch.Size([3, 128 // parts])]
    first = gather(peer(column, scheme)(inputs)).unflatten(-1, (parts, 128 // parts))
    bias = row.bias
    row.bias = None
    theirs = peer(row, scheme)(first).sum(-2) + bias
    assert_same_bits(mine, theirs, "forward")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_parallel_layers_follow_train_and_eval(scheme: str, training: bool) -> None:
    torch.manual_seed(6)
    with dormant.lazy_init():
        model = nn.Sequential(ColumnParallelLinear(64, 128, parts=2))
    dormant.quantize(model, scheme, skip=())
    dormant.materialize(model)
    torch.manual_seed(6)
    theirs = peer(linear_of(ColumnParallelLinear(64, 128, parts=2)), scheme)
    inputs = torch.randn(3, 64)
    expected = theirs.train(training)(inputs)
    assert_same_bits(model.train(training)(inputs), expected, "forward")


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_deep_copies_of_parallel_layers_are_their_own(scheme: str, lazy: bool) -> None:
    with dormant.lazy_init():
        model: Any = nn.Sequential(ColumnParallelLinear(64, 128, parts=2))
    dormant.quantize(model, scheme, skip=())
    if not lazy:
        dormant.materialize(model)
    duplicate = copy.deepcopy(model)
    if lazy:
        torch.manual_seed(9)
        weight = torch.randn(64, 64)
        for each in (model, duplicate):
            dormant.load(each, {"0.weight": weight, "0.bias": torch.zeros(64)})
    dormant.materialize([model, duplicate])
    expected = {name: tensor.clone() for name, tensor in duplicate.state_dict().items()}
    inputs = torch.randn(3, 64)
    assert_same_bits(duplicate(inputs), model(inputs), "forward")
    model[0].weight.data.zero_()
    for name, tensor in duplicate.state_dict().items():
        assert_same_bits(tensor, expected[name], name)
    assert not torch.equal(duplicate(inputs), model(inputs))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_parallel_layers_save_what_bitsandbytes_saves(scheme: str) -> None:
    def build() -> ColumnParallelLinear:
        torch.manual_seed(6)
        return ColumnParallelLinear(64, 128, parts=2)

    with dormant.lazy_init():
        layer = build()
    dormant.quantize(layer, scheme)
    dormant.materialize(layer)
    theirs = peer(linear_of(build()), scheme)
    mine, expected = layer.state_dict(), theirs.state_dict()
    assert set(mine) == set(expected)
    for name, tensor in expected.items():
        assert_same_bits(mine[name], tensor, name)
    layer.eval()(torch.randn(2, 64))
    assert set(layer.state_dict()) == set(expected)


def test_megatrons_second_result_stays() -> None:
    def build() -> MegatronColumnParallelLinear:
        torch.manual_seed(6)
        return MegatronColumnParallelLinear(64, 32)

    with dormant.lazy_init():
        layer = build()
    dormant.quantize(layer, "nf4")
    dormant.materialize(layer)
    eager = build()
    linear = nn.Linear(64, 32, bias=False)
    linear.weight = eager.weight
    inputs = torch.randn(3, 64)
    output, bias = layer(inputs)
    assert_same_bits(output, four_bit(linear, quant_type="nf4")(inputs), "output")
    assert_same_bits(bias, eager.bias, "bias")


def linear_of(parallel: Any) -> nn.Linear:
    rows, columns = parallel.weight.shape
    linear = nn.Linear(columns, rows, bias=parallel.bias is not None)
    linear.weight, linear.bias = parallel.weight, parallel.bias
    return linear


# --- what is skipped


def test_adapters_are_skipped_by_default_and_no_head_is_guessed() -> None:
    with dormant.lazy_init():
        model = nn.ModuleDict(
            {
                "output": nn.Linear(64, 10),
                "embedding": nn.Embedding(10, 64),
                "project": nn.Linear(64, 64),
                "project_lora_a": nn.Linear(64, 4),
                "last": nn.Linear(64, 10),
                "last_lora_b": nn.Linear(4, 10),
            }
        )
    report = dormant.quantize(model, "nf4")
    assert [layer.name for layer in report.layers] == ["output", "project", "last"]
    assert set(report.skipped) == {"project_lora_a", "last_lora_b"}
    assert "lora" in report.skipped["project_lora_a"]


class HeadFirst(transformers.PreTrainedModel):  # type: ignore[misc]
    """A model whose output embedding was registered before the rest."""

    config_class = transformers.PretrainedConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.head = nn.Linear(64, 16)
        self.body = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64))
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.head


@pytest.mark.parametrize("within", [False, True])
def test_a_head_is_what_the_model_says(within: bool) -> None:
    with dormant.lazy_init():
        model: nn.Module = HeadFirst(transformers.PretrainedConfig())
        if within:
            model = nn.ModuleDict({"encoder": model, "head": nn.Linear(64, 64)})
    report = dormant.quantize(model, "nf4")
    prefix = "encoder." if within else ""
    expected = [f"{prefix}body.0", *(["head"] if within else [])]
    assert [layer.name for layer in report.layers] == expected
    assert report.skipped == {f"{prefix}head": "it is the output embedding"}


def test_what_is_skipped_is_what_transformers_skips() -> None:
    """Its own list of names for a head in a wrapper, a tied head and modules in float32."""
    for configuration, kind in (
        (
            transformers.T5Config(d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=4),
            transformers.T5ForConditionalGeneration,
        ),
        (
            transformers.GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=64),
            transformers.GPT2LMHeadModel,
        ),
        (
            transformers.BertConfig(
                hidden_size=64,
                num_hidden_layers=1,
                num_attention_heads=4,
                intermediate_size=64,
                vocab_size=64,
            ),
            transformers.BertForSequenceClassification,
        ),
    ):
        with dormant.lazy_init():
            model = kind(configuration)
            wrapped = nn.ModuleDict({"inner": kind(configuration)})
        names = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
        linear = [name for name, each in model.named_modules() if type(each) in (nn.Linear, Conv1D)]
        expected = [name for name in linear if should_convert_module(name, names)]
        report = dormant.quantize(model, "nf4")
        assert [layer.name for layer in report.layers] == expected
        tables = {
            f"{name}.weight" for name, each in model.named_modules() if type(each) is nn.Embedding
        }
        assert set(report.skipped) - tables == set(linear) - set(expected)
        report = dormant.quantize(wrapped, "nf4")
        assert [layer.name for layer in report.layers] == [f"inner.{name}" for name in expected]


def test_parameters_that_may_stack_experts_are_named() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_experts = 4
            self.up = nn.Parameter(torch.randn(4, 64, 32))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(64, 4)
            self.experts = nn.Module()
            self.experts.down = nn.Parameter(torch.randn(3, 32, 64))
            self.mlp = Experts()
            self.positions = nn.Parameter(torch.randn(1, 16, 64))
            self.expert_convolution = nn.Conv1d(4, 4, 3)

    with dormant.lazy_init():
        model = Block()
        only = Experts()
    report = dormant.quantize(model, "nf4")
    assert [layer.name for layer in report.layers] == ["gate"]
    assert list(report.skipped) == ["experts.down", "mlp.up"]
    assert "3 experts in one parameter" in report.skipped["experts.down"]
    assert "name it in parameters=" in report.skipped["experts.down"]
    assert "kept mlp.up: it stacks the matrices of 4 experts" in str(report)
    with pytest.raises(ValueError, match=r"no layer to quantize.*up: it stacks"):
        dormant.quantize(only, "nf4")


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_stacked_experts_do_not_change_what_transformers_skips(scheme: str) -> None:
    configuration = transformers.MixtralConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        vocab_size=64,
    )
    with dormant.lazy_init():
        model = transformers.MixtralForCausalLM(configuration)
    experts = {name for name, p in model.named_parameters() if p.dim() == 3}
    report = dormant.quantize(model, scheme)
    assert experts
    assert set(report.skipped) == {"lm_head"} | (set() if scheme == "nf4" else experts)
    assert model.config.quantization_config.llm_int8_skip_modules is None


@pytest.mark.parametrize(
    ("skip", "quantized"),
    [
        ((), ["layers.1.up", "layers.1.down", "layers.11.up", "layers.11.down", "head"]),
        (["layers.1"], ["layers.11.up", "layers.11.down", "head"]),
        (["down"], ["layers.1.up", "layers.11.up", "head"]),
        ([r"layers\.\d+\.up", "head"], ["layers.1.down", "layers.11.down"]),
        (iter(["layers"]), ["head"]),
    ],
)
def test_skip_is_matched_as_transformers_does(skip: Any, quantized: list[str]) -> None:
    def block() -> nn.ModuleDict:
        return nn.ModuleDict({"up": nn.Linear(8, 8), "down": nn.Linear(8, 8)})

    with dormant.lazy_init():
        model = nn.Module()
        model.layers = nn.ModuleDict({"1": block(), "11": block()})
        model.head = nn.Linear(8, 8)
    report = dormant.quantize(model, "nf4", skip=skip)
    assert [layer.name for layer in report.layers] == quantized


def test_tied_weights_are_skipped_by_default() -> None:
    with dormant.lazy_init():
        model: Any = lazy_body(nn.Linear(64, 64))
        model[3].weight = model.append(nn.Embedding(64, 64))[4].weight
    report = dormant.quantize(model, "nf4")
    assert [layer.name for layer in report.layers] == ["0", "2"]
    assert report.skipped == {"3": "its weight is tied"}
    assert model[3].weight is model[4].weight


def test_tied_weights_that_are_asked_for_are_refused() -> None:
    with dormant.lazy_init():
        model: Any = body()
        model[2].weight = nn.Parameter(model[0].weight.data.t())
    with pytest.raises(ValueError, match=r"0\.weight is tied: 0\.weight, 2\.weight") as error:
        dormant.quantize(model, "nf4", skip=())
    assert "Skip these layers, or untie" in str(error.value)
    assert type(model[0]) is nn.Linear


def test_a_module_held_twice_is_quantized_once() -> None:
    with dormant.lazy_init():
        model: Any = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        model.append(model[0])
    report = dormant.quantize(model, "nf4", skip=())
    assert [layer.name for layer in report.layers] == ["0"]
    assert model[2] is model[0]


def test_quantizing_twice_takes_what_is_left() -> None:
    model: Any = lazy_body(ColumnParallelLinear(64, 64), nn.Linear(64, 64))
    first = dormant.quantize(model, "nf4", skip=["4"])
    second = dormant.quantize(model, "int8", skip=())
    assert [layer.name for layer in first.layers] == ["0", "2", "3"]
    assert [layer.name for layer in second.layers] == ["4"]
    with pytest.raises(ValueError, match="no layer to quantize"):
        dormant.quantize(model, "nf4", skip=())


def test_computed_weights_are_left_alone() -> None:
    model: Any = lazy_body()
    parametrizations.weight_norm(model[0])
    torch.nn.utils.weight_norm(model[2])
    model.append(nn.Linear(64, 64))
    report = dormant.quantize(model, "nf4", skip=())
    assert [layer.name for layer in report.layers] == ["3"]
    assert "weight norm" in report.skipped["2"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_scripted_layers_are_left_alone(tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(5)
        scripted = torch.jit.script(nn.Linear(64, 64))
        return nn.Sequential(scripted, nn.Linear(64, 64))

    with dormant.lazy_init():
        model: Any = build()
    report = dormant.quantize(model, "nf4", skip=())
    assert [layer.name for layer in report.layers] == ["1"]
    dormant.save(model, tmp_path)
    dormant.materialize(model)
    eager: Any = build()
    assert_same_bits(eager[0].weight, model[0].weight)
    assert_same_quantized(four_bit(eager[1], quant_type="nf4"), model[1])


def test_gpt2_keeps_what_transformers_keeps() -> None:
    configuration = transformers.GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=64)
    with dormant.lazy_init():
        model = transformers.GPT2LMHeadModel(configuration)
    report = dormant.quantize(model, "nf4")
    kinds = {layer.kind for layer in report.layers}
    assert kinds == {"Conv1D"}
    assert len(report.layers) == 4
    assert list(report.skipped) == ["lm_head"]


# --- copies and reports


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_deep_copy_of_a_lazy_quantized_model(scheme: str) -> None:
    model = lazy_body()
    dormant.quantize(model, scheme, skip=())
    duplicate = copy.deepcopy(model)
    dormant.materialize(model)
    dormant.materialize(duplicate)
    assert_same_state(duplicate, model)
    assert duplicate[0].weight.data_ptr() != model[0].weight.data_ptr()


def test_the_report_counts_bytes() -> None:
    model = lazy_body(nn.Linear(64, 8))
    report = dormant.quantize(model, "nf4", skip=["3"])
    dormant.materialize(model)
    for layer in report.layers:
        state = model.get_submodule(layer.name).state_dict()
        held = sum(
            state[name].nbytes for name in ("weight", "weight.absmax", "weight.nested_absmax")
        )
        assert layer.nbytes == held + 4  # the offset, which is saved as text
    assert report.layers[0].nbytes_before == 4 * 64 * 128
    assert "2 layers" in str(report)
    assert "kept 3: the caller skips it" in str(report)
    assert report.to_dict()["layers"][0]["name"] == "0"


def test_int8_reports_its_bytes() -> None:
    model: Any = lazy_body()
    report = dormant.quantize(model, "int8", skip=())
    dormant.materialize(model)
    assert report.layers[0].nbytes == model[0].weight.nbytes + model[0].weight.SCB.nbytes
