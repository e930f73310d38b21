"""Code that runs in separate processes: quantizing under a limit, and the comparison with it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

import dormant
from benchmarks.fingerprint import bits
from benchmarks.llama import llama
from benchmarks.quantize_large.memory_limit import limit_memory
from dormant.reporting.memory import highest_resident_bytes, resident_bytes

_SCHEME = "nf4"


def _lazy(size: str, layers: int | None) -> Any:
    torch.manual_seed(0)
    with dormant.lazy_init(dtype=torch.bfloat16):
        return llama(size, layers)


def plan(size: str, layers: int | None = None) -> dict[str, int]:
    """Elements of the model, and bytes of it in bfloat16 and quantized."""
    model = _lazy(size, layers)
    elements = sum(parameter.numel() for parameter in model.parameters())
    before = sum(parameter.nbytes for parameter in model.parameters())
    report = dormant.quantize(model, _SCHEME)
    after = sum(layer.nbytes or 0 for layer in report.layers)
    kept = before - sum(layer.nbytes_before for layer in report.layers)
    return {"elements": elements, "nbytes": before, "quantized": after + kept}


def materialize(size: str, layers: int | None, limit: int, names: list[str]) -> dict[str, Any]:
    """Quantizes the model in memory; the figures, and digests of the layers of these names."""
    _prepare(limit)
    before, worked, started = resident_bytes() or 0, time.process_time(), time.perf_counter()
    model = _lazy(size, layers)
    dormant.quantize(model, _SCHEME)
    built = time.perf_counter()
    dormant.materialize(model, progress=False)
    return {
        "build": built - started,
        "seconds": time.perf_counter() - started,
        "processor": time.process_time() - worked,
        "before": before,
        "highest": highest_resident_bytes(),
        "final": sum(tensor.nbytes for tensor in model.state_dict().values()),
        "threads": torch.get_num_threads(),
        "digests": _digests(model.state_dict(), names),
    }


def save(size: str, layers: int | None, limit: int, folder: str) -> dict[str, Any]:
    """Quantizes the model into files; the figures."""
    _prepare(limit)
    before, worked, started = resident_bytes() or 0, time.process_time(), time.perf_counter()
    model = _lazy(size, layers)
    dormant.quantize(model, _SCHEME)
    built = time.perf_counter()
    dormant.save(model, folder, progress=False)
    return {
        "build": built - started,
        "seconds": time.perf_counter() - started,
        "processor": time.process_time() - worked,
        "before": before,
        "highest": highest_resident_bytes(),
        "final": sum(path.stat().st_size for path in Path(folder).glob("*.safetensors")),
        "threads": torch.get_num_threads(),
    }


def read(folder: str, names: list[str]) -> dict[str, str]:
    """Digests of what safetensors reads of these layers; it maps more than the limit allows."""
    from safetensors import safe_open

    state = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                if any(key.startswith(f"{name}.weight") for name in names):
                    state[key] = file.get_tensor(key)
    return _digests(state, names)


def _prepare(limit: int) -> None:
    """A small model first: imports are not what is measured, but the limit includes them."""
    limit_memory(limit)
    model = _lazy("tiny", 1)
    dormant.quantize(model, _SCHEME)
    dormant.materialize(model, progress=False)


def by_bitsandbytes(
    size: str, layers: int | None, names: list[str], *, eager: bool
) -> dict[str, str]:
    """Digests of what bitsandbytes makes of these layers.

    Their weights are those of eager construction where the model is small enough for it, else they
    are materialized one at a time.
    """
    from bitsandbytes import functional

    if eager:
        torch.manual_seed(0)
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = llama(size, layers)
        finally:
            torch.set_default_dtype(default)
    else:
        model = _lazy(size, layers)
    state: dict[str, torch.Tensor] = {}
    for name in names:
        weight = model.get_parameter(f"{name}.weight")
        dormant.materialize(weight)
        packed, parts = functional.quantize_4bit(
            weight.detach(), blocksize=64, quant_type="nf4", compress_statistics=True
        )
        state[f"{name}.weight"] = packed
        for key, part in parts.as_dict(packed=True).items():
            state[f"{name}.weight.{key}"] = part
    return _digests(state, names)


def _digests(state: dict[str, torch.Tensor], names: list[str]) -> dict[str, str]:
    return {
        key: f"{tuple(tensor.shape)} {tensor.dtype} {bits(tensor)}"
        for key, tensor in state.items()
        if any(key.startswith(f"{name}.weight") for name in names)
    }
