"""Stacked experts in 4 bits: which, with which bits, and what can be done with them."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from bitsandbytes import functional
from stacked_models import (
    BUILDS,
    SIZES,
    assert_same_model_packed,
    built,
    mixtral,
    pack_by_library,
    qwen3_moe,
    stacks,
)
from torch import nn

import dormant
from compare import assert_same_bits
from dormant.cli.main import main


class Experts(nn.Module):
    """Of the form that is known without transformers."""

    def __init__(self, shape: tuple[int, int, int] = (4, 64, 32)) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(*shape))
        self.down_proj = nn.Parameter(torch.randn(*shape))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs @ self.gate_up_proj[1] @ self.down_proj[2].t()


def lazy_experts(shape: tuple[int, int, int] = (4, 64, 32), seed: int = 5) -> Any:
    torch.manual_seed(seed)
    with dormant.lazy_init():
        return Experts(shape)


def real_experts(shape: tuple[int, int, int] = (4, 64, 32), seed: int = 5) -> Any:
    torch.manual_seed(seed)
    return Experts(shape)


@pytest.mark.parametrize("shape", [(4, 64, 32), (3, 5, 7), (1, 2, 3), (2, 33, 64)], ids=str)
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_bits_and_objects_are_those_of_replace_parameter_4bit(
    kind: Any, nested: bool, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    for block_size in (32, 64, 4096):
        model, eager = lazy_experts(shape).to(dtype), real_experts(shape).to(dtype)
        dormant.quantize(model, dormant.FourBit(kind=kind, nested=nested, block_size=block_size))
        assert dormant.is_lazy(model)
        dormant.materialize(model)
        pack_by_library(
            eager,
            ["gate_up_proj", "down_proj"],
            quant_type=kind,
            compress_statistics=nested,
            blocksize=block_size,
        )
        assert_same_model_packed(model, eager, ["gate_up_proj", "down_proj"])
        assert vars(model).keys() == vars(eager).keys()
        assert_same_bits(model.down_proj, eager.down_proj, "unpacked")


@pytest.mark.parametrize("name", BUILDS)
def test_experts_of_transformers_are_chosen(name: str) -> None:
    model, eager = built(BUILDS[name], lazily=True), built(BUILDS[name], lazily=False)
    names = stacks(model)
    assert len(names) == 4
    report = dormant.quantize(model, "nf4")
    chosen = [layer for layer in report.layers if layer.name in names]
    assert [layer.name for layer in chosen] == names
    kind = type(eager.get_submodule(names[0].rpartition(".")[0])).__name__
    assert {layer.kind for layer in chosen} == {kind}
    assert all(layer.is_parameter for layer in chosen)
    assert f" layers and {len(names)} parameters, " in str(report)
    assert not set(names) & set(report.skipped)
    dormant.materialize(model)
    pack_by_library(eager, names, compress_statistics=True)
    assert_same_model_packed(model, eager, names)


def test_real_experts_are_packed_at_once() -> None:
    model, eager = real_experts(), real_experts()
    dormant.quantize(model, "nf4")
    assert not dormant.is_lazy(model)
    pack_by_library(eager, ["gate_up_proj", "down_proj"], compress_statistics=True)
    assert_same_model_packed(model, eager, ["gate_up_proj", "down_proj"])


def test_packed_bytes_may_be_shown_as_another_dtype() -> None:
    """As FSDP1 wants them; replace_parameter_4bit itself has no option for it."""
    model, eager = lazy_experts(), real_experts()
    dormant.quantize(model, dormant.FourBit(storage_dtype=torch.bfloat16))
    dormant.load(model, eager.state_dict())
    pack_by_library(eager, ["gate_up_proj", "down_proj"], compress_statistics=True)
    packed = model.parametrizations.down_proj.original
    assert packed.dtype is torch.bfloat16
    assert_same_bits(
        packed.view(torch.uint8).view(-1, 1), eager.parametrizations.down_proj.original
    )
    assert_same_bits(model.down_proj, eager.down_proj, "unpacked")


def test_inside_the_context_and_in_another_default_dtype() -> None:
    default = torch.get_default_dtype()
    torch.manual_seed(5)
    with dormant.lazy_init(dtype=torch.bfloat16):
        model = Experts()
        dormant.quantize(model, "nf4")
    assert torch.get_default_dtype() is default
    dormant.materialize(model)
    torch.manual_seed(5)
    torch.set_default_dtype(torch.bfloat16)
    try:
        eager = Experts()
    finally:
        torch.set_default_dtype(default)
    pack_by_library(eager, ["gate_up_proj", "down_proj"], compress_statistics=True)
    assert_same_model_packed(model, eager, ["gate_up_proj", "down_proj"])


def test_parts_can_be_materialized() -> None:
    model, eager = built(mixtral, lazily=True), built(mixtral, lazily=False)
    names = stacks(model)
    dormant.quantize(model, "nf4")
    first: Any = model.model.layers[0].mlp.experts
    dormant.materialize(first.parametrizations.down_proj)
    assert not dormant.is_lazy(first.parametrizations.down_proj)
    assert dormant.is_lazy(first.parametrizations.gate_up_proj)
    dormant.materialize(model.model.layers[1])
    dormant.materialize(model)
    pack_by_library(eager, names, compress_statistics=True)
    assert_same_model_packed(model, eager, names)


def test_a_parameter_that_is_read_before_is_materialized_for_it() -> None:
    model, eager = lazy_experts(), real_experts()
    dormant.quantize(model, "nf4")
    pack_by_library(eager, ["gate_up_proj", "down_proj"], compress_statistics=True)
    assert_same_bits(model.gate_up_proj, eager.gate_up_proj, "gate_up_proj")
    assert dormant.is_lazy(model.parametrizations.down_proj)
    inputs = torch.randn(2, 64)
    assert_same_bits(model(inputs), eager(inputs), "forward")


# ---- what is chosen, and what the report says


def test_parameters_that_are_named() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.known = Experts()
            self.other = nn.Module()
            self.other.expert_weights = nn.Parameter(torch.randn(4, 32, 64))
            self.table = nn.Embedding(16, 64)
            self.head = nn.Linear(64, 64)

    def block() -> Any:
        torch.manual_seed(1)
        return Block()

    def lazy() -> Any:
        with dormant.lazy_init():
            return block()

    report = dormant.quantize(lazy(), "nf4")
    assert [each.name for each in report.layers] == [
        "head",
        "known.gate_up_proj",
        "known.down_proj",
    ]
    assert "name it in parameters=" in report.skipped["other.expert_weights"]

    for patterns, expected in (
        (["expert_weights"], ["other.expert_weights"]),
        (["other.expert_weights", "table.weight"], ["other.expert_weights", "table.weight"]),
        ([r"known\..*_proj"], ["known.gate_up_proj", "known.down_proj"]),
        (iter(["known.down_proj"]), ["known.down_proj"]),
        ((), []),
        (["head.weight", "down_proj"], ["known.down_proj"]),
    ):
        model, eager = lazy(), block()
        report = dormant.quantize(model, "nf4", parameters=patterns)
        assert [each.name for each in report.layers] == ["head", *expected]
        dormant.materialize(model)
        pack_by_library(eager, expected, compress_statistics=True)
        assert_same_model_packed(model, eager, expected)
        left = {"known.gate_up_proj", "known.down_proj", "other.expert_weights"} - set(expected)
        assert set(report.skipped) == left
        assert set(report.skipped.values()) <= {"parameters= does not name it"}

    model = lazy()
    report = dormant.quantize(
        model, "nf4", skip=["known", "head"], parameters=["down_proj", "table.weight"]
    )
    assert [each.name for each in report.layers] == ["table.weight"]
    assert report.skipped["known.down_proj"] == "the caller skips it"


def test_names_that_match_nothing_change_nothing() -> None:
    model = built(mixtral, lazily=True)
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    with pytest.raises(ValueError, match=r"'expert.down_prj' \(did you mean '.*down_proj'"):
        dormant.quantize(model, "nf4", parameters=["gate_up_proj", "expert.down_prj"])
    with pytest.raises(ValueError, match=r"parameters has '\*proj', which is not a regular"):
        dormant.quantize(model, "nf4", parameters=["*proj"])
    with pytest.raises(TypeError, match="parameters must be a list of module names"):
        dormant.quantize(model, "nf4", parameters="down_proj")
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        ("int8", "bitsandbytes has no int8 format for parameters"),
        (lambda layer: layer, "a function is only called with linear layers"),
    ],
)
def test_schemes_without_a_format_for_parameters_say_so(scheme: Any, reason: str) -> None:
    model = built(mixtral, lazily=True)
    names = stacks(model)
    report = dormant.quantize(model, scheme)
    assert all(reason in report.skipped[name] for name in names)
    assert "kept model.layers.{0, 1}.mlp.experts.down_proj" in str(report)
    assert report.share < 0.5
    with pytest.raises(NotImplementedError, match=reason):
        dormant.quantize(built(mixtral, lazily=True), scheme, parameters=["down_proj"])


def test_the_report_says_what_keeps_its_precision_and_the_share() -> None:
    class Own(nn.Linear):
        pass

    with dormant.lazy_init():
        model = nn.ModuleDict(
            {
                "table": nn.Embedding(1024, 512),
                "convolution": nn.Conv2d(256, 256, 3),
                "own": Own(512, 1024),
                "linear": nn.Linear(512, 512, bias=False),
                "small": nn.Embedding(16, 16),
                "attention": nn.MultiheadAttention(512, 4, bias=False),
                "tied": nn.Linear(512, 1024, bias=False),
            }
        )
        model["tied"].weight = model["table"].weight
    total = sum(parameter.nbytes for parameter in model.parameters())
    report = dormant.quantize(model, "nf4")
    assert report.skipped.keys() == {
        "table.weight",
        "convolution.weight",
        "own.weight",
        "attention.in_proj_weight",
        "tied",
    }
    assert "Embedding keeps its precision" in report.skipped["table.weight"]
    assert "no scheme has a Conv2d" in report.skipped["convolution.weight"]
    assert "class Own is not exactly torch.nn.Linear" in report.skipped["own.weight"]
    assert "a parameter of MultiheadAttention" in report.skipped["attention.in_proj_weight"]
    assert report.parameter_nbytes == total
    assert report.share == 512 * 512 * 4 / total == report.to_dict()["share"]
    assert f"{report.share:.1%} of the " in str(report).splitlines()[1]


def test_refusals_change_nothing() -> None:
    def refused(model: Any, error: type[Exception], match: str) -> None:
        before = dict(model.named_parameters())
        kinds = [type(module) for module in model.modules()]
        with pytest.raises(error, match=match):
            dormant.quantize(model, "nf4")
        assert [type(module) for module in model.modules()] == kinds
        assert all(after is before[name] for name, after in model.named_parameters())
        assert not any(module._forward_hooks for module in model.modules())

    refused(lazy_experts().double(), ValueError, "gate_up_proj is torch.float64")
    with torch.device("meta"):
        refused(Experts(), ValueError, "gate_up_proj has neither values nor a history")
    tied = lazy_experts()
    tied.down_proj = tied.gate_up_proj
    refused(tied, ValueError, "tied: gate_up_proj, down_proj share one storage")
    held = lazy_experts()
    optimizer = torch.optim.SGD(held.parameters())
    refused(held, ValueError, "an optimizer already holds.*gate_up_proj, down_proj")
    del optimizer
    empty = lazy_experts((2, 0, 4))
    refused(empty, ValueError, "gate_up_proj has no elements")


# ---- copies, pickles, threads


@pytest.mark.parametrize("materialized", [False, True])
def test_deep_copies_stand_alone(materialized: bool) -> None:
    model, eager = built(mixtral, lazily=True), built(mixtral, lazily=False)
    names = stacks(model)
    dormant.quantize(model, "nf4")
    if materialized:
        dormant.materialize(model)
    duplicate = copy.deepcopy(model)
    ours = {id(parameter) for parameter in model.parameters()}
    assert not ours & {id(parameter) for parameter in duplicate.parameters()}
    dormant.materialize(duplicate)
    assert dormant.is_lazy(model) is not materialized
    pack_by_library(eager, names, compress_statistics=True)
    assert_same_model_packed(duplicate, eager, names)
    if not materialized:
        other = built(mixtral, lazily=False, seed=9)
        dormant.load(model, other.state_dict())
        pack_by_library(other, names, compress_statistics=True)
        assert_same_model_packed(model, other, names)
        assert_same_model_packed(duplicate, eager, names)


def test_a_lazy_copy_takes_a_checkpoint_by_itself() -> None:
    model, other = lazy_experts(), real_experts(seed=9)
    dormant.quantize(model, "nf4")
    duplicate = copy.deepcopy(model)
    dormant.load(duplicate, other.state_dict())
    eager = real_experts()
    names = ["gate_up_proj", "down_proj"]
    pack_by_library(other, names, compress_statistics=True)
    pack_by_library(eager, names, compress_statistics=True)
    assert_same_model_packed(duplicate, other, names)
    dormant.materialize(model)
    assert_same_model_packed(model, eager, names)


def test_pickles_are_those_of_a_parametrized_module() -> None:
    """PyTorch pickles no parametrized module, only its state dict."""
    model, eager = lazy_experts(), real_experts()
    dormant.quantize(model, "nf4")
    pack_by_library(eager, ["gate_up_proj", "down_proj"], compress_statistics=True)
    for each in (model, eager):
        with pytest.raises(RuntimeError, match=r"only supported through state_dict"):
            pickle.dumps(each)
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    state, expected = torch.load(stream), eager.state_dict()
    assert list(state) == list(expected)
    for name, tensor in expected.items():
        assert_same_bits(state[name], tensor, name)


@pytest.mark.threads
def test_threads_pack_models_of_their_own() -> None:
    expected = built(qwen3_moe, lazily=False)
    names = stacks(expected)
    source = expected.state_dict()
    models = [built(qwen3_moe, lazily=True, seed=seed) for seed in range(4)]
    failures: list[BaseException] = []

    def work(model: Any) -> None:
        try:
            dormant.quantize(model, "nf4")
            dormant.load(model, source)
            model(torch.tensor([[1, 2, 3]]))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    pack_by_library(expected, names, compress_statistics=True)
    for model in models:
        assert_same_model_packed(model, expected, names)


# ---- checkpoints


@pytest.mark.parametrize("name", BUILDS)
def test_loaded_from_what_transformers_saves(name: str, tmp_path: Path) -> None:
    """Mixtral and Qwen keep experts apart in files: they are stacked on the way to the packer."""
    source = built(BUILDS[name], lazily=False, seed=9)
    source.save_pretrained(tmp_path)
    model = built(BUILDS[name], lazily=True)
    names = stacks(model)
    dormant.quantize(model, "nf4")
    report = dormant.load(model, tmp_path, missing="error")
    assert not dormant.is_lazy(model)
    assert report.read_bytes > 0
    pack_by_library(source, names, compress_statistics=True)
    assert_same_model_packed(model, source, names)


def test_a_load_that_fails_leaves_all_lazy(tmp_path: Path) -> None:
    model = lazy_experts()
    dormant.quantize(model, "nf4")
    kind, attributes = type(model), set(vars(model))
    order = list(model.parametrizations)
    for state, error in (
        ({"gate_up_proj": torch.ones(4, 64, 32)}, KeyError),
        ({"gate_up_proj": torch.ones(4, 64, 33), "down_proj": torch.ones(4, 64, 32)}, KeyError),
    ):
        with pytest.raises(error):
            dormant.load(model, state, missing="error")
        assert type(model) is kind
        assert set(vars(model)) == attributes
        assert not model._parameters
        assert list(model.parametrizations) == order
        assert dormant.is_lazy(model.parametrizations.gate_up_proj.original)
    dormant.materialize(model)
    eager = real_experts()
    pack_by_library(eager, ["gate_up_proj", "down_proj"], compress_statistics=True)
    assert_same_model_packed(model, eager, ["gate_up_proj", "down_proj"])


def test_what_a_checkpoint_lacks_is_initialized_and_packed() -> None:
    model, eager = lazy_experts(), real_experts()
    given = torch.randn(4, 64, 32)
    dormant.quantize(model, "nf4")
    plan = dormant.load(model, {"down_proj": given}, dry_run=True)
    assert list(plan.missing_keys) == ["gate_up_proj"]
    report = dormant.load(model, {"down_proj": given}, missing="init", dtype=torch.bfloat16)
    assert list(report.missing_keys) == ["gate_up_proj"]
    with torch.no_grad():
        eager.down_proj.copy_(given)
    eager.to(torch.bfloat16)
    pack_by_library(eager, ["gate_up_proj", "down_proj"], compress_statistics=True)
    assert_same_model_packed(model, eager, ["gate_up_proj", "down_proj"])


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("way", ["dormant", "save_pretrained", "library"])
def test_saved_and_loaded_again(way: str, nested: bool, tmp_path: Path) -> None:
    scheme = dormant.FourBit(nested=nested)
    source = built(mixtral, lazily=way == "dormant", seed=9)
    names = stacks(source)
    if way == "library":
        pack_by_library(source, names, compress_statistics=nested)
        torch.save(source.state_dict(), tmp_path / "model.pt")
    else:
        dormant.quantize(source, scheme, skip=[r".*self_attn", "lm_head", ".*gate"])
    if way == "dormant":
        dormant.save(source, tmp_path)
        assert dormant.is_lazy(source)
    elif way == "save_pretrained":
        source.save_pretrained(tmp_path)
    model = built(mixtral, lazily=True)
    dormant.quantize(model, scheme, skip=[r".*self_attn", "lm_head", ".*gate"])
    dormant.load(model, tmp_path / "model.pt" if way == "library" else tmp_path, missing="error")
    dormant.materialize(source)
    assert_same_model_packed(model, source, names)
    mine, theirs = model.state_dict(), source.state_dict()
    assert list(mine) == list(theirs)
    for name, tensor in theirs.items():
        assert_same_bits(mine[name], tensor, name)
    ids = torch.tensor([[5, 6, 7]])
    assert_same_bits(model(ids).logits, source(ids).logits, "logits")


def test_transformers_refuses_packed_experts(tmp_path: Path) -> None:
    """As of 5.23; it would have to know the library's parametrization."""
    source = built(mixtral, lazily=True)
    dormant.quantize(source, "nf4")
    dormant.materialize(source)
    source.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        transformers.MixtralForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda state: state.pop("down_proj.absmax"), KeyError),
        (lambda state: state.update({"down_proj.absmax": torch.ones(3)}), ValueError),
        (lambda state: state.update({"down_proj": torch.ones(4, 64, 32)}), ValueError),
        (lambda state: state.update({"down_proj.SCB": torch.ones(4)}), KeyError),
    ],
)
def test_damaged_packed_checkpoints_are_refused(change: Any, error: type[Exception]) -> None:
    source = real_experts(seed=9)
    names = ["gate_up_proj", "down_proj"]
    pack_by_library(source, names, compress_statistics=True)
    state = dict(source.state_dict())
    change(state)
    model, eager = lazy_experts(), real_experts()
    dormant.quantize(model, "nf4")
    with pytest.raises(error):
        dormant.load(model, state)
    assert dormant.is_lazy(model)
    dormant.materialize(model)
    pack_by_library(eager, names, compress_statistics=True)
    assert_same_model_packed(model, eager, names)


# ---- on top of them


def test_lora_of_target_parameters() -> None:
    peft = pytest.importorskip("peft")

    def adapted(model: Any) -> Any:
        torch.manual_seed(4)
        config = peft.LoraConfig(
            r=2,
            target_modules=[],
            target_parameters=[f"model.layers.{i}.mlp.experts.down_proj" for i in range(2)],
            init_lora_weights=False,
        )
        return peft.get_peft_model(model, config)

    model, eager = built(mixtral, lazily=True), built(mixtral, lazily=False)
    names = stacks(model)
    dormant.quantize(model, "nf4", skip=[r".*self_attn", "lm_head", ".*gate"])
    dormant.materialize(model)
    pack_by_library(eager, names, compress_statistics=True)
    mine, theirs = adapted(model), adapted(eager)
    ids = torch.tensor([[5, 6, 7]])
    outputs = [each(input_ids=ids).logits for each in (mine, theirs)]
    assert_same_bits(outputs[0], outputs[1], "logits")
    for output in outputs:
        output.sum().backward()
    trained = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    assert len(trained) == 4
    for name, parameter in mine.named_parameters():
        assert parameter.requires_grad == (name in trained)
        if name in trained:
            assert_same_bits(parameter.grad, trained[name], name)
    with mine.disable_adapter(), theirs.disable_adapter():
        assert_same_bits(mine(input_ids=ids).logits, theirs(input_ids=ids).logits, "base")


# ---- torchao


def test_torchao_quantizes_the_parameters_that_its_configuration_names() -> None:
    torchao = pytest.importorskip("torchao.quantization")
    int8, float8 = torchao.Int8WeightOnlyConfig(), torchao.Float8WeightOnlyConfig()
    tables: list[dict[str, Any]] = [
        {"model.layers.0.mlp.experts.gate_up_proj": int8, "re:.*down_proj": float8},
        {r"re:.*experts\..*_proj": int8, "model.layers.1.mlp.experts.down_proj": None},
        {"re:.*_proj": int8, "model.layers.0.self_attn.q_proj": float8, "lm_head": None},
    ]
    for table in tables:
        model = built(mixtral, lazily=True).bfloat16()
        eager = built(mixtral, lazily=False).bfloat16()
        report = dormant.quantize(model, torchao.FqnToConfig(table))
        assert dormant.is_lazy(model)
        duplicate = copy.deepcopy(model)
        dormant.materialize(model)
        dormant.load(duplicate, eager.state_dict())
        torchao.quantize_(eager, torchao.FqnToConfig(table), filter_fn=None)
        changed = {n for n, p in eager.named_parameters() if type(p) is not nn.Parameter}
        assert changed
        told = {each.name for each in report.layers}
        assert told == {name if name in told else name.removesuffix(".weight") for name in changed}
        assert not told & set(report.skipped)
        for name, expected in eager.named_parameters():
            for each in (model, duplicate):
                mine = each.get_parameter(name)
                assert type(mine) is type(expected)
                assert_same_bits(
                    *(p.dequantize() if name in changed else p for p in (mine, expected)), name
                )


def test_what_torchao_names_is_checked() -> None:
    torchao = pytest.importorskip("torchao.quantization")
    config = torchao.FqnToConfig({"nothing": torchao.Int8WeightOnlyConfig()})
    with pytest.raises(ValueError, match="Experts has no layer to quantize"):
        dormant.quantize(lazy_experts(), config)
    config = torchao.FqnToConfig({"down_proj": torchao.Int8WeightOnlyConfig()})
    broad = torchao.FqnToConfig({"re:.*experts.*": torchao.Int8WeightOnlyConfig()})
    with pytest.raises(ValueError, match="a SiLUActivation, which has no parameter"):
        dormant.quantize(built(mixtral, lazily=True), broad)
    with pytest.raises(ValueError, match="names what it quantizes"):
        dormant.quantize(lazy_experts(), config, parameters=["down_proj"])
    tied = lazy_experts()
    tied.down_proj = tied.gate_up_proj
    with pytest.raises(ValueError, match="tied: gate_up_proj, down_proj share one storage"):
        dormant.quantize(tied, config)


# ---- checkpoints of transformers 4, which had a linear layer for each expert


def packed_one_by_one(source: Any, way: str, **options: Any) -> dict[str, torch.Tensor]:
    """What bitsandbytes saved of such a model, under the names of `way`."""
    state = dict(source.state_dict())
    rows = {"gate_up_proj": ("w1", "w3") if way == "mixtral" else ("gate_proj", "up_proj")}
    rows["down_proj"] = ("w2",) if way == "mixtral" else ("down_proj",)
    for name in stacks(source):
        path, _, attribute = name.rpartition(".")
        if way == "mixtral":
            path = path.replace(".mlp.", ".block_sparse_moe.")
        for expert, matrices in enumerate(state.pop(name)):
            for row, matrix in zip(
                rows[attribute], matrices.chunk(len(rows[attribute])), strict=True
            ):
                full = f"{path}.{expert}.{row}.weight"
                packed, quantized = functional.quantize_4bit(matrix.contiguous(), **options)
                state[full] = packed
                for key, part in quantized.as_dict(packed=True).items():
                    state[f"{full}.{key}"] = part
    if way == "mixtral":
        state = {
            name.replace(".mlp.gate.", ".block_sparse_moe.gate."): tensor
            for name, tensor in state.items()
        }
    return state


LINEAR = [r".*(self_attn|lm_head|gate)"]


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_packed_one_by_one_are_put_together(
    name: str, nested: bool, tmp_path: Path
) -> None:
    source = built(BUILDS[name], lazily=False, seed=9)
    names = stacks(source)
    kind = "nf4" if nested else "fp4"
    state = packed_one_by_one(source, name, quant_type=kind, compress_statistics=nested)
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    model = built(BUILDS[name], lazily=True)
    dormant.quantize(model, kind, skip=LINEAR)
    dormant.load(model, tmp_path, missing="error", unexpected="error")
    assert not dormant.is_lazy(model)
    if not nested:
        pack_by_library(source, names, quant_type=kind)
        assert_same_model_packed(model, source, names)
        return
    whole = {each: source.get_parameter(each).detach() for each in names}
    for each, stack in whole.items():
        path, _, attribute = each.rpartition(".")
        parts = [part for e in stack for part in e.chunk(2 if "gate" in attribute else 1)]
        unpacked = [
            functional.dequantize_4bit(
                *functional.quantize_4bit(
                    part.contiguous(), quant_type=kind, compress_statistics=True
                )
            )
            for part in parts
        ]
        got = getattr(model.get_submodule(path), attribute)
        assert_same_bits(got, torch.cat(unpacked).view(stack.shape), each)


def test_experts_packed_one_by_one_that_cannot_be_put_together() -> None:
    source = built(mixtral, lazily=False, seed=9)

    def refused(match: str, change: Any = None, scheme: Any = "nf4", **options: Any) -> None:
        state = packed_one_by_one(source, "mixtral", quant_type="nf4", **options)
        if change is not None:
            change(state)
        model = built(mixtral, lazily=True)
        if scheme is not None:
            dormant.quantize(model, scheme, skip=LINEAR)
        lazy = [n for n, p in model.named_parameters() if dormant.is_lazy(p)]
        with pytest.raises((ValueError, KeyError), match=match):
            dormant.load(model, state)
        assert [n for n, p in model.named_parameters() if dormant.is_lazy(p)] == lazy

    first = "model.layers.0.block_sparse_moe.experts.0.w1.weight"

    def without_the_last(state: dict[str, torch.Tensor]) -> None:
        for name in [name for name in state if "layers.0.block_sparse_moe.experts.3.w3" in name]:
            del state[name]

    refused("has it in full precision. Quantize the model first", scheme=None)
    refused("has .4, 3. packed matrices", without_the_last)
    refused("missing .'weight.quant_map'", lambda state: state.pop(f"{first}.quant_map"))
    refused("missing .'weight.quant_state.bitsandbytes__fp4'", scheme="fp4")
    odd = built(odd_mixtral, lazily=False)
    state = packed_one_by_one(odd, "mixtral", quant_type="nf4", blocksize=4096)
    model = built(odd_mixtral, lazily=True)
    dormant.quantize(model, "nf4", skip=LINEAR)
    with pytest.raises(ValueError, match=r"of \[96, 64\] in blocks of \[4096\].*full precision"):
        dormant.load(model, state)
    assert dormant.is_lazy(model)


def odd_mixtral() -> Any:
    config = transformers.MixtralConfig(**{**SIZES, "intermediate_size": 96}, num_local_experts=4)
    return transformers.MixtralForCausalLM(config)


# ---- other ways to the same


def test_from_pretrained_and_the_command_pack_experts(tmp_path: Path) -> None:
    source = built(mixtral, lazily=False, seed=9)
    source.save_pretrained(tmp_path / "whole")
    names = stacks(source)
    pack_by_library(source, names, compress_statistics=True)
    model = dormant.integrations.transformers.from_pretrained(
        transformers.MixtralForCausalLM, tmp_path / "whole", quantization_config="nf4"
    )
    assert not dormant.is_lazy(model)
    assert_same_model_packed(model, source, names)

    command = ["convert", tmp_path / "whole", tmp_path / "packed", "--quantize", "nf4"]
    assert main([*map(str, command)], progress=False) == 0
    packed = dormant.open_checkpoint(tmp_path / "packed", decode=False)
    expected = source.state_dict()
    for name in [name for name in expected if name.startswith(tuple(names))]:
        assert_same_bits(packed[name], expected[name], name)
