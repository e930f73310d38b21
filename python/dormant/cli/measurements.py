"""The measurements of `dormant bench`. Each way of a measurement runs in a separate process.

Timing starts after libraries are imported and ends when the result exists; then outputs are hashed.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.util
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dormant.loading.api import load
from dormant.materialization.api import materialize
from dormant.quantization.api import quantize
from dormant.recording.context import lazy_init
from dormant.reporting.memory import highest_resident_bytes, resident_bytes
from dormant.saving.api import save


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama."""

    vocabulary: int
    features: int
    hidden: int
    layers: int
    key_features: int


SHAPES = {
    "tiny": Shape(128, 64, 128, 2, 64),
    "300M": Shape(32000, 1024, 2816, 24, 256),
    "1B": Shape(32000, 2048, 5632, 22, 256),
    "7B": Shape(32000, 4096, 11008, 32, 4096),
}


class _Layer(nn.Module):
    """The parameters of a layer of Llama. Nothing is computed with them here."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        features, keys, hidden = shape.features, shape.key_features, shape.hidden
        self.q = nn.Linear(features, features, bias=False)
        self.k = nn.Linear(features, keys, bias=False)
        self.v = nn.Linear(features, keys, bias=False)
        self.o = nn.Linear(features, features, bias=False)
        self.gate = nn.Linear(features, hidden, bias=False)
        self.up = nn.Linear(features, hidden, bias=False)
        self.down = nn.Linear(hidden, features, bias=False)
        self.attention_norm = nn.RMSNorm(features)
        self.norm = nn.RMSNorm(features)


class _Model(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.features)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.features)
        self.head = nn.Linear(shape.features, shape.vocabulary, bias=False)


@dataclass(frozen=True)
class Job:
    """One run of one way of a measurement.

    Attributes:
        measurement: a key of `MEASUREMENTS`.
        way: a key of its ways.
        size: a key of `SHAPES`.
        folder: the folder for files, which contains `CHECKPOINT`.
        threads: the number of PyTorch's threads; None leaves PyTorch's default.
    """

    measurement: str
    way: str
    size: str
    folder: Path
    threads: int | None


@dataclass(frozen=True)
class Sample:
    """The result of one run.

    Attributes:
        seconds: wall-clock time.
        peak_bytes: the peak memory minus the memory before the run; None if it is not known.
        digest: the digest of the output; None if the output has no values.
    """

    seconds: float
    peak_bytes: int | None
    digest: str | None


CHECKPOINT = "checkpoint.pt"


def run_job(job: Job) -> Sample:
    """Runs a job in this process, which should be new."""
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    way = MEASUREMENTS[job.measurement].ways[job.way]
    if (library := MEASUREMENTS[job.measurement].library) is not None:
        importlib.import_module(library)
    torch.manual_seed(0)
    before = resident_bytes()
    started = time.perf_counter()
    result = way(job)
    seconds = time.perf_counter() - started
    highest = highest_resident_bytes()
    peak = None if before is None or highest is None else max(highest - before, 0)
    return Sample(seconds, peak, None if result is None else _digest(result))


def write_checkpoint(job: Job) -> int:
    """Writes the file that jobs load, and returns the number of parameters of the model."""
    torch.manual_seed(1)
    model = _lazy(job)
    save(model, job.folder / CHECKPOINT, progress=False)
    return sum(parameter.numel() for parameter in model.parameters())


def _eager(job: Job) -> _Model:
    return _Model(SHAPES[job.size])


def _lazy(job: Job) -> _Model:
    with lazy_init():
        return _Model(SHAPES[job.size])


def _eager_construct(job: Job) -> None:
    _eager(job)


def _lazy_construct(job: Job) -> None:
    _lazy(job)


def _lazy_materialize(job: Job) -> _Model:
    model = _lazy(job)
    materialize(model, progress=False)
    return model


def _eager_save(job: Job) -> Path:
    path = job.folder / "eager.safetensors"
    save(_eager(job), path, progress=False)
    return path


def _lazy_save(job: Job) -> Path:
    path = job.folder / "lazy.safetensors"
    save(_lazy(job), path, progress=False)
    return path


def _eager_load(job: Job) -> _Model:
    model = _eager(job)
    model.load_state_dict(torch.load(job.folder / CHECKPOINT, mmap=True, weights_only=True))
    return model


def _lazy_load(job: Job) -> _Model:
    model = _lazy(job)
    load(model, job.folder / CHECKPOINT, mmap="always", progress=False)
    return model


def _lazy_load_copied(job: Job) -> _Model:
    model = _lazy(job)
    load(model, job.folder / CHECKPOINT, mmap="never", progress=False)
    return model


def _eager_quantize(job: Job) -> _Model:
    bitsandbytes: Any = importlib.import_module("bitsandbytes")
    model = _eager_load(job)
    for layer in model.layers.modules():
        for name, child in list(layer.named_children()):
            if type(child) is nn.Linear:
                replaced = bitsandbytes.nn.Linear4bit(
                    child.in_features, child.out_features, bias=False, quant_type="nf4"
                )
                replaced.weight = bitsandbytes.nn.Params4bit(
                    child.weight.detach(), requires_grad=False, quant_type="nf4"
                )
                setattr(layer, name, replaced.to("cpu"))
    return model


def _lazy_quantize(job: Job) -> _Model:
    model = _lazy(job)
    quantize(model, "nf4", skip=["head"])
    load(model, job.folder / CHECKPOINT, progress=False)
    return model


def _digest(result: nn.Module | Path) -> str:
    digest = hashlib.sha256()
    if isinstance(result, Path):
        with result.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
        return digest.hexdigest()
    for name, tensor in sorted(result.state_dict().items()):
        digest.update(name.encode())
        data = tensor.detach().contiguous()
        digest.update((ctypes.c_char * data.nbytes).from_address(data.data_ptr()))
    return digest.hexdigest()


@dataclass(frozen=True)
class Measurement:
    """Several ways to the same result; the eager one is first.

    Attributes:
        title: what is measured.
        ways: the functions that are timed, by name.
        library: the library that must be installed, or None.
    """

    title: str
    ways: Mapping[str, Callable[[Job], Any]]
    library: str | None = None

    def obstacle(self) -> str | None:
        """The reason why it cannot run here; None if it can."""
        if self.library is None or importlib.util.find_spec(self.library) is not None:
            return None
        return f"{self.library} is not installed"


MEASUREMENTS = {
    "construct": Measurement(
        "construct the model", {"eager": _eager_construct, "dormant": _lazy_construct}
    ),
    "materialize": Measurement(
        "construct it with its initial values", {"eager": _eager, "dormant": _lazy_materialize}
    ),
    "save": Measurement(
        "construct it and write it to a file", {"eager": _eager_save, "dormant": _lazy_save}
    ),
    "load": Measurement(
        "construct it and load a checkpoint",
        # Mapped pages are read when they are accessed, which is after the measured time.
        {"eager": _eager_load, "dormant, mapped": _lazy_load, "dormant, copied": _lazy_load_copied},
    ),
    "quantize": Measurement(
        "construct it, load a checkpoint, quantize to nf4",
        {"eager": _eager_quantize, "dormant": _lazy_quantize},
        library="bitsandbytes",
    ),
}
