"""Checks of another device, each in a process of its own: `jobs.py DEVICE JOB`, or `--list`."""

from __future__ import annotations

import functools
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))

import dormant

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
    """They stay the same objects where the device allows it; otherwise the library refuses."""
    if device == "fake":
        return  # .data of a tensor cannot become one of another Python class
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
    if device == "fake":
        from fake_device import copied_bytes

        assert sum(copied_bytes) >= 2 * expected.weight.nbytes
        assert max(copied_bytes) <= _SLOT, max(copied_bytes)


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
        with dormant.lazy_init():
            model = Model(40_000)
        for attempt in (
            lambda: dormant.load(model, path, device=device, progress=stop),
            lambda: dormant.load(model, path, device=device, memory_budget=1),
            *_without_memory(lambda: dormant.load(model, path, device=device), device),
        ):
            before = _tensors(model)
            try:
                attempt()
            except (Stopped, ValueError, torch.OutOfMemoryError):
                pass
            else:
                raise AssertionError("nothing was raised")
            after = _tensors(model)
            assert all(after[name] is before[name] for name in before)
            assert all(tensor.device.type == "cpu" for tensor in after.values())
            assert dormant.is_lazy(model.embedding.weight)
        dormant.load(model, path, device=device, missing="error")
        _check_equal(model, reference, device)


def _without_memory(call: Callable[[], object], device: str) -> list[Callable[[], object]]:
    """Calls in which each allocation on the device fails in turn: there are twelve."""
    if device != "fake":
        return []
    from fake_device import allocations_left

    def failing(allocation: int) -> None:
        allocations_left[:] = [allocation]
        try:
            call()
        finally:
            allocations_left.clear()

    return [functools.partial(failing, allocation) for allocation in range(12)]


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


def quantized(device: str) -> None:
    """Packed weights have the bytes that bitsandbytes packs on the CPU."""
    if device == "fake":
        return  # bitsandbytes has no kernels for it, and its parameters are a class of their own
    torch.manual_seed(5)
    with dormant.lazy_init():
        model = nn.Sequential(nn.Linear(128, 256), nn.Linear(256, 64))
    dormant.quantize(model, "nf4", skip=())
    dormant.materialize(model, device=device)
    torch.manual_seed(5)
    with dormant.lazy_init():
        on_cpu = nn.Sequential(nn.Linear(128, 256), nn.Linear(256, 64))
    dormant.quantize(on_cpu, "nf4", skip=())
    dormant.materialize(on_cpu)
    for layer, expected in zip(model, on_cpu, strict=True):
        assert layer.weight.device.type == device
        assert torch.equal(layer.weight.cpu(), expected.weight)
        assert torch.equal(
            layer.weight.quant_state.absmax.cpu(), expected.weight.quant_state.absmax
        )
    inputs = torch.randn(3, 128)
    difference = (model(inputs.to(device)).cpu() - on_cpu(inputs)).abs().max()
    assert difference < 1e-2, difference


JOBS: dict[str, Callable[[str], None]] = {
    job.__name__: job
    for job in (
        materialize,
        materialize_dtype,
        materialize_values,
        tensors_outside_of_modules,
        large_tensors_are_never_whole_on_the_cpu,
        load,
        failures,
        threads,
        quantized,
    )
}

if __name__ == "__main__":
    if sys.argv[1] == "--list":
        print(*JOBS)
    else:
        if sys.argv[1] == "fake":
            import fake_device  # noqa: F401
        JOBS[sys.argv[2]](sys.argv[1])
