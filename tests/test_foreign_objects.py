"""Files of torch.save with objects of classes that nobody imports: modules, settings, arrays."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import os
import pickle
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dormant
from compare import assert_same_bits
from dormant.checkpoint.inert import Global, Record
from torch_bytes import archive, zip_bytes

LAYOUTS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])


def save(value: Any, folder: Path, *, zipped: bool = True, name: str = "model.pt") -> Path:
    path = folder / name
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def shares(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.untyped_storage()._cdata == b.untyped_storage()._cdata


def assert_is_state_dict(checkpoint: dormant.Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    state = dict(checkpoint)
    assert list(state) == list(expected)
    for name, tensor in state.items():
        assert dormant.is_lazy(tensor), name
        assert type(tensor) is torch.Tensor
    dormant.materialize(state)
    for name, tensor in expected.items():
        assert_same_bits(tensor, state[name], name)
    ties = {(a, b) for a in expected for b in expected if shares(expected[a], expected[b])}
    assert ties == {(a, b) for a in state for b in state if shares(state[a], state[b])}


class Odd(nn.Module):
    """Has everything that a state dict has or leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4).t())
        self.frozen = nn.Parameter(torch.arange(3), requires_grad=False)
        self.register_parameter("bias", None)
        self.register_buffer("mean", torch.randn(2))
        self.register_buffer("scratch", torch.randn(2), persistent=False)
        self.register_buffer("nothing", None)
        self.plain = torch.randn(5)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.same = self.first
        self.absent: nn.Module | None
        self.register_module("absent", None)
        self.layers = nn.ModuleList([nn.BatchNorm1d(4), nn.ModuleDict({"x": nn.PReLU()})])
        self.more = nn.ParameterList([torch.randn(2), torch.randn(1)])
        self.named = nn.ParameterDict({"k": torch.randn(2)})


MODULES: dict[str, Any] = {
    "linear": lambda: nn.Linear(3, 2),
    "odd": Odd,
    "sequential": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 2, bias=False), nn.BatchNorm2d(4), nn.Sequential(nn.GELU(), nn.Linear(4, 2))
    ),
    "lstm": lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True),
    "attention": lambda: nn.TransformerEncoderLayer(8, 2, 16),
    "embedding": lambda: nn.EmbeddingBag(7, 3),
    "weight norm": lambda: nn.utils.weight_norm(nn.Linear(3, 3)),
    "spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(3, 3)),
    "wrapped": lambda: nn.DataParallel(nn.Linear(2, 2)),
    "half": lambda: Odd().half(),
    "empty": nn.Module,
    "transposed": lambda: nn.ConvTranspose2d(2, 3, 2).to(memory_format=torch.channels_last),
}


@LAYOUTS
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore")
def test_a_pickled_module_is_its_state_dict(tmp_path: Path, name: str, zipped: bool) -> None:
    torch.manual_seed(0)
    module = MODULES[name]()
    expected = module.state_dict()
    checkpoint = dormant.open_checkpoint(save(module, tmp_path, zipped=zipped))
    assert_is_state_dict(checkpoint, expected)
    (kind, record), *rest = checkpoint.extra.items()
    assert (kind, rest) == ("", [])
    assert isinstance(record, Record)
    assert record.class_ == Global(type(module).__module__, type(module).__qualname__)
    assert record.state["training"] is True
    module.load_state_dict(dict(checkpoint))


def test_versions_of_a_pickled_module(tmp_path: Path) -> None:
    module = nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nn.Linear(3, 2)))
    checkpoint = dormant.open_checkpoint(save(module, tmp_path))
    assert checkpoint._metadata == module.state_dict()._metadata  # type: ignore[attr-defined]
    odd = dormant.open_checkpoint(save(Odd(), tmp_path))._metadata
    assert odd is not None
    assert odd[""] == {}  # its class is not looked at
    assert odd["layers.0"] == {"version": 2}


def test_a_pickled_module_loads_into_a_model(tmp_path: Path) -> None:
    module = Odd()
    path = save({"epoch": 3, "model": module}, tmp_path)
    with dormant.lazy_init():
        model = Odd()
    dormant.load(model, path)
    for name, tensor in module.state_dict().items():
        assert_same_bits(tensor, model.state_dict()[name], name)


def test_a_parametrized_module(tmp_path: Path) -> None:
    # PyTorch refuses to pickle one as it is; its attributes can be in a file all the same.
    module = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    holder = nn.Module()
    holder._parameters.update(module._parameters)
    holder._modules.update(module._modules)
    checkpoint = dormant.open_checkpoint(save(holder, tmp_path))
    assert_is_state_dict(checkpoint, module.state_dict())


def test_a_checkpoint_as_ultralytics_writes_it(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).half()
    model.names = {0: "person"}
    model.args = argparse.Namespace(lr=0.1)
    saved = {"epoch": -1, "model": model, "ema": None, "date": "2024-05-01", "optimizer": None}
    checkpoint = dormant.open_checkpoint(save(saved, tmp_path))
    assert_is_state_dict(checkpoint, model.state_dict())
    extra = checkpoint.extra
    assert (extra["epoch"], extra["ema"], extra["date"]) == (-1, None, "2024-05-01")
    assert extra["model"].state["names"] == {0: "person"}
    assert extra["model"].state["args"].state == {"lr": 0.1}
    weight = extra["model"].state["_modules"]["0"].state["_parameters"]["weight"]
    assert isinstance(weight, nn.Parameter)
    assert dormant.is_lazy(weight)
    assert_same_bits(model[0].weight.detach(), weight.detach())


def test_two_modules_need_a_key(tmp_path: Path) -> None:
    saved = {"model": nn.Linear(2, 2), "ema": nn.Linear(2, 2)}
    path = save(saved, tmp_path)
    with pytest.raises(ValueError, match=r"got 2: \['model', 'ema'\]\. Choose one: .*key='model'"):
        dormant.open_checkpoint(path)
    checkpoint = dormant.open_checkpoint(path, key="ema")
    assert_is_state_dict(checkpoint, saved["ema"].state_dict())


class Callback:
    pass


@dataclasses.dataclass
class Settings:
    rate: float
    shape: torch.Size


class Color(enum.Enum):
    RED = 1


class Ordered(collections.OrderedDict[str, Any]):
    pass


def test_a_checkpoint_as_lightning_writes_it(tmp_path: Path) -> None:
    module = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    settings = Settings(1.5, torch.Size([2]))
    saved = {
        "epoch": 2,
        "state_dict": module.state_dict(),
        "callbacks": {Callback: {"best": torch.tensor(0.5)}, "Early{'m': 1}": {"wait": 3}},
        "hyper_parameters": argparse.Namespace(lr=0.1, path=Path("a/b"), settings=settings),
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
    }  # fmt: skip
    checkpoint = dormant.open_checkpoint(save(saved, tmp_path))
    assert_is_state_dict(checkpoint, module.state_dict())
    extra = checkpoint.extra
    assert extra["callbacks"][Global(__name__, "Callback")]["best"].item() == 0.5
    parameters = extra["hyper_parameters"]
    assert parameters.class_ == Global("argparse", "Namespace")
    assert parameters.state["path"] == Path("a/b")
    assert parameters.state["settings"].state == {"rate": 1.5, "shape": torch.Size([2])}
    moments = extra["optimizer_states"][0]["state"][0]["exp_avg"]
    assert dormant.is_lazy(moments)
    assert_same_bits(optimizer.state_dict()["state"][0]["exp_avg"], moments)


VALUES: list[Any] = [
    *(torch.Size([1, 2]), torch.device("cuda", 1), torch.device("cpu"), torch.bfloat16),
    *(torch.strided, complex(1, -2), b"", b"\0\xff", bytearray(b"ab"), {1, "a"}, frozenset({2})),
    *(range(1, 9, 2), slice(1, None, 2), Path("a/b"), Path("/"), decimal.Decimal("1.50")),
    *(fractions.Fraction(1, 3), uuid.UUID(int=5), collections.Counter("aab")),
    *(collections.deque([1, 2], 5), collections.OrderedDict(a=1), datetime.date(2024, 5, 1)),
    datetime.datetime(2024, 5, 1, 12, 30, tzinfo=datetime.timezone.utc),
    *(datetime.time(1, 2), datetime.timedelta(days=1, microseconds=3)),
    *(np.float64(1.5), np.int32(-7), np.bool_(True), np.float16(0.5), np.complex64(1j)),
    *(np.str_("text"), np.bytes_(b"ab")),
]


@LAYOUTS
def test_values_of_plain_classes_are_values(tmp_path: Path, zipped: bool) -> None:
    checkpoint = dormant.open_checkpoint(
        save({"a": torch.ones(2), "values": VALUES}, tmp_path, zipped=zipped)
    )
    got = checkpoint.extra["values"]
    for value, expected in zip(got, VALUES, strict=True):
        assert type(value) is type(expected), expected
        assert value == expected


ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.arange(3, dtype=">i4"),
    np.array(["a", "bcd"]),
    np.array(1.5),
    np.zeros((0, 3), np.uint8),
    np.array([True, False]),
]


def test_arrays_are_arrays(tmp_path: Path) -> None:
    checkpoint = dormant.open_checkpoint(save({"a": torch.ones(2), "arrays": ARRAYS}, tmp_path))
    for array, expected in zip(checkpoint.extra["arrays"], ARRAYS, strict=True):
        assert (array.dtype, array.shape, array.flags.f_contiguous) == (
            *(expected.dtype, expected.shape),
            expected.flags.f_contiguous,
        )
        assert array.tobytes() == expected.tobytes()
        assert array.flags.writeable


@pytest.mark.parametrize(
    "value",
    [
        np.array([1, "a"], dtype=object),
        np.zeros(2, dtype=[("x", "f4")]),
        np.datetime64("2024-05-01"),
    ],
    ids=["objects", "fields", "date"],
)
def test_arrays_of_other_things_are_records(tmp_path: Path, value: Any) -> None:
    checkpoint = dormant.open_checkpoint(save({"a": torch.ones(2), "value": value}, tmp_path))
    assert isinstance(checkpoint.extra["value"], Record)


def test_objects_of_other_classes_are_records(tmp_path: Path) -> None:
    ordered = Ordered(a=1)
    default = collections.defaultdict(list, a=[1])
    factory = collections.defaultdict(Callback, a=1)
    saved = {"a": torch.ones(2), "color": Color.RED, "ordered": ordered, "default": default}
    saved["factory"] = factory
    extra = dormant.open_checkpoint(save(saved, tmp_path)).extra
    assert extra["color"].callable == Global(__name__, "Color")
    assert extra["color"].arguments == (1,)
    assert extra["ordered"].entries == [("a", 1)]
    assert extra["default"] == default
    assert extra["default"].default_factory is list
    assert extra["factory"] == {"a": 1}
    assert extra["factory"].default_factory is None


def test_records_keep_what_is_shared_and_what_contains_itself(tmp_path: Path) -> None:
    value = argparse.Namespace(tensor=torch.ones(2))
    value.me = value
    value.also = [value.tensor, value.tensor]
    record = dormant.open_checkpoint(save({"a": torch.ones(1), "b": value}, tmp_path)).extra["b"]
    assert record.state["me"] is record
    assert record.state["also"][0] is record.state["also"][1] is record.state["tensor"]


class Subclass(torch.Tensor):
    pass


def test_tensors_of_a_subclass_are_plain(tmp_path: Path) -> None:
    value = torch.randn(3, 2).as_subclass(Subclass)
    parameter = nn.Parameter(torch.randn(2).as_subclass(Subclass))
    checkpoint = dormant.open_checkpoint(save({"a": value, "b": parameter}, tmp_path))
    assert type(checkpoint["a"]) is torch.Tensor
    assert_same_bits(value.as_subclass(torch.Tensor), checkpoint["a"])
    assert_same_bits(parameter.detach().as_subclass(torch.Tensor), checkpoint["b"])


@LAYOUTS
def test_nested_containers_have_names_with_dots(tmp_path: Path, zipped: bool) -> None:
    inner = {"encoder": {"w": torch.ones(2)}, "layers": [{"w": torch.zeros(1)}, (torch.ones(1),)]}
    inner["object"] = argparse.Namespace(bias=torch.ones(3), module=nn.Linear(1, 1))  # type: ignore[assignment]
    path = save({"step": 3, "model": inner}, tmp_path, zipped=zipped)
    checkpoint = dormant.open_checkpoint(path)
    assert list(checkpoint) == [
        *("encoder.w", "layers.0.w", "layers.1.0", "object.bias"),
        *("object.module.weight", "object.module.bias"),
    ]
    assert checkpoint.extra["step"] == 3
    assert checkpoint.extra["model"]["layers"][0]["w"].tolist() == [0.0]
    assert list(dormant.open_checkpoint(path, key="model")) == list(checkpoint)


def test_an_object_that_holds_a_model(tmp_path: Path) -> None:
    learner = argparse.Namespace(model=nn.Linear(2, 1), rate=0.1)
    checkpoint = dormant.open_checkpoint(save(learner, tmp_path))
    assert list(checkpoint) == ["weight", "bias"]
    assert checkpoint.extra["rate"] == 0.1


def test_a_torchscript_program_is_its_state_dict(tmp_path: Path) -> None:
    class Scripted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
            self.scale = nn.Parameter(torch.randn(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) * self.scale + torch.ones(2)  # type: ignore[no-any-return]

    module = Scripted().eval()
    script = torch.jit.trace(module, torch.ones(4, 3))  # type: ignore[no-untyped-call]
    path = tmp_path / "model.pt"
    script.save(str(path))
    checkpoint = dormant.open_checkpoint(path)
    expected = script.state_dict()
    assert set(checkpoint) == set(expected)
    for name, tensor in expected.items():
        assert_same_bits(tensor.detach(), checkpoint[name], name)


def test_a_frozen_torchscript_program_is_the_constants_of_its_code(tmp_path: Path) -> None:
    script = torch.jit.script(nn.Sequential(nn.Linear(3, 2), nn.Tanh()).eval())
    frozen = torch.jit.freeze(script)
    path = tmp_path / "model.pt"
    frozen.save(str(path))
    constants = {
        str(number): node.t("value")
        for number, node in enumerate(
            node
            for node in frozen.graph.findAllNodes("prim::Constant")
            if isinstance(node.output().type(), torch._C.TensorType)
        )
    }
    checkpoint = dormant.open_checkpoint(path)
    assert len(constants) == 2
    assert sorted(checkpoint) == ["0", "1"]
    found = sorted(checkpoint.values(), key=torch.Tensor.dim)
    expected = sorted(constants.values(), key=torch.Tensor.dim)
    for one, other in zip(expected, found, strict=True):
        assert_same_bits(one, other)


# Malicious objects.


class Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_what_would_run_a_command_is_shown_and_does_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = save({"a": torch.ones(1), "evil": Evil(f"touch {marker}")}, tmp_path)
    checkpoint = dormant.open_checkpoint(path)
    record = checkpoint.extra["evil"]
    assert record.callable == Global("posix", "system")
    assert record.arguments == (f"touch {marker}",)
    assert checkpoint.foreign == ("posix.system",)
    shown = subprocess.run(
        [sys.executable, "-m", "dormant", "inspect", path], capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    assert "posix.system" in shown.stdout
    assert not marker.exists()


def test_the_old_behavior_refuses_foreign_classes(tmp_path: Path) -> None:
    path = save({"model": nn.Linear(1, 1), "a": torch.ones(1)}, tmp_path)
    with pytest.raises(ValueError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        dormant.open_checkpoint(path, foreign="error")
    plain = save({"a": torch.ones(1), "b": {"c": {1, 2}}}, tmp_path)
    checkpoint = dormant.open_checkpoint(plain, foreign="error")
    assert checkpoint.extra == {"b": {"c": {1, 2}}}


def module_bytes(state: bytes) -> bytes:
    """A pickle of an object of class m.M."""
    return b"cm\nM\n)\x81" + state + b"b"


def mapping(**entries: bytes) -> bytes:
    """A pickle of a dict."""
    out = b"}("
    for name, value in entries.items():
        out += b"X" + len(name).to_bytes(4, "little") + name.encode() + value
    return out + b"u"


def file_of(data: bytes) -> bytes:
    records = archive({}, {})
    records[0].data = b"\x80\x02" + data + b"."
    return zip_bytes(records)


def test_a_module_in_itself(tmp_path: Path) -> None:
    children = mapping(again=b"h\x00")
    state = mapping(_parameters=b"}", _buffers=b"}", _modules=children)
    path = tmp_path / "model.pt"
    path.write_bytes(file_of(b"cm\nM\n)\x81q\x00" + state + b"b"))
    with pytest.raises(ValueError, match="nest deeper than 200"):
        dormant.open_checkpoint(path)


def test_modules_that_double_with_each_level(tmp_path: Path) -> None:
    data = module_bytes(mapping(_parameters=b"}", _buffers=b"}", _modules=b"}"))
    for _ in range(60):
        children = mapping(a=data + b"q\x01", b=b"h\x01")
        data = module_bytes(mapping(_parameters=b"}", _buffers=b"}", _modules=children))
    path = tmp_path / "model.pt"
    path.write_bytes(file_of(data))
    with pytest.raises(ValueError, match="more than 4000000 modules and tensors"):
        dormant.open_checkpoint(path)


@pytest.mark.parametrize(
    "state",
    [
        mapping(_parameters=b"N", _buffers=b"}", _modules=b"}"),
        mapping(_parameters=b"}", _buffers=b"]", _modules=b"}"),
        mapping(_parameters=b"}", _buffers=b"}"),
        b"N",
        b"K\x01",
        b"(}NNt",
    ],
)
def test_what_is_almost_a_module(tmp_path: Path, state: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(file_of(module_bytes(state)))
    with pytest.raises(ValueError, match="expected"):
        dormant.open_checkpoint(path)


@pytest.mark.parametrize(
    "value",
    [
        b"cbuiltins\nset\n(cbuiltins\nrange\nK\x00\x8a\x06\x00\x00\x00\x00\x00\x01\x86Rl\x85R",
        b"cbuiltins\nset\ncbuiltins\nrange\nK\x00\x8a\x06\x00\x00\x00\x00\x00\x01\x86R\x85R",
        b"cfractions\nFraction\nX\x0b\x00\x00\x001e999999999\x85R",
        b"ctorch\nSize\n]\x85R",
        b"ctorch\nSize\nX\x01\x00\x00\x00x\x85R",
        b"ctorch\ndevice\nX\x01\x00\x00\x00x\x85R",
        b"cpathlib\nPosixPath\nN\x85R",
        b"cdatetime\ndatetime\nN\x85R",
        b"c_codecs\nencode\nX\x01\x00\x00\x00xX\x03\x00\x00\x00zip\x86R",
        b"ccollections\nOrderedDict\nK\x01\x85R",
        b"ccollections\nOrderedDict\n]]K\x01aa\x85R",
        b"ccollections\nCounter\nK\x01\x85R",
        b"cnumpy.core.multiarray\nscalar\nNN\x86R",
        b"cnumpy\ndtype\nX\x02\x00\x00\x00O8\x85R",
        b"cbuiltins\nset\n(((lll\x85R",
        b"cuuid\nUUID\n)\x81}b",
        b"ctorch.storage\n_load_from_bytes\nX\x01\x00\x00\x00x\x85R",
    ],
)
def test_calls_of_plain_classes_with_odd_arguments(tmp_path: Path, value: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(file_of(mapping(a=b"}", value=value)))
    checkpoint = dormant.open_checkpoint(path, key="a")
    message = ""
    try:
        _ = checkpoint.extra
    except ValueError as error:
        message = str(error)
    assert not message or str(path) in message


@pytest.mark.threads
def test_threads_read_a_pickled_module(tmp_path: Path) -> None:
    module = Odd()
    checkpoint = dormant.open_checkpoint(save({"model": module, "n": VALUES}, tmp_path))
    failures: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(5):
                state = dict(checkpoint)
                assert checkpoint.extra["n"] == VALUES
                for name, tensor in module.state_dict().items():
                    assert_same_bits(tensor, state[name], name)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def test_torch_load_inside_the_context_is_torch_load(tmp_path: Path) -> None:
    path = save({"a": torch.ones(2), "path": Path("x")}, tmp_path)
    with dormant.lazy_init(), pytest.raises(pickle.UnpicklingError):
        torch.load(path)
    plain = save({"a": torch.ones(2), "more": [torch.Size([1]), torch.float16, {3}]}, tmp_path)
    with dormant.lazy_init():
        loaded = torch.load(plain)
    assert dormant.is_lazy(loaded["a"])
    assert loaded["more"] == [torch.Size([1]), torch.float16, {3}]


class _Unhashable:
    """Pickled as what cannot be the key of a mapping."""

    def __reduce__(self) -> Any:
        return collections.OrderedDict, ()


@pytest.mark.parametrize("nested", [False, True])
def test_a_key_that_cannot_be_one_is_an_error_of_extra(tmp_path: Path, nested: bool) -> None:
    path = tmp_path / "m.pt"
    beside: Any = {_Unhashable(): 3}
    state = {"a": torch.ones(2), **({"inner": beside} if nested else beside)}
    torch.save(state, path)
    checkpoint = dormant.open_checkpoint(path)
    assert list(checkpoint) == ["a"]
    assert checkpoint["a"].tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match=f"{path.name}: extra cannot be created: TypeError: unhas"):
        _ = checkpoint.extra
