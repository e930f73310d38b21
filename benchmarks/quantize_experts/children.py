"""Code that runs in separate processes."""

from __future__ import annotations

import importlib
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import dormant
from benchmarks.fingerprint import bits
from benchmarks.load import page_cache
from benchmarks.quantize_experts.shapes import lazy
from benchmarks.quantize_large.memory_limit import limit_memory
from benchmarks.sample import sample
from dormant.reporting.memory import highest_resident_bytes, resident_bytes

_PROMPT = 16  # tokens
_PROMPTS = 5  # times, after one that is not measured


def describe(module: str, folder: str, shape: str) -> dict[str, str]:
    """Geometry and digest of everything in the state dict, and of logits."""
    model = importlib.import_module(module).build(folder, shape)
    state = model.state_dict()  # before a forward, which reorders layers of bitsandbytes
    described = {name: f"{tuple(t.shape)} {t.dtype} {bits(t)}" for name, t in state.items()}
    for count in (1, _PROMPT):
        with torch.no_grad():
            described[f"logits of {count}"] = bits(model(_tokens(count)).logits)
    return described


def load(module: str, folder: str, small: str, shape: str, small_shape: str) -> dict[str, Any]:
    """One sample of loading, after a small one: imports are not what is compared."""
    build = importlib.import_module(module).build
    build(small, small_shape)
    page_cache.fill(sorted(Path(folder).glob("*.safetensors")))
    results: list[Any] = []
    figures = sample(lambda: results.append(build(folder, shape)))
    final = sum(tensor.nbytes for tensor in results[0].state_dict().values())
    return {**figures, "final": final, "threads": torch.get_num_threads()}


def generate(module: str, folder: str, shape: str, count: int) -> dict[str, Any]:
    """Tokens per second: of a prompt in processor time, of those after it by the clock.

    On one thread: a busy machine has several wait for each other at every small operator.
    """
    torch.set_num_threads(1)
    model = importlib.import_module(module).build(folder, shape)
    tokens = _tokens(_PROMPT)
    with torch.no_grad():
        output = model(tokens, use_cache=True)
        prompts = []
        for _ in range(_PROMPTS):
            worked = time.process_time()
            output = model(tokens, use_cache=True)
            prompts.append(time.process_time() - worked)
        cache, chosen = output.past_key_values, []
        started, worked = time.perf_counter(), time.process_time()
        for _ in range(count):
            token = output.logits[:, -1:].argmax(-1)
            chosen.append(int(token))
            output = model(token, past_key_values=cache, use_cache=True)
        seconds, processor = time.perf_counter() - started, time.process_time() - worked
    return {
        "prompt": _PROMPT / statistics.median(prompts),
        "tokens": count / seconds,
        "processor": processor / count,
        "chosen": chosen,
    }


def materialize(shape: str, layers: int, limit: int) -> dict[str, Any]:
    """Quantizes a model in memory, from its initialization, under a limit."""
    limit_memory(limit)
    warm = lazy("Qwen3-MoE, tiny")
    dormant.quantize(warm, "nf4")
    dormant.materialize(warm, progress=False)
    before, worked, started = resident_bytes() or 0, time.process_time(), time.perf_counter()
    model = lazy(shape, layers)
    report = dormant.quantize(model, "nf4")
    built = time.perf_counter()
    dormant.materialize(model, progress=False)
    seconds, processor = time.perf_counter() - started, time.process_time() - worked
    return {
        "build": built - started,
        "seconds": seconds,
        "processor": processor,
        "before": before,
        "highest": highest_resident_bytes(),
        "final": sum(tensor.nbytes for tensor in model.state_dict().values()),
        "share": report.share,
        "nbytes": report.parameter_nbytes,
        "digests": _of_last(model, layers),
    }


def by_bitsandbytes(shape: str, layers: int) -> dict[str, str]:
    """Digests of what bitsandbytes makes of the experts of the last layer, materialized alone."""
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    model = lazy(shape, layers)
    experts = model.model.layers[layers - 1].mlp.experts
    for name in ("gate_up_proj", "down_proj"):
        dormant.materialize(experts.get_parameter(name), progress=False)
        replace_parameter_4bit(experts, name, compress_statistics=True)
    return _of_last(model, layers)


def _of_last(model: Any, layers: int) -> dict[str, str]:
    state = model.model.layers[layers - 1].mlp.experts.state_dict()
    return {name: f"{tuple(t.shape)} {t.dtype} {bits(t)}" for name, t in state.items()}


def _tokens(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (1, count), generator=torch.Generator().manual_seed(1))
