"""A waiting quantizer lies on its layer: it is copied, pickled, wrapped and moved with it."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
import torchao.quantization as ao
from torch import nn

import dormant
from compare import assert_same_bits
from dormant.quantization.layerwise import pending_layers


class Rounded(nn.Module):
    """What a user's class may make of a layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("codes", (layer.weight * 100).round().to(torch.int8))
        self.bias = layer.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        codes = self.get_buffer("codes")
        return nn.functional.linear(inputs, codes.to(inputs.dtype) / 100, self.bias)


def halve(layer: nn.Module) -> nn.Module:
    """In place."""
    return layer.half()


class Wrapper(nn.Module):
    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.base(inputs) * self.scale
        return output


def build() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4))


def waiting(quantizer: Any = Rounded) -> Any:
    with dormant.lazy_init():
        model = build()
    dormant.quantize(model, quantizer, skip=())
    return model


def assert_rounded(layers: Any, eager: Any = None) -> None:
    eager = build() if eager is None else eager
    for mine, theirs in zip(layers, eager, strict=True):
        assert type(mine) is Rounded
        assert_same_bits(mine.codes, Rounded(theirs).codes, "codes")
        assert_same_bits(mine.bias, theirs.bias, "bias")


# --- where it goes


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: _saved_and_loaded(model),
        lambda model: nn.Sequential(*(copy.deepcopy(layer) for layer in model)),
        lambda model: copy.deepcopy(copy.deepcopy(model)),
    ],
    ids=["deepcopy", "pickle", "torch.save", "deepcopy of layers", "deepcopy of a deepcopy"],
)
@pytest.mark.parametrize("first", ["original", "copy"])
def test_copies_wait_by_themselves(duplicate: Callable[[Any], Any], first: str) -> None:
    model = waiting()
    twin = duplicate(model)
    for each in (model, twin) if first == "original" else (twin, model):
        dormant.materialize(each)
        assert_rounded(each)
    assert model[0].bias.data_ptr() != twin[0].bias.data_ptr()


def _saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


def test_a_configuration_of_torchao_is_pickled_with_its_layer() -> None:
    def lazy() -> Any:
        with dormant.lazy_init():
            torch.manual_seed(4)
            model = nn.Sequential(nn.Linear(64, 64))
        dormant.quantize(model, ao.Int8WeightOnlyConfig(), skip=())
        return model

    model, twin = lazy(), pickle.loads(pickle.dumps(lazy()))
    dormant.materialize([model, twin])
    assert type(twin[0].weight).__name__ == "Int8Tensor"
    assert_same_bits(twin[0].weight.qdata, model[0].weight.qdata, "codes")


def test_a_function_that_cannot_be_pickled_is_not_left_out() -> None:
    model = waiting(lambda layer: Rounded(layer))
    with pytest.raises((AttributeError, pickle.PicklingError), match=r"[Cc]an't pickle"):
        pickle.dumps(model)


@pytest.mark.parametrize(
    "move",
    [
        lambda old: nn.Sequential(*old),
        lambda old: nn.ModuleList(list(old)),
        lambda old: nn.ModuleDict({str(i): layer for i, layer in enumerate(old)}).values(),
        lambda old: old[:],
        lambda old: nn.Sequential(nn.Sequential(*old[:2]), old[2]),
        lambda old: copy.copy(old),
        lambda old: old.to(torch.float32).requires_grad_(False),
    ],
    ids=["Sequential", "ModuleList", "ModuleDict", "slice", "nested", "copy", "to"],
)
def test_moved_layers_are_quantized_where_they_stand(move: Callable[[Any], Any]) -> None:
    holder = nn.Module()
    old = waiting()
    moved = move(old)
    holder.moved = moved if isinstance(moved, nn.Module) else nn.ModuleList(moved)
    dormant.materialize(holder)
    assert_rounded([each for each in holder.modules() if isinstance(each, (nn.Linear, Rounded))])


def test_a_wrapper_keeps_its_place() -> None:
    model = waiting()
    wrapper = model[1] = Wrapper(model[1])
    report = dormant.materialize(model)
    assert model[1] is wrapper
    assert_rounded([model[0], wrapper.base, model[2]])
    assert ("1.base.codes",) in [tensor.names for tensor in report.tensors]
    assert report.count("real") == 1  # the scale


def test_adapters_of_peft_stay() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.b(self.a(inputs))
            return output

    with dormant.lazy_init():
        base: Any = Net()
    dormant.quantize(base, Rounded, skip=())
    model: Any = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["a"]))
    dormant.materialize(model)
    assert [name for name, _ in model.named_parameters() if "lora" in name]
    assert type(base.a.base_layer) is type(base.b) is Rounded
    assert model(torch.ones(1, 8)).shape == (1, 8)


def test_one_module_in_several_places_stays_one() -> None:
    model = waiting()
    other = nn.ModuleDict({"first": model[0], "again": model[0]})
    dormant.materialize([model, {"other": other}])
    assert model[0] is other["first"] is other["again"]
    assert_rounded(model)


def test_one_module_in_parts_that_are_materialized_one_by_one_stays_one() -> None:
    calls: list[nn.Module] = []

    def quantize(layer: Any) -> nn.Module:
        calls.append(layer)
        return Rounded(layer)

    model = waiting(quantize)
    left, right = nn.Sequential(model[0]), nn.Sequential(model[0], model[1])
    dormant.materialize(left)
    dormant.materialize(right)
    assert left[0] is right[0]
    assert_rounded(right, build()[:2])
    assert len(calls) == 2


def test_a_layer_that_got_other_values_meanwhile_is_quantized_anew() -> None:
    model = waiting()
    left: Any = nn.Sequential(model[0])
    dormant.materialize(left)
    torch.manual_seed(11)
    other = nn.Linear(8, 8)
    dormant.load(model, {"0." + name: value for name, value in other.state_dict().items()})
    assert_same_bits(left[0].codes, Rounded(build()[0]).codes, "codes")
    assert_rounded(model, [other, *build()[1:]])


def test_a_layer_by_itself() -> None:
    model = waiting(halve)
    dormant.materialize(model[0])
    assert model[0].weight.dtype is torch.float16
    model = waiting()
    with pytest.raises(ValueError, match=r"another module for the model itself.*contains it"):
        dormant.materialize(model[0])
    assert not dormant.is_lazy(model[0])
    assert [name for name, _ in pending_layers(model)] == ["0", "1", "2"]
    dormant.materialize(model)
    assert_rounded(model)


def test_loading_into_a_wrapped_and_copied_model() -> None:
    model = waiting()
    model[1] = Wrapper(model[1])
    twin = copy.deepcopy(model)
    torch.manual_seed(12)
    eager = build()
    for target in (twin, model):
        names = {"0": "0", "1": "1.base", "2": "2"}
        dormant.load(
            target,
            {f"{names[name[0]]}{name[1:]}": value for name, value in eager.state_dict().items()},
        )
        assert_rounded([target[0], target[1].base, target[2]], eager)


# --- what is seen of it


def test_it_is_not_seen() -> None:
    with dormant.lazy_init():
        plain = build()
    model = waiting()
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in plain.named_parameters()
    ]
    assert [name for name, _ in model.named_modules()] == [
        name for name, _ in plain.named_modules()
    ]
    assert repr(model) == repr(plain)
    assert len(dormant.summary(model).tensors) == len(dormant.summary(plain).tensors)


def test_what_the_function_refers_to_is_not_the_layers() -> None:
    with dormant.lazy_init():
        table = torch.ones(5)

    def quantize(layer: nn.Module, _: object = table) -> nn.Module:
        return halve(layer)

    model = waiting(quantize)
    assert len(dormant.summary(model).tensors) == 6
    report = dormant.materialize(model)
    assert dormant.is_lazy(table)
    assert len(report.tensors) == 6


def test_nothing_is_left_of_it() -> None:
    model = waiting(halve)
    dormant.materialize(model)
    for layer, eager in zip(model, build(), strict=True):
        assert set(vars(layer)) == set(vars(eager))
    assert pickle.dumps(model).count(b"dormant") == 0


def test_it_keeps_nothing_alive() -> None:
    model = waiting()
    layers = [weakref.ref(layer) for layer in model]
    other = nn.Sequential(model[0])
    dormant.materialize(other)
    results = [weakref.ref(other[0])]
    del other, model
    gc.collect()
    assert [each() for each in layers + results] == [None] * 4


def test_what_the_quantizer_copies_of_its_layer_does_not_wait() -> None:
    def quantize(layer: nn.Module) -> nn.Module:
        return Wrapper(copy.deepcopy(layer))

    model = waiting(quantize)
    dormant.materialize(model)
    dormant.materialize(model)
    assert pending_layers(model) == []
    assert [type(layer.base) for layer in model] == [nn.Linear] * 3


def test_a_result_that_holds_its_layer() -> None:
    model = waiting(Wrapper)
    layers = list(model)
    dormant.materialize(model)
    dormant.materialize(model)
    assert [each.base for each in model] == layers


@pytest.mark.filterwarnings("ignore")
def test_compiled_models_run_waiting_layers_as_they_are() -> None:
    model = waiting()
    dormant.materialize(list(model.parameters()))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    inputs = torch.randn(2, 8)
    assert_same_bits(compiled(inputs), build()(inputs), "forward")


# --- progress


@pytest.mark.parametrize("operation", ["materialize", "load", "materialize to a device"])
@pytest.mark.parametrize("quantizer", [Rounded, halve, "nf4", None])
def test_progress_is_bytes_of_everything(operation: str, quantizer: Any) -> None:
    with dormant.lazy_init():
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 32), nn.LayerNorm(32))
    whole = sum(parameter.nbytes for parameter in model.parameters())
    if quantizer is not None:
        dormant.quantize(model, quantizer, skip=["1"])
    seen: list[tuple[int, int]] = []
    options: Any = {"progress": lambda done, total: seen.append((done, total))}
    if operation == "load":
        state = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 32), nn.LayerNorm(32)).state_dict()
        dormant.load(model, state, **options)
    else:
        place = "cpu" if operation.endswith("device") else None
        dormant.materialize(model, device=place, **options)
    totals = {total for _, total in seen}
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 0
    assert len(totals) == 1
    if quantizer != "nf4":  # of which nothing is made but packed bytes
        assert totals == {whole}


# --- failures and threads


class Fails:
    """Raises at one of the layers it is called with, once."""

    def __init__(self, at: int, error: BaseException) -> None:
        self.at, self.error = at, error
        self.calls = 0

    def __call__(self, layer: Any) -> nn.Module:
        self.calls += 1
        if self.calls == self.at + 1:
            raise self.error
        return Rounded(layer)


@pytest.mark.parametrize("operation", ["materialize", "load"])
@pytest.mark.parametrize("error", [RuntimeError("full"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_failure_at_each_layer(at: int, error: BaseException, operation: str) -> None:
    model = waiting(Fails(at, error))
    state = build().state_dict()
    with pytest.raises(type(error)):
        dormant.load(model, state) if operation == "load" else dormant.materialize(model)
    assert [type(layer) for layer in model] == [Rounded] * at + [nn.Linear] * (3 - at)
    assert [dormant.is_lazy(layer) for layer in model] == [False] * (at + 1) + [True] * (2 - at)
    assert [name for name, _ in pending_layers(model)] == [str(i) for i in range(at, 3)]
    assert_same_bits(model[at].weight, build()[at].weight, "weight")
    dormant.materialize(model)
    assert_rounded(model)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_failure_in_real_layers_can_be_repeated(at: int) -> None:
    model: Any = build()
    fails = Fails(at, RuntimeError("full"))
    with pytest.raises(RuntimeError, match="full"):
        dormant.quantize(model, fails, skip=())
    assert [type(layer) for layer in model] == [Rounded] * at + [nn.Linear] * (3 - at)
    dormant.quantize(model, fails, skip=())
    assert_rounded(model)


def in_threads(*functions: Callable[[], object]) -> None:
    errors: list[BaseException] = []

    def run(function: Callable[[], object]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(each,)) for each in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


@pytest.mark.threads
def test_two_threads_with_a_model_each() -> None:
    lock = threading.Lock()  # recording of seeds is the process's

    def work() -> None:
        for _ in range(20):
            with lock:
                model = waiting()
            twin = copy.deepcopy(model)
            dormant.materialize(model)
            dormant.materialize(twin)
            assert [type(layer) for layer in (*model, *twin)] == [Rounded] * 6

    in_threads(work, work)


@pytest.mark.threads
@pytest.mark.parametrize("quantizer", [Rounded, halve])
def test_two_threads_with_one_model(quantizer: Any) -> None:
    for _ in range(20):
        lock, calls = threading.Lock(), []

        def counted(layer: nn.Module, lock: Any = lock, calls: Any = calls) -> nn.Module:
            with lock:
                calls.append(layer)
            result: nn.Module = quantizer(layer)
            return result

        model = waiting(counted)

        def work(model: Any = model) -> None:
            dormant.materialize(model)
            # Whoever returns finds everything done, whoever did it.
            kind = Rounded if quantizer is Rounded else nn.Linear
            assert [type(layer) for layer in model] == [kind] * 3
            assert pending_layers(model) == []

        in_threads(work, work, work)
        assert len(calls) == 3


@pytest.mark.threads
def test_quantizers_that_materialize_the_model_they_are_part_of_wait_for_nobody() -> None:
    models: list[Any] = []

    def quantize(layer: Any) -> nn.Module:
        dormant.materialize(models[0])
        return Rounded(layer)

    for _ in range(10):
        models[:] = [waiting(quantize)]
        work = lambda: dormant.materialize(models[0])  # noqa: E731
        in_threads(work, work)
        assert_rounded(models[0])
