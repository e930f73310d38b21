"""Modules of torch.nn and ways of building them: lazy layers, scripts, subclasses."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from compare import compare
from idiom import Idiom, Idioms

idiom = Idioms()

MODULES: dict[str, Any] = {
    "Linear": lambda: nn.Linear(7, 5),
    "Bilinear": lambda: nn.Bilinear(3, 4, 5),
    "Conv1d": lambda: nn.Conv1d(4, 6, 3, bias=False),
    "Conv2d_groups": lambda: nn.Conv2d(4, 8, 3, groups=4),
    "Conv3d": lambda: nn.Conv3d(2, 3, 2),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(4, 6, 3),
    "Embedding_padding": lambda: nn.Embedding(20, 8, padding_idx=3),
    "Embedding_max_norm": lambda: nn.Embedding(20, 8, max_norm=1.0, sparse=True),
    "Embedding_from_pretrained": lambda: nn.Embedding.from_pretrained(torch.randn(6, 4)),
    "EmbeddingBag": lambda: nn.EmbeddingBag(20, 8, mode="sum", padding_idx=0),
    "BatchNorm1d": lambda: nn.BatchNorm1d(9),
    "BatchNorm2d_no_affine": lambda: nn.BatchNorm2d(9, affine=False),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm2d(5)),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "GroupNorm": lambda: nn.GroupNorm(2, 8),
    "LayerNorm": lambda: nn.LayerNorm((3, 4)),
    "RMSNorm": lambda: nn.RMSNorm(6),
    "PReLU": lambda: nn.PReLU(4),
    "RNN": lambda: nn.RNN(5, 6, num_layers=2, nonlinearity="relu"),
    "LSTM": lambda: nn.LSTM(5, 6, num_layers=2, bidirectional=True, proj_size=3),
    "GRU": lambda: nn.GRU(5, 6, bias=False),
    "LSTMCell": lambda: nn.LSTMCell(5, 6),
    "MultiheadAttention": lambda: nn.MultiheadAttention(16, 4, add_bias_kv=True),
    "MultiheadAttention_kdim": lambda: nn.MultiheadAttention(16, 4, kdim=8, vdim=6),
    "Transformer": lambda: nn.Transformer(16, 2, 1, 1, 32),
    "TransformerEncoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 2),
    "AdaptiveLogSoftmax": lambda: nn.AdaptiveLogSoftmaxWithLoss(16, 100, [10, 50]),
    "CrossEntropy_weights": lambda: nn.CrossEntropyLoss(weight=torch.rand(10)),
    "Upsample": lambda: nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(3, 3, 1)),
}


@pytest.mark.core
@pytest.mark.parametrize("name", MODULES)
def test_module_of_torch_nn(name: str) -> None:
    # the counter of these is made by torch.tensor, which holds a number that exists already
    counts = any(word in name for word in ("BatchNorm", "InstanceNorm"))
    compare(MODULES[name], expect_lazy=0.85 if counts else 1.0)


@idiom
def parameter_lists_and_dicts() -> nn.Module:
    model = nn.Module()
    model.list = nn.ParameterList([nn.Parameter(torch.randn(i + 1)) for i in range(4)])
    model.list.append(torch.rand(3))
    model.dict = nn.ParameterDict({"a": nn.Parameter(torch.randn(2)), "b": torch.ones(3)})
    model.dict["c"] = nn.Parameter(torch.eye(3), requires_grad=False)
    model.modules_by_name = nn.ModuleDict({"x": nn.Linear(2, 2), "y": nn.LayerNorm(3)})
    model.buffers_by_name = nn.Module()
    model.buffers_by_name.register_buffer("kept", torch.rand(2))
    model.buffers_by_name.register_buffer("dropped", torch.rand(2), persistent=False)
    model.buffers_by_name.register_buffer("none", None)
    return model


@idiom
def lazy_linear_stays_uninitialized() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(4), nn.LazyConv2d(3, 3), nn.Linear(4, 4))


@idiom(expect_lazy=None, reads="a forward pass inside the context computes")
def lazy_linear_materialized_by_a_dry_run() -> nn.Module:
    model = nn.Sequential(nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.LazyLinear(3))
    model.eval()(torch.zeros(2, 5))
    return model


@idiom
def an_uninitialized_parameter_materialized_by_hand() -> nn.Module:
    model = nn.Module()
    model.weight = UninitializedParameter()
    model.weight.materialize((4, 3))
    nn.init.uniform_(model.weight)
    return model


@idiom(expect_lazy=None, reads="a forward pass inside the context computes")
def a_dry_run_counts_batches() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    features = model(torch.rand(2, 1, 8, 8)).shape[1]
    model.append(nn.Linear(features, 3))
    return model


@torch.jit.script
def scripted_scale(weight: torch.Tensor, factor: float) -> torch.Tensor:
    if weight.dim() > 1:
        weight = weight * factor
    return weight + 1


@idiom
def scripted_functions() -> list[torch.Tensor]:
    a = torch.randn(3, 4)
    return [a, scripted_scale(a, 0.5), scripted_scale(a[0], 2.0)]


@idiom(constants=False)  # dynamo keeps an id of the module among its attributes
def a_model_wrapped_by_torch_compile() -> nn.Module:
    return torch.compile(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))


class LegacyLinear(nn.Module):
    """As fairscale's and Megatron's layers allocate: uninitialized, then in place."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.Tensor(6, 8))
        self.bias = nn.Parameter(torch.Tensor(6))
        self.scale = nn.Parameter(torch.FloatTensor(3).fill_(2))
        self.double = torch.DoubleTensor(2, 2).normal_()
        self.index = torch.LongTensor([1, 2, 3])
        self.empty = torch.Tensor()
        master = torch.empty(12, 8, requires_grad=False)
        nn.init.xavier_normal_(master)
        parts = torch.split(master, 3, dim=0)
        with torch.no_grad():
            torch.cat(parts[1::2], dim=0, out=self.weight)
            self.bias.zero_()
        self.new = self.weight.new(4).fill_(1)
        self.newer = self.weight.data.new(2, 3).zero_()
        self.from_list = self.weight.new_tensor([1.0, 2.0])
        self.typed = torch.randn(3).type(torch.DoubleTensor)


@idiom(expect_lazy=None, reads="LongTensor and new_tensor of a list hold existing data")
def legacy_constructors() -> nn.Module:
    return LegacyLinear()


@idiom
def inference_mode_and_no_grad() -> list[torch.Tensor]:
    with torch.inference_mode():
        first = torch.randn(4)
        first.mul_(2)
        view = first[1:]
    with torch.no_grad():
        second = nn.Parameter(torch.rand(3))
        third = second * 2
    return [first, view, second, third]


class Marked(torch.Tensor):
    """A subclass without any behavior of its own."""


class ScaledParameter(nn.Parameter):
    def __new__(cls, data: torch.Tensor, scale: float = 1.0) -> ScaledParameter:
        made = super().__new__(cls, data)
        made.scale = scale
        return made


@idiom
def tensor_and_parameter_subclasses() -> nn.Module:
    model = nn.Module()
    model.scaled = ScaledParameter(torch.randn(3, 3), 0.5)
    model.marked = torch.randn(4).as_subclass(Marked)
    model.buffer = nn.Buffer(torch.rand(3), persistent=False)
    model.bias = nn.Parameter(torch.zeros(3))
    model.bias.tag = "no decay"
    model.bias.twin = torch.rand(2)
    return model


@idiom
def a_sequential_grown_inserted_and_sliced() -> nn.Module:
    model = nn.Sequential(*nn.Sequential(OrderedDict(a=nn.Linear(2, 3), b=nn.ReLU())))
    model.append(nn.Linear(3, 5))
    model.insert(1, nn.LayerNorm(3))
    del model[0]
    return nn.ModuleList([model[:2], model[1:]])


@idiom
def a_module_shared_through_a_cache() -> nn.Module:
    @cache
    def table(size: int) -> torch.Tensor:
        return torch.arange(float(size)).cos()

    model = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    for layer in model:
        layer.register_buffer("table", table(8), persistent=False)
    return model


@idiom
def functional_call_and_state_dicts_while_building() -> nn.Module:
    teacher, student = nn.Linear(4, 4), nn.Linear(4, 4)
    student.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(0.5)
    return nn.ModuleList([teacher, student])


@idiom
def parameters_flattened_into_a_vector_and_back() -> nn.Module:
    model = nn.Linear(4, 4)
    with torch.no_grad():
        vector = torch.nn.utils.parameters_to_vector(model.parameters())
        torch.nn.utils.vector_to_parameters(vector * 2, model.parameters())
    return model


@idiom
def skip_init_then_reset() -> nn.Module:
    module = torch.nn.utils.skip_init(nn.Linear, 6, 3)
    module.reset_parameters()
    return module


@idiom
def meta_first_then_to_empty() -> nn.Module:
    with torch.device("meta"):
        module = nn.Linear(6, 3)
    module.to_empty(device="cpu")
    module.reset_parameters()
    return module


@idiom
def modules_on_the_meta_device_are_left_alone() -> nn.Module:
    return nn.ModuleList([nn.Linear(4, 4, device="meta"), nn.Linear(4, 4)])


@idiom(expect_lazy=None, reads="recurrent kernels and attention have results that only they know")
def forward_passes_of_larger_layers() -> dict[str, object]:
    x = torch.randn(3, 2, 8)
    lstm, gru = nn.LSTM(8, 8, 2, bidirectional=True), nn.GRU(8, 4)
    attention, encoder = nn.MultiheadAttention(8, 2), nn.TransformerEncoderLayer(8, 2, 16)
    return {
        "modules": nn.ModuleList([lstm, gru, attention, encoder]),
        "lstm": lstm(x)[0],
        "gru": gru(x)[0],
        "attention": attention(x, x, x)[0],
        "encoder": encoder(x),
        "scaled": nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True),
    }


@idiom(expect_lazy=None, reads="packing reads the lengths")
def sequences_padded_and_packed() -> list[torch.Tensor]:
    sequences = [torch.randn(3, 2), torch.randn(1, 2)]
    padded = nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=-1.0)
    packed = nn.utils.rnn.pack_sequence(sequences)
    return [padded, packed.data, packed.batch_sizes]


@idiom
def a_module_wrapped_for_several_devices() -> nn.Module:
    return nn.DataParallel(nn.Linear(3, 3))


@idiom(expect_lazy=0.8, reads="torch.tensor holds the counters of observers")
def a_module_prepared_for_training_with_quantization() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).train()
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
    return torch.ao.quantization.prepare_qat(model)


@idiom.parametrize()
def test_equals_eager(case: Idiom) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case.check()
