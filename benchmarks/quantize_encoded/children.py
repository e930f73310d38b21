"""Code that runs in separate processes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

import dormant
from benchmarks.decode.contestants import fp8_blocks, mxfp4
from benchmarks.fingerprint import bits
from benchmarks.quantize_encoded.checkpoints import lazy
from benchmarks.quantize_large.memory_limit import limit_memory
from dormant.reporting.memory import highest_resident_bytes, resident_bytes


def fp8_to_files(folder: str, small: str, out: str, limit: int) -> dict[str, Any]:
    """Quantizes a folder into files under a limit; the figures."""
    limit_memory(limit)
    _convert(small, f"{out}-small")
    before, worked, started = resident_bytes() or 0, time.process_time(), time.perf_counter()
    _convert(folder, out)
    return {
        **_figures(before, worked, started),
        "final": sum(path.stat().st_size for path in Path(out).glob("*.safetensors")),
    }


def _convert(folder: str, out: str) -> None:
    model = _model(folder)
    dormant.quantize(model, "nf4")
    dormant.load(model, folder, missing="error", materialize=False)
    dormant.save(model, out, progress=False)


def in_memory(folder: str, small: str, names: list[str]) -> dict[str, Any]:
    """Quantizes a checkpoint in memory; the figures, and digests of these packed tensors."""
    _load(small, "nf4")
    before, worked, started = resident_bytes() or 0, time.process_time(), time.perf_counter()
    model = _load(folder, "nf4")
    figures = _figures(before, worked, started)
    state = model.state_dict()
    return {
        **figures,
        "final": sum(tensor.nbytes for tensor in state.values()),
        "elements": _elements(folder),
        "digests": {name: bits(state[name]) for name in names},
    }


def to_files(folder: str, small: str, out: str) -> dict[str, Any]:
    """Writes a checkpoint as bfloat16; the figures, and digests of some tensors."""
    for source, target in ((small, f"{out}-small"), (folder, out)):
        before, worked, started = resident_bytes() or 0, time.process_time(), time.perf_counter()
        model = _model(source)
        dormant.load(model, _path(source), missing="error", materialize=False)
        dormant.save(model, target, progress=False)
    return {
        **_figures(before, worked, started),
        "final": sum(path.stat().st_size for path in Path(out).glob("*.safetensors")),
        "elements": _elements(folder),
    }


def by_transformers(folder: str, small: str, scheme: str | None) -> dict[str, Any]:
    """The same by `from_pretrained(gguf_file=...)`, then bitsandbytes layer by layer."""
    for source in (small, folder):
        before, worked, started = resident_bytes() or 0, time.process_time(), time.perf_counter()
        model = _transformers(source)
        if scheme is not None:
            _pack(model)
    state = model.state_dict()
    return {
        **_figures(before, worked, started),
        "final": sum(tensor.nbytes for tensor in state.values()),
        "elements": _elements(folder),
        "digests": {name: bits(tensor) for name, tensor in state.items()},
    }


def describe(folder: str, scheme: str | None) -> dict[str, str]:
    """Digests of everything that Dormant makes of a checkpoint."""
    model = _load(folder, scheme)
    return {name: bits(tensor) for name, tensor in model.state_dict().items()}


def packed_by_libraries(folder: str, names: list[str]) -> dict[str, str]:
    """Digests of these weights as the libraries decode and pack them.

    A stack of experts that are saved apart is put together as transformers does.
    """
    from bitsandbytes.functional import quantize_4bit

    raw = dormant.open_checkpoint(folder, decode=False)
    found = {}
    for name in names:
        packed, _ = quantize_4bit(
            _plain(raw, name), blocksize=64, quant_type="nf4", compress_statistics=True
        )
        found[name] = bits(packed)
    return found


def _plain(raw: dormant.Checkpoint, name: str) -> torch.Tensor:
    if f"{name}_blocks" in raw:
        layer = {f"weight_{key}": _real(raw[f"{name}_{key}"]) for key in ("blocks", "scales")}
        return mxfp4.reference(layer)
    if f"{name}_scale_inv" in raw:
        layer = {
            "weight": _real(raw[name]),
            "weight_scale_inv": _real(raw[f"{name}_scale_inv"]),
        }
        return fp8_blocks.reference(layer)
    if name in raw:
        return _real(raw[name])
    module, _, stack = name.rpartition(".")
    parts = ("gate_proj", "up_proj") if stack == "gate_up_proj" else ("down_proj",)
    count = 0
    experts = []
    while f"{module}.{count}.{parts[0]}.weight" in raw:
        rows = [_plain(raw, f"{module}.{count}.{part}.weight") for part in parts]
        experts.append(torch.cat(rows))
        count += 1
    return torch.stack(experts)


def packed_in_files(folder: str, names: list[str]) -> dict[str, str]:
    """Digests of packed weights in the files of a quantized model."""
    checkpoint = dormant.open_checkpoint(folder, decode=False)
    return {name: bits(_real(checkpoint[name])) for name in names}


def _real(tensor: torch.Tensor) -> torch.Tensor:
    dormant.materialize(tensor, progress=False)
    return tensor


def _load(folder: str, scheme: str | None) -> Any:
    model = _model(folder)
    if scheme is not None:
        dormant.quantize(model, scheme)
    dormant.load(model, _path(folder), missing="error", progress=False)
    return model


def _model(folder: str) -> Any:
    from transformers import AutoConfig

    path = _path(folder)
    if path.is_file():
        return lazy(AutoConfig.from_pretrained(folder, gguf_file=path.name))
    return lazy(AutoConfig.from_pretrained(folder))


def _path(folder: str) -> Path:
    path = Path(folder, "model.gguf")
    return path if path.exists() else Path(folder)


def _elements(folder: str) -> int:
    return sum(parameter.numel() for parameter in _model(folder).parameters())


def _transformers(folder: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, gguf_file="model.gguf", dtype=torch.bfloat16
    )


def _pack(model: Any) -> None:
    """What transformers' quantizer for bitsandbytes makes of linear layers, one after another."""
    from bitsandbytes.nn import Linear4bit

    for name, layer in list(model.named_modules()):
        if type(layer) is not torch.nn.Linear or name == "lm_head":
            continue
        packed = Linear4bit(
            layer.in_features, layer.out_features, bias=False, quant_type="nf4", device="meta"
        )
        packed.weight = type(packed.weight)(
            layer.weight.data, requires_grad=False, quant_type="nf4", module=packed
        ).to("cpu")
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, packed)


def _figures(before: int, worked: float, started: float) -> dict[str, Any]:
    return {
        "seconds": time.perf_counter() - started,
        "processor": time.process_time() - worked,
        "before": before,
        "highest": highest_resident_bytes(),
        "threads": torch.get_num_threads(),
    }
