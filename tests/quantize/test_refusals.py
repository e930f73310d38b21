"""What `quantize` refuses: clearly, and with the model as it was."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed
from torch import nn
from torch.distributed.tensor import DTensor, Shard, init_device_mesh
from torchao.quantization import Int8WeightOnlyConfig
from transformers import BitsAndBytesConfig

import dormant


def lazy_model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    with dormant.lazy_init():
        return nn.Sequential(nn.Linear(8, 8, dtype=dtype), nn.Linear(8, 8, dtype=dtype))


def assert_refused(
    model: nn.Module, error: type[Exception], message: str, scheme: Any = "nf4", **options: Any
) -> None:
    kinds = [type(module) for module in model.modules()]
    parameters = list(model.parameters())
    attributes = [dict(vars(module)) for module in model.modules()]
    with pytest.raises(error, match=message):
        dormant.quantize(model, scheme, **{"skip": (), **options})
    assert [type(module) for module in model.modules()] == kinds
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert [dict(vars(module)) for module in model.modules()] == attributes


def test_something_that_is_no_module() -> None:
    with pytest.raises(TypeError, match="expected a module, got Tensor"):
        dormant.quantize(torch.zeros(3), "nf4")


@pytest.mark.parametrize(
    "scheme",
    [
        None,
        4,
        object(),
        nn.Linear,  # cannot be called with a layer
        lambda: None,
        lambda layer, other: layer,
        dormant.FourBit,  # the class instead of an object
        dormant.Int8,
        BitsAndBytesConfig,
        Int8WeightOnlyConfig,
    ],
)
def test_an_unknown_kind_of_scheme(scheme: Any) -> None:
    assert_refused(lazy_model(), TypeError, 'scheme must be "nf4", "fp4", "int8"', scheme)


def test_an_unknown_name() -> None:
    assert_refused(lazy_model(), ValueError, "unknown scheme 'int4'; expected", "int4")


@pytest.mark.parametrize("skip", ["head", 3, nn.Linear(1, 1)])
def test_something_else_than_a_list_of_names(skip: Any) -> None:
    assert_refused(lazy_model(), TypeError, "skip must be a list of module names", skip=skip)


@pytest.mark.parametrize("entry", [0, None, nn.Linear(1, 1), b"0"])
def test_an_entry_that_is_not_a_name(entry: Any) -> None:
    assert_refused(lazy_model(), TypeError, "skip must contain names of modules", skip=["0", entry])


def named_model() -> Any:
    with dormant.lazy_init():
        return nn.ModuleDict(
            {
                "layers": nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)]),
                "norm": nn.LayerNorm(8),
                "lm_head": nn.Linear(8, 8),
            }
        )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("lm_haed", r"'lm_haed' \(did you mean 'lm_head'\?\)"),
        ("layer.1", r"'layer.1' \(did you mean 'layers.1'"),
        ("layers.2", r"'layers.2' \(did you mean 'layers"),
        ("layers.1x", "did you mean 'layers.1'"),
        ("zzz", "'zzz' .there are layers, layers.0, layers.1, norm, lm_head"),
    ],
)
def test_an_entry_that_matches_nothing(entry: str, message: str) -> None:
    assert_refused(
        named_model(), ValueError, f"skip matches no module.*{message}", skip=["lm_head", entry]
    )


@pytest.mark.parametrize("entry", ["lm_head", "head", "norm", "layers", r"layers\.\d", "0"])
def test_entries_that_match(entry: str) -> None:
    dormant.quantize(named_model(), "nf4", skip=[entry])


def test_a_configuration_may_list_what_the_model_lacks() -> None:
    configuration = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["lm_haed"])
    assert len(dormant.quantize(named_model(), configuration).layers) == 3


@pytest.mark.parametrize("entry", ["*head", "layers.(", "["])
def test_an_entry_that_is_not_a_regular_expression(entry: str) -> None:
    assert_refused(
        named_model(), ValueError, re.escape(repr(entry)) + ".*regular expression", skip=[entry]
    )
    configuration = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=[entry])
    with pytest.raises(ValueError, match=r"configuration's list.*regular expression"):
        dormant.quantize(named_model(), configuration)


def test_a_model_without_linear_layers() -> None:
    assert_refused(nn.Sequential(nn.ReLU()), ValueError, "Sequential has no layer to quantize")


def test_a_model_of_which_everything_is_skipped_says_why() -> None:
    message = "2 were skipped .*0: the caller skips it.*Pass skip="
    assert_refused(lazy_model(), ValueError, message, skip=["0", "1"])


@pytest.mark.parametrize("scheme", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_dtypes_that_bitsandbytes_does_not_take(dtype: torch.dtype, scheme: str) -> None:
    message = rf"0\.weight is {dtype}.*model\.to\(torch\.float32\)"
    assert_refused(lazy_model(dtype), ValueError, message, scheme)


@pytest.mark.parametrize(("columns", "storage"), [(5, torch.float16), (2, torch.int16)])
def test_packed_bytes_that_cannot_be_seen_as_another_dtype(
    columns: int, storage: torch.dtype
) -> None:
    with dormant.lazy_init():
        layer = nn.Linear(columns, 1)
    scheme = dormant.FourBit(storage_dtype=storage)
    assert_refused(
        layer, ValueError, "weight packs into . bytes?.*storage_dtype=torch.uint8", scheme
    )


def test_a_weight_without_elements() -> None:
    with dormant.lazy_init():
        layer = nn.Linear(0, 4)
    assert_refused(layer, ValueError, r"weight has no elements \(shape \[4, 0\]\)")


def test_the_meta_device() -> None:
    layer = nn.Linear(4, 4, device="meta")
    assert_refused(layer, ValueError, "on the meta device.*inside dormant.lazy_init instead")


@pytest.mark.parametrize(
    "make",
    [
        lambda model: torch.optim.AdamW(model.parameters()),
        lambda model: torch.optim.SGD([{"params": [model[0].weight]}], lr=1),
    ],
)
def test_an_optimizer_that_holds_a_weight(make: Callable[[nn.Module], Any]) -> None:
    model = lazy_model()
    optimizer = make(model)
    name = type(optimizer).__name__
    assert_refused(model, ValueError, rf"optimizer already holds .*{name}: 0\.weight")


def test_an_optimizer_of_what_stays_is_no_obstacle() -> None:
    model = lazy_model()
    optimizer = torch.optim.AdamW([model[0].bias, *model[1].parameters()])
    dormant.quantize(model, "nf4", skip=["1"])
    assert optimizer.param_groups[0]["params"][0] is model[0].bias


def test_an_optimizer_that_is_gone_is_no_obstacle() -> None:
    model = lazy_model()
    torch.optim.AdamW(model.parameters())
    dormant.quantize(model, "nf4")


@pytest.mark.parametrize("scheme", ["nf4", "int8", lambda layer: layer])
def test_an_optimizer_that_is_gone_but_for_a_cycle_is_no_obstacle(scheme: Any) -> None:
    gc.collect()
    gc.disable()
    try:
        model = lazy_model()
        optimizer = torch.optim.AdamW(model.parameters())
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        del optimizer, scheduler
        dormant.quantize(model, scheme)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_an_optimizer_that_lives_in_a_cycle_is_one() -> None:
    model = lazy_model()
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.AdamW(model.parameters()), 1)
    assert_refused(model, ValueError, r"optimizer already holds .*AdamW: 0\.weight")
    assert scheduler.optimizer is not None


def test_a_forward_that_was_replaced_on_the_object() -> None:
    model: Any = lazy_model()
    model[0].forward = lambda x: x
    assert_refused(model, ValueError, "forward of 0 was replaced on the object")


def test_a_configuration_that_quantizes_nothing() -> None:
    for configuration in (
        BitsAndBytesConfig(),
        BitsAndBytesConfig(load_in_8bit=True, llm_int8_has_fp16_weight=True),
    ):
        assert_refused(lazy_model(), ValueError, "quantizes nothing", configuration)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "nf5"}, "kind must be"),
        ({"kind": None}, "kind must be"),
        ({"block_size": 48}, "block_size must be one of 32, 64"),
        ({"block_size": 8192}, "block_size must be one of 32, 64"),
        ({"compute_dtype": "bfloat17"}, "'bfloat17' is not the name of a dtype"),
        ({"compute_dtype": "Tensor"}, "'Tensor' is not the name of a dtype"),
        ({"compute_dtype": torch.int8}, "must be a floating point dtype"),
        ({"storage_dtype": "int"}, None),
        ({"storage_dtype": torch.complex64}, "storage_dtype must be a dtype"),
        ({"storage_dtype": torch.bool}, "storage_dtype must be a dtype"),
    ],
)
def test_options_that_do_not_exist(options: Any, message: str | None) -> None:
    if message is None:
        assert dormant.FourBit(**options).storage_dtype is torch.int32
        return
    with pytest.raises(ValueError, match=message):
        dormant.FourBit(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nested": "yes"}, "nested must be a bool"),
        ({"nested": 1}, "nested must be a bool"),
        ({"block_size": "64"}, "block_size must be an int"),
        ({"block_size": 64.0}, "block_size must be an int"),
        ({"block_size": True}, "block_size must be an int"),
        ({"compute_dtype": 16}, "compute_dtype must be a torch.dtype or its name, got int"),
        ({"storage_dtype": None}, "storage_dtype must be a torch.dtype or its name"),
    ],
)
def test_options_of_another_type(options: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        dormant.FourBit(**options)


def test_names_of_dtypes_are_what_transformers_takes() -> None:
    options: Any = {"compute_dtype": "bfloat16", "storage_dtype": "torch.float16"}
    scheme = dormant.FourBit(**options)
    assert scheme.compute_dtype is torch.bfloat16
    assert scheme.storage_dtype is torch.float16
    assert scheme == dormant.FourBit(compute_dtype=torch.bfloat16, storage_dtype=torch.float16)


@pytest.mark.parametrize("threshold", ["6", None, True, [6.0]])
def test_a_threshold_of_another_type(threshold: Any) -> None:
    with pytest.raises(TypeError, match="threshold must be a number"):
        dormant.Int8(threshold=threshold)


def test_a_negative_threshold() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        dormant.Int8(threshold=-1)


def test_shards_of_a_weight() -> None:
    torch.distributed.init_process_group("fake", rank=0, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))
        model: Any = lazy_model()
        local = model[0].weight.data[:4].clone()
        sharded = DTensor.from_local(local, mesh, [Shard(0)], run_check=False)
        model[0].weight = nn.Parameter(sharded)
        assert_refused(model, NotImplementedError, r"0\.weight is a DTensor.*before fully_shard")
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("library", "scheme", "install"),
    [
        ("bitsandbytes", '"nf4"', "pip install 'bitsandbytes"),
        ("bitsandbytes", "dormant.Int8()", "pip install 'bitsandbytes"),
        ("torchao", "Int8WeightOnlyConfig()", "pip install 'torchao"),
    ],
)
def test_a_library_that_is_not_installed(library: str, scheme: str, install: str) -> None:
    """And the rest of the package works without either."""
    program = f"""
import sys
sys.modules["bitsandbytes"] = sys.modules["torchao"] = None
import torch, dormant

class AOBaseConfig: pass
class Int8WeightOnlyConfig(AOBaseConfig): pass

with dormant.lazy_init():
    model = torch.nn.Linear(8, 8)
try:
    dormant.quantize(model, {scheme})
except ImportError as error:
    print(error)
dormant.materialize(model)
dormant.quantize(model, lambda layer: layer.half())
print(type(model).__name__, model.weight.dtype)
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert re.search(f"quantize: .*{library}, which cannot be imported", ended.stdout)
    assert install in ended.stdout
    assert ended.stdout.endswith("Linear torch.float16\n")
