"""Nanoseconds per element of quantizing a tensor on one thread, beside bitsandbytes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.options import Options
from benchmarks.outcome import Outcome, Sheet, aim
from dormant import _C

NAME = "quantize_kernels"
TITLE = "quantizing a tensor that exists, one thread"
_SCHEMES = ("nf4", "nf4 nested", "fp4", "int8")
_DTYPES = ("float32", "bfloat16", "float16")
_COLUMNS = 1024
_SIZES = {
    "memory": 1 << 24,
    "cache": 1 << 16,
}  # elements; the former exceeds the second-level cache
_LIMIT = 1.0  # ns per element from memory

Quantize = Callable[[torch.Tensor], list[torch.Tensor]]


def run(options: Options) -> Outcome:
    outcome = Outcome(NAME)
    sizes = {"cache": 1 << 16} if options.quick else _SIZES
    sheet = Sheet(
        "nanoseconds of processor time per element, median",
        ("scheme", "from", "elements in", "dormant", "bitsandbytes", "times faster", "memcpy"),
    )
    slowest = 0.0
    for scheme in _SCHEMES:
        cases = options.call(
            "benchmarks.quantize_kernels:measure",
            scheme=scheme,
            sizes=sizes,
            repeat=1 if options.quick else 2 * options.repeat + 1,
        )
        for case in cases:
            outcome.check(f"{scheme} of {case['dtype']}", case["differing"])
            for place, samples in case["places"].items():
                ours, theirs, copy = (
                    statistics.median(samples[way]) for way in ("dormant", "bitsandbytes", "memcpy")
                )
                if place == "memory":
                    slowest = max(slowest, ours)
                figures = [f"{ours:.2f}", f"{theirs:.1f}", f"{theirs / ours:.0f}", f"{copy:.2f}"]
                sheet.rows.append([scheme, case["dtype"], place, *figures])
            outcome.measurements.append({"scheme": scheme, **case})
    if "memory" in sizes:
        sheet.notes.append(aim("slowest from memory", slowest, _LIMIT, "ns per element"))
    sheet.notes.append(
        "memory: 2^24 elements, cache: 2^16; outputs are new memory each time; memcpy copies the "
        "elements as they are into memory that has been written to; bitsandbytes: quantize_4bit "
        "with blocks of 64, Int8Params.to"
    )
    outcome.sheets.append(sheet)
    return outcome


# ---- in the child processes


def _contestants(scheme: str) -> dict[str, Quantize]:
    try:
        import bitsandbytes
        from bitsandbytes import functional
    except ImportError as missing:
        raise NotImplementedError("bitsandbytes is not installed") from missing
    if scheme == "int8":

        def rows_of_bitsandbytes(source: torch.Tensor) -> list[torch.Tensor]:
            weight = bitsandbytes.nn.Int8Params(source, requires_grad=False).to("cpu")
            return [weight.data, weight.SCB]

        rows = _C.Int8Rows()
        return {
            "dormant": lambda source: _C.quantize_now(source, rows, 1),
            "bitsandbytes": rows_of_bitsandbytes,
        }

    kind, *nested = scheme.split()

    def blocks_of_bitsandbytes(source: torch.Tensor) -> list[torch.Tensor]:
        packed, state = functional.quantize_4bit(
            source, blocksize=64, quant_type=kind, compress_statistics=bool(nested)
        )
        extra = [state.state2.absmax, state.offset] if nested else []
        return [packed, state.absmax, *extra]

    blocks = _C.FourBit(
        kind,
        64,
        functional.get_4bit_type(kind, device="cpu"),
        functional.create_dynamic_map() if nested else None,
    )
    return {
        "dormant": lambda source: _C.quantize_now(source, blocks, 1),
        "bitsandbytes": blocks_of_bitsandbytes,
    }


def _source(dtype: str, elements: int) -> torch.Tensor:
    torch.manual_seed(1)
    weight = torch.empty(elements // _COLUMNS, _COLUMNS, dtype=getattr(torch, dtype))
    return weight.normal_(0, 0.02)


def measure(scheme: str, sizes: dict[str, int], repeat: int) -> list[dict[str, Any]]:
    """For each dtype, which outputs differ in a bit, then each contestant's samples in ns."""
    torch.set_num_threads(1)
    contestants = _contestants(scheme)
    return [
        {
            "dtype": dtype,
            "differing": _differing(contestants, _source(dtype, 1 << 20)),
            "places": {
                place: _samples(contestants, _source(dtype, elements), repeat)
                for place, elements in sizes.items()
            },
        }
        for dtype in _DTYPES
    ]


def _differing(contestants: dict[str, Quantize], source: torch.Tensor) -> list[str]:
    ours, theirs = (quantize(source.clone()) for quantize in contestants.values())
    if len(ours) != len(theirs):
        return ["number of outputs"]
    return [
        f"output {position}"
        for position, (a, b) in enumerate(zip(ours, theirs, strict=True))
        if a.dtype != b.dtype or not torch.equal(a, b)
    ]


def _samples(
    contestants: dict[str, Quantize], source: torch.Tensor, repeat: int
) -> dict[str, list[float]]:
    """Nanoseconds per element, taken in turns."""
    target = torch.zeros_like(source)
    ways: dict[str, Callable[[torch.Tensor], object]] = {**contestants, "memcpy": target.copy_}
    elements = source.numel()
    calls = max(1, (1 << 22) // elements)
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + repeat):
        for name, way in ways.items():
            started = time.process_time()
            for _ in range(calls):
                way(source)
            samples[name].append((time.process_time() - started) / (calls * elements) * 1e9)
    return {name: values[1:] for name, values in samples.items()}  # the first warms up
