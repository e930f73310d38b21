"""Checks of another device, each in a process of its own: `jobs.py DEVICE JOB`, or `--list`."""

from __future__ import annotations

import copy
import functools
import importlib.util
import itertools
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

import dormant
from compare import assert_same_bits
from dormant import _C
from dormant.recording import patches
from fake_device import FakeDevice
from faults import Kind, fingerprint, sweep

# The device "hpu" is simulated.
SIMULATED: FakeDevice | None = None

_SLOT = 8 << 20  # bytes of one of the ring's buffers


class Model(nn.Module):
    """Weights of several orders, sizes and dtypes, some of them shared."""

    def __init__(self, rows: int = 300) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, 64)
        self.head = nn.Linear(64, rows, bias=False)
        self.head.weight = self.embedding.weight
        self.transposed = nn.Parameter(torch.randn(70, 90).t())
        self.permuted = nn.Parameter(torch.randn(6, 7, 8, 9).to(memory_format=torch.channels_last))
        self.norm = nn.BatchNorm1d(64)
        self.replayed = nn.Parameter(torch.randn(40, 50).cumsum(0))
        self.frozen = nn.Parameter(torch.randn(5).double(), requires_grad=False)
        self.register_buffer("part", torch.arange(1000.0)[100:400:3])
        self.register_buffer("scalar", torch.tensor(3), persistent=False)
        self.register_buffer("nothing", torch.empty(0, 4))


def _lazily(make: Callable[[], nn.Module] = Model) -> nn.Module:
    torch.manual_seed(11)
    with dormant.lazy_init():
        return make()


def _eagerly(make: Callable[[], nn.Module] = Model) -> nn.Module:
    torch.manual_seed(11)
    return make()


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}


def _check_equal(model: nn.Module, expected: nn.Module, device: str) -> None:
    """All bits, and everything else that `expected.to(device)` would have."""
    assert not dormant.is_lazy(model)
    values = {name: tensor.detach().clone() for name, tensor in _tensors(expected).items()}
    moved = _tensors(expected.to(device))
    found = _tensors(model)
    assert found.keys() == values.keys()
    for name, tensor in found.items():
        assert tensor.device == moved[name].device, name
        assert tensor.dtype is values[name].dtype, name
        assert tensor.stride() == moved[name].stride(), (name, tensor.stride())
        assert tensor.requires_grad == moved[name].requires_grad, name
        assert isinstance(tensor, nn.Parameter) == isinstance(moved[name], nn.Parameter), name
        assert torch.equal(tensor.detach().cpu(), values[name]), name
    tied = [model.get_parameter(name) for name in ("embedding.weight", "head.weight")]
    expected_tied = [expected.get_parameter(name) for name in ("embedding.weight", "head.weight")]
    assert (tied[0] is tied[1]) == (expected_tied[0] is expected_tied[1])


def materialize(device: str) -> None:
    """A model has the bits of eager construction, and the report is that of the CPU."""
    for budget in (None, "1MiB"):
        model = _lazily()
        report = dormant.materialize(model, device=device, memory_budget=budget)
        _check_equal(model, _eagerly(), device)
        on_cpu = dormant.materialize(_lazily())
        assert report.nbytes == on_cpu.nbytes, (report, on_cpu)
        for origin in ("initialized", "checkpoint", "real", "empty"):
            assert report.count(origin) == on_cpu.count(origin), origin


def nothing_stays_behind(device: str) -> None:
    """What a device got copies of is gone, and with it everything that Dormant replaced."""
    for scheme in (None, *SCHEMES):
        model = _lazily() if scheme is None else _packed(scheme)
        dormant.materialize(model, device=device)
        assert (_C.live_storages(), patches.installed()) == (0, [])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.pt")
            torch.save((_eagerly() if scheme is None else _eagerly(_Packed)).state_dict(), path)
            dormant.load(_lazily() if scheme is None else _packed(scheme), path, device=device)
            if scheme is None:
                dormant.load(_eagerly().to(device), path)
        assert (_C.live_storages(), patches.installed()) == (0, [])


def materialize_dtype(device: str) -> None:
    """The cast is part of the same pass."""
    model = _lazily()
    dormant.materialize(model, device=device, dtype=torch.bfloat16)
    expected = dormant.materialize(reference := _lazily(), dtype=torch.bfloat16)
    assert expected.nbytes > 0
    _check_equal(model, reference, device)


def materialize_values(device: str) -> None:
    """Other values than the exact ones."""
    model = _lazily()
    dormant.materialize(model, values="fast", device=device)
    dormant.materialize(reference := _lazily(), values="fast")
    _check_equal(model, reference, device)
    dormant.materialize(model := _lazily(), values="empty", device=device)
    assert {tensor.device.type for tensor in _tensors(model).values()} == {device}


def tensors_outside_of_modules(device: str) -> None:
    """They stay the same objects."""
    with dormant.lazy_init():
        tensors = {"a": torch.randn(4, 5), "b": torch.ones(3)}
    before = dict(tensors)
    dormant.materialize(tensors, device=device)
    assert all(tensors[name] is before[name] for name in before)
    assert {tensor.device.type for tensor in tensors.values()} == {device}


def large_tensors_are_never_whole_on_the_cpu(device: str) -> None:
    """Copies are no larger than a buffer of the ring."""
    torch.manual_seed(0)
    with dormant.lazy_init():
        layer = nn.Linear(4096, 5000)
    dormant.materialize(layer, device=device)
    torch.manual_seed(0)
    expected = nn.Linear(4096, 5000)
    assert torch.equal(layer.weight.detach().cpu(), expected.weight)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        save_file(dict(expected.state_dict()), path)
        with dormant.lazy_init():
            loaded = nn.Linear(4096, 5000)
        dormant.load(loaded, path, device=device)
    assert torch.equal(loaded.weight.detach().cpu(), expected.weight)
    if SIMULATED is not None:
        copied = SIMULATED.copied_bytes()
        assert sum(copied) >= 2 * expected.weight.nbytes
        assert max(copied) <= _SLOT, max(copied)


def load(device: str) -> None:
    """What the file has is read, the rest is initialized, in the order of the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        reference = _eagerly()
        state = {
            name: tensor.contiguous() + 1
            for name, tensor in reference.state_dict().items()
            if name not in ("replayed", "head.weight", "part")
        }
        save_file(state, path)
        for dtype in (None, torch.bfloat16):
            expected = _lazily()
            on_cpu = dormant.load(expected, path, missing="init", dtype=dtype)
            model = _lazily()
            report = dormant.load(model, path, missing="init", dtype=dtype, device=device)
            _check_equal(model, expected, device)
            for origin in ("initialized", "checkpoint", "real"):
                assert report.count(origin) == on_cpu.count(origin), origin
            assert report.missing_keys == on_cpu.missing_keys
            assert report.nbytes == on_cpu.nbytes


def failures(device: str) -> None:
    """After any error, the model is lazy on the CPU, and a second call gives the right bits."""

    class Stopped(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done * 2 > total:
            raise Stopped

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        reference = Model(40_000)
        state = dict(reference.state_dict())
        del state["head.weight"]
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)

        def lazy() -> nn.Module:
            with dormant.lazy_init():
                model = Model(40_000)
            model.frozen.data = torch.ones(5).double()  # it is real before
            return model

        model = lazy()
        for attempt in (
            lambda: dormant.load(model, path, device=device, progress=stop),
            lambda: dormant.load(model, path, device=device, memory_budget=1),
        ):
            assert _changes_nothing(attempt, model, (Stopped, ValueError))
        assert _fails_in_turn(lazy, path, device) >= 20 or SIMULATED is None
        dormant.load(model, path, device=device, missing="error")
        _check_equal(model, reference, device)


def _changes_nothing(
    attempt: Callable[[], object], model: nn.Module, errors: tuple[type[BaseException], ...]
) -> bool:
    """Whether `attempt` raises one of the errors; the model then is as it was."""
    before, lazy = _tensors(model), {n for n, t in _tensors(model).items() if dormant.is_lazy(t)}
    try:
        attempt()
    except errors:
        after = _tensors(model)
        assert all(after[name] is before[name] for name in before)
        assert all(tensor.device.type == "cpu" for tensor in after.values())
        assert {name for name, tensor in after.items() if dormant.is_lazy(tensor)} == lazy
        return True
    return False


def _fails_in_turn(make: Callable[[], nn.Module], path: Path, device: str) -> int:
    """Loads models; each allocation on the device, and each copy to it, fails in turn.

    Returns:
        How many failed.
    """
    if SIMULATED is None:
        return 0

    def attempt(fail: Callable[[int], None], model: nn.Module, turn: int) -> None:
        fail(turn)
        try:
            dormant.load(model, path, device=device)
        finally:
            fail(-1)

    failures = 0
    for fail in (SIMULATED.copies_left, SIMULATED.allocations_left):
        model = make()
        for turn in itertools.count():
            one = functools.partial(attempt, fail, model, turn)
            if not _changes_nothing(one, model, (RuntimeError,)):
                break
            failures += 1
    return failures


def threads(device: str) -> None:
    """Two threads, a model each."""
    models = [_lazily(), _lazily()]
    each = [
        threading.Thread(target=dormant.materialize, args=(model,), kwargs={"device": device})
        for model in models
    ]
    for thread in each:
        thread.start()
    for thread in each:
        thread.join()
    for model in models:
        _check_equal(model, _eagerly(), device)


class _Packed(nn.Module):
    """Two layers and a stack of matrices, all of which are packed, beside others."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(128, 256)
        self.experts = nn.Parameter(torch.randn(3, 256, 64))
        self.norm = nn.LayerNorm(64)
        self.down = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.up(x)) @ self.experts.sum(0)
        output: torch.Tensor = self.down(self.norm(hidden))
        return output


def _packed(scheme: object) -> nn.Module:
    model = _lazily(_Packed)
    parameters = ["experts"] if scheme != "int8" else None
    dormant.quantize(model, scheme, skip=(), parameters=parameters)
    return model


class _Expected:
    """A packed model on the CPU, where its first forward changes the layout of its weights."""

    def __init__(self, model: nn.Module) -> None:
        self.state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.inputs = torch.randn(3, 128)
        self.outputs = model(self.inputs)

    def check(self, model: nn.Module, device: str) -> None:
        """The bits, where everything is, and that the layers compute."""
        for key, tensor in model.state_dict().items():
            on_cpu = key.endswith(("weight_format", "quant_state.bitsandbytes__nf4"))
            assert tensor.device.type == ("cpu" if on_cpu else device), (key, tensor.device)
            # `cpu` of a packed parameter would move its statistics.
            assert_same_bits(self.state[key], tensor.as_subclass(torch.Tensor).cpu(), key)
        outputs = model(self.inputs.to(device)).cpu()
        torch.testing.assert_close(outputs, self.outputs, rtol=5e-2, atol=5e-2)


# Without the library, nothing can be packed.
SCHEMES: tuple[Any, ...] = (
    (
        "nf4",
        "int8",
        dormant.FourBit(kind="nf4", nested=False, storage_dtype=torch.bfloat16),
    )
    if importlib.util.find_spec("bitsandbytes")
    else ()
)


def _saved(folder: str) -> tuple[Path, nn.Module]:
    """A checkpoint of a model, and that model on the CPU."""
    torch.manual_seed(3)
    saved = Model()
    with torch.no_grad():
        for tensor in (*saved.parameters(), *saved.buffers()):
            tensor.add_(1)
    path = Path(folder, "model.pt")
    torch.save(saved.state_dict(), path)
    return path, saved


def _accumulator(parameter: torch.Tensor) -> object:
    """What adds to its gradient."""
    if not parameter.requires_grad:
        return None
    view = parameter.view_as(parameter)
    assert view.grad_fn is not None
    return view.grad_fn.next_functions[0][0]


def load_into_a_model_of_the_device(device: str) -> None:
    """Parameters are the same objects, and whoever holds them notices nothing but new values."""
    with tempfile.TemporaryDirectory() as folder:
        path, saved = _saved(folder)
        state = {name: tensor.to(device) for name, tensor in saved.state_dict().items()}
        on_cpu = dormant.load(_eagerly(), path)
        for checkpoint in (path, saved.state_dict(), state):
            model = _eagerly().to(device)
            scalar, part = model.get_buffer("scalar"), model.get_buffer("part")
            parameters = list(model.parameters())
            places = [parameter.data_ptr() for parameter in parameters]
            versions = [parameter._version for parameter in parameters]
            accumulators = [_accumulator(parameter) for parameter in parameters]
            report = dormant.load(model, checkpoint)
            assert list(map(id, model.parameters())) == list(map(id, parameters))
            assert [parameter.data_ptr() for parameter in parameters] == places
            assert all(p._version > v for p, v in zip(parameters, versions, strict=True))
            assert model.get_buffer("part") is part
            assert model.get_buffer("scalar") is scalar  # not persistent: no checkpoint has it
            for origin in ("checkpoint", "real", "initialized"):
                assert report.count(origin) == on_cpu.count(origin), (origin, report)
            saved.scalar = scalar.cpu()
            _check_equal(model, copy.deepcopy(saved), device)
            # DistributedDataParallel has its hooks there.
            assert [_accumulator(parameter) for parameter in parameters] == accumulators


def refused_load_into_a_model_of_the_device(device: str) -> None:
    """An error or a dry run leaves the values on the device as they were."""
    with tempfile.TemporaryDirectory() as folder:
        path, saved = _saved(folder)
        model = _eagerly().to(device)
        expected = {name: tensor.cpu().clone() for name, tensor in _tensors(model).items()}
        wrong = {**saved.state_dict(), "unknown": torch.ones(2)}
        before = _tensors(model)
        dormant.load(model, path, dry_run=True)
        for refused in (wrong, {"transposed": torch.ones(2, 2)}):
            try:
                dormant.load(model, refused)
            except KeyError:
                pass
            else:
                raise AssertionError(refused)
        assert all(_tensors(model)[name] is tensor for name, tensor in before.items())
        for name, values in expected.items():
            assert_same_bits(values, before[name].detach().cpu(), name)
        if SIMULATED is None:
            return
        SIMULATED.copies_left(2)
        message = ""
        try:
            dormant.load(model, path)
        except RuntimeError as error:
            message = str(error)
        finally:
            SIMULATED.copies_left(-1)
        assert "These tensors, real before, were written in whole or in part" in message, message
        assert message.endswith(" transposed."), message
        assert all(_tensors(model)[name] is tensor for name, tensor in before.items())
        dormant.load(model, path)
        saved.scalar = model.get_buffer("scalar").cpu()
        _check_equal(model, saved, device)


def converted_in_a_load(device: str) -> None:
    """A load with a dtype, from the model's own memory, and into memory with gaps."""
    with tempfile.TemporaryDirectory() as folder:
        path, _ = _saved(folder)
        expected, model = _eagerly(), _eagerly().to(device)
        parameters = list(model.parameters())
        dormant.load(expected, path, dtype=torch.bfloat16)
        dormant.load(model, path, dtype=torch.bfloat16)
        assert list(map(id, model.parameters())) == list(map(id, parameters))
        _check_equal(model, expected, device)
        dormant.load(model := _eagerly().to(device), path, device="cpu")
        dormant.load(expected := _eagerly().to(device).to("cpu"), path)
        _check_equal(model, expected, "cpu")
    layer = nn.Linear(64, 64, bias=False).to(device)
    values = layer.weight.detach().cpu().clone()
    dormant.load(layer, {"weight": layer.weight.detach().t()})
    assert torch.equal(layer.weight.detach().cpu(), values.t())
    gaps = torch.zeros(64, 128).to(device)
    layer.weight.data = gaps[:, ::2]
    dormant.load(layer, {"weight": values})
    assert torch.equal(layer.weight.detach().cpu(), values)
    assert torch.equal(gaps.cpu()[:, 1::2], torch.zeros(64, 64))


def saved_from_the_device(device: str) -> None:
    """Every format has the values; torch.save's has the device, as with torch.save."""
    with tempfile.TemporaryDirectory() as folder:
        expected = _eagerly()
        model = _eagerly().to(device)
        for name in ("model.safetensors", "model.pt"):
            dormant.save(model, Path(folder, name))
        dormant.save({"model": model}, Path(folder, "dcp"), format="dcp")
        for name in ("model.safetensors", "model.pt", "dcp"):
            loaded = _lazily()
            dormant.load(loaded, Path(folder, name), missing="init")
            _check_equal(loaded, copy.deepcopy(expected), "cpu")
        state = torch.load(Path(folder, "model.pt"))
        assert {tensor.device.type for tensor in state.values()} == {device}


def faults(device: str) -> None:
    """Reads of the file and allocations of the CPU fail in turn."""
    with tempfile.TemporaryDirectory() as folder:
        path, saved = _saved(folder)

        def check_plain(model: nn.Module) -> None:
            saved.scalar = model.get_buffer("scalar").cpu()
            _check_equal(model, copy.deepcopy(saved), device)

        cases: list[tuple[Callable[[], nn.Module], Path, Callable[[nn.Module], None]]] = [
            (_lazily, path, check_plain),
            (lambda: _eagerly().to(device), path, check_plain),
        ]
        if SCHEMES:
            packed = Path(folder, "packed.pt")
            torch.save(_eagerly(_Packed).state_dict(), packed)
            dormant.load(on_cpu := _packed("nf4"), packed)
            expected = _Expected(on_cpu)
            make = functools.partial(_packed, "nf4")
            cases.append((make, packed, functools.partial(expected.check, device=device)))
        kinds: tuple[Kind, ...] = ("read", "allocate")
        for kind, (build, file, check) in itertools.product(kinds, cases):
            _sweep(kind, build, file, check, device)


def _sweep(
    kind: Kind,
    make: Callable[[], nn.Module],
    file: Path,
    check: Callable[[nn.Module], None],
    device: str,
) -> None:
    before: dict[str, object] = {}

    def seen(model: nn.Module) -> dict[str, object]:
        """Without versions, which count what was written to real tensors before it failed."""
        found = fingerprint(model).items()
        return {name: (*rest, {**about, "_version": 0}) for name, (*rest, about) in found}

    def prepare() -> nn.Module:
        model = make()
        before.update(seen(model))
        return model

    def check_all(model: nn.Module, error: BaseException | None) -> None:
        if error is not None:
            assert seen(model) == before
            dormant.load(model, file, device=device)
        check(model)

    assert sweep(kind, prepare, lambda m: dormant.load(m, file, device=device), check_all) > 0


def recorded_on_the_cpu_only(device: str) -> None:
    """A context for the device is refused: it would construct the model there at once."""
    for make in (dormant.lazy_init, lambda device: dormant.LazyInitContext(default_device=device)):
        message = ""
        try:
            make(device=device)
        except NotImplementedError as error:
            message = str(error)
        assert "dormant.materialize" in message


def quantized(device: str) -> None:
    """Packed weights have the bytes of the CPU, and what unpacks them is on the device, too."""
    for scheme in SCHEMES:
        on_cpu = dormant.materialize(model := _packed(scheme))
        expected = _Expected(model)
        for budget in (None, "2MiB"):
            model = _packed(scheme)
            report = dormant.materialize(model, device=device, memory_budget=budget)
            assert report.nbytes == on_cpu.nbytes
            assert report.count("initialized") == on_cpu.count("initialized")
            assert report.count("quantized") == on_cpu.count("quantized")
            expected.check(model, device)
        dormant.materialize(model := _packed(scheme))
        dormant.materialize(model, device=device)  # it is real by now
        expected.check(model, device)


def quantized_load(device: str) -> None:
    """Each byte is read once; a load that fails changes nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path, packed = Path(folder, "model.safetensors"), Path(folder, "packed.safetensors")
        save_file(dict(_eagerly(_Packed).state_dict()), path)
        nbytes = sum(tensor.nbytes for tensor in _Packed().state_dict().values())
        for scheme in SCHEMES:
            on_cpu = dormant.load(model := _packed(scheme), path)
            dormant.save(model, packed)
            expected = _Expected(model)
            model = _packed(scheme)
            report = dormant.load(model, path, device=device)
            assert report.read_bytes == nbytes, (report.read_bytes, nbytes)
            for origin in ("checkpoint", "quantized", "initialized", "real"):
                assert report.count(origin) == on_cpu.count(origin), origin
            expected.check(model, device)
            later = _packed(scheme)
            dormant.load(later, path, materialize=False)
            report = dormant.materialize(later, device=device)
            assert report.read_bytes == nbytes, (report.read_bytes, nbytes)
            expected.check(later, device)
            again = _packed(scheme)
            dormant.load(again, packed, device=device)
            expected.check(again, device)
            failures = _fails_in_turn(functools.partial(_packed, scheme), path, device)
            assert failures >= 20 or SIMULATED is None, failures


def models_of_transformers(device: str) -> None:
    """A model of the library computes on the device, however it gets there."""
    if any(
        importlib.util.find_spec(name) is None for name in ("transformers", "peft", "bitsandbytes")
    ):
        return
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    config = LlamaConfig(num_attention_heads=4, num_key_value_heads=2, vocab_size=128, **sizes)
    saved = _eagerly(lambda: LlamaForCausalLM(config))
    inputs = torch.arange(6)[None]
    expected = saved(inputs).logits

    def check(model: Any, tolerance: float) -> None:
        assert {each.device.type for each in (*model.parameters(), *model.buffers())} == {device}
        logits = model(inputs.to(device)).logits.cpu()
        torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance)

    with tempfile.TemporaryDirectory() as folder:
        saved.save_pretrained(folder)
        for options in ({}, {"device_map": {"": device}}):
            with dormant.lazy_init():
                model = LlamaForCausalLM.from_pretrained(folder, **options)
            dormant.materialize(model, device=device)
            check(model, 1e-3)
        for scheme in (None, *SCHEMES[:2]):
            model = _lazily(lambda: LlamaForCausalLM(config))
            if scheme is not None:
                dormant.quantize(model, scheme)
            dormant.load(model, folder, device=device)
            check(model, 1e-3 if scheme is None else 0.15)
        with dormant.lazy_init():
            model = LlamaForCausalLM(config)
            dormant.quantize(model, "nf4")
            dormant.load(model, folder, materialize=False)
            adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
        dormant.materialize(adapted, device=device)
        check(adapted, 0.15)


JOBS: dict[str, Callable[[str], None]] = {
    job.__name__: job
    for job in (
        materialize,
        nothing_stays_behind,
        materialize_dtype,
        materialize_values,
        tensors_outside_of_modules,
        large_tensors_are_never_whole_on_the_cpu,
        load,
        failures,
        threads,
        load_into_a_model_of_the_device,
        refused_load_into_a_model_of_the_device,
        converted_in_a_load,
        saved_from_the_device,
        faults,
        recorded_on_the_cpu_only,
        quantized,
        quantized_load,
        models_of_transformers,
    )
}

if __name__ == "__main__":
    if sys.argv[1] == "--list":
        print(*JOBS)
    else:
        if sys.argv[1] == "hpu":
            SIMULATED = FakeDevice()
        JOBS[sys.argv[2]](sys.argv[1])
