"""Decodes a layer of each encoding, in processes of their own, beside the library concerned."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import dormant
from benchmarks.child import Unavailable
from benchmarks.contestants import Contestant, find
from benchmarks.options import Options
from benchmarks.outcome import Outcome, Sheet, aim
from dormant import _C

NAME = "decode"
TITLE = "encoded weights as plain ones, beside the libraries that wrote them"
_SIZES = (3584, 4096)  # rows and columns: 28 MiB of 2-byte elements, more than caches hold
_QUICK = (128, 256)
_COMPARED = (256, 1024)
_TIMES_LIBRARY = 0.1  # of the library's time, at most
_TIMES_WRITE = 2.0  # of the time in which the result is written, at most


def run(options: Options) -> Outcome:
    outcome = Outcome(NAME)
    sizes = _QUICK if options.quick else _SIZES
    everyone = find("benchmarks.decode")
    for threads in [1] if options.quick else sorted({1, min(2, os.cpu_count() or 1)}):
        outcome.sheets.append(_measure(outcome, everyone, sizes, threads, options))
    return outcome


def _measure(
    outcome: Outcome,
    everyone: list[Contestant],
    sizes: tuple[int, int],
    threads: int,
    options: Options,
) -> Sheet:
    sheet = Sheet(
        f"a weight of {sizes[0]} x {sizes[1]}, {threads} thread(s)",
        (
            "encoding",
            "ns",
            "GB/s",
            "library",
            "ns",
            "times",
            "write",
            "x write",
            "memcpy",
            "file",
        ),
    )
    slowest_library, slowest_write = 0.0, 0.0
    for contestant in everyone:
        try:
            case = options.call(
                "benchmarks.decode.task:measure",
                module=contestant.module,
                sizes=sizes,
                threads=threads,
                repeat=1 if options.quick else 2 * options.repeat + 1,
            )
        except Unavailable as reason:
            sheet.notes.append(f"{contestant.name}: not available: {reason}")
            continue
        outcome.check(f"{contestant.name}, {threads} thread(s)", case["differing"])
        figures = {way: statistics.median(samples) for way, samples in case["samples"].items()}
        ours, library, write = (figures[way] for way in ("decode", "library", "write"))
        slowest_library = max(slowest_library, ours / library)
        slowest_write = max(slowest_write, ours / write)
        sheet.rows.append(
            [
                contestant.name,
                f"{ours:.3f}",
                f"{case['itemsize'] / ours:.2f}",
                case["library"],
                f"{library:.2f}",
                f"{library / ours:.0f}",
                f"{write:.3f}",
                f"{ours / write:.1f}",
                f"{figures['memcpy']:.3f}",
                f"{figures['file']:.2f}",
            ]
        )
        outcome.measurements.append({"encoding": contestant.name, "threads": threads, **case})
    if not options.quick and threads == 1:
        sheet.notes.append(aim("share of the library's time", slowest_library, _TIMES_LIBRARY, ""))
        sheet.notes.append(aim("times writing", slowest_write, _TIMES_WRITE, "x"))
    sheet.notes.append(
        "medians, ns per element; of processor time with one thread, by the clock with two; from "
        "tensors in memory, in the order of their bytes, into memory that has been written to; "
        "GB/s of the result; write and memcpy: of the result's bytes; file: open_checkpoint and "
        "materialize, a file in the page cache, the weight transposed where the format has it so"
    )
    return sheet


# ---- in the child processes


def _decoder(contestant: Any, layer: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], Any]:
    raw = {f"a.{name}": tensor for name, tensor in layer.items()}
    encoded, _, _ = _C.find_encoded(
        [(name, tensor.dtype, list(tensor.shape), "") for name, tensor in raw.items()],
        config=json.dumps({"quantization_config": contestant.CONFIG}).encode(),
        config_path="config.json",
        quantization_files=[],
        dtype=None,
        where="benchmark",
        read=lambda name: bytes(raw[name].view(-1).view(torch.uint8).tolist()),
    )
    ((_, names, decoder, _, _, transposed),) = encoded
    return [raw[name] for name in names], (decoder, transposed)


def _write_checkpoint(contestant: Any, layer: dict[str, torch.Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({f"a.{name}": tensor for name, tensor in layer.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": contestant.CONFIG}))


def _from_file(folder: Path) -> torch.Tensor:
    tensor: torch.Tensor = dormant.open_checkpoint(folder)["a.weight"]
    dormant.materialize(tensor, progress=False)
    return tensor


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int16 if tensor.itemsize == 2 else torch.int32)


def _differing(contestant: Any, sizes: tuple[int, int]) -> list[str]:
    """Which ways give other bits than the library."""
    layer = contestant.tensors(*sizes)
    expected = contestant.reference(layer)
    parts, (decoder, transposed) = _decoder(contestant, layer)
    decoded = _C.decode(parts, decoder)
    ways = {"decode": decoded.transpose(-2, -1) if transposed else decoded}
    with tempfile.TemporaryDirectory() as folder:
        _write_checkpoint(contestant, layer, Path(folder))
        ways["file"] = _from_file(Path(folder))
    return [
        name
        for name, weight in ways.items()
        if weight.dtype is not expected.dtype or not torch.equal(_bits(weight), _bits(expected))
    ]


def _keep_freed_memory() -> None:
    """Has malloc reuse what was freed: results then are memory that has been written to.

    Else it depends on what came before whether a result is new memory, which takes as long to get
    as a decoder works. (mallopt of glibc: M_MMAP_MAX and M_TRIM_THRESHOLD.)
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)
        mallopt(-1, 2**31 - 1)


def measure(module: str, sizes: list[int], threads: int, repeat: int) -> dict[str, Any]:
    """What differs from the library, then samples of each way in ns per element, in turns."""
    _keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    contestant = importlib.import_module(module)
    differing = _differing(contestant, _COMPARED)
    rows, columns = sizes
    layer = contestant.tensors(rows, columns)
    parts, (decoder, _) = _decoder(contestant, layer)
    result = _C.decode(parts, decoder)
    target, nbytes = torch.zeros_like(result), result.numel() * result.itemsize
    with tempfile.TemporaryDirectory() as folder:
        _write_checkpoint(contestant, layer, Path(folder))
        ways: dict[str, Callable[[], object]] = {
            "decode": lambda: _C.decode(parts, decoder),
            "library": lambda: contestant.reference(layer),
            "write": lambda: ctypes.memset(target.data_ptr(), 1, nbytes),
            "memcpy": lambda: target.copy_(result),
            "file": lambda: _from_file(Path(folder)),
        }
        samples: dict[str, list[float]] = {way: [] for way in ways}
        # One thread's processor time, which others on the machine change less.
        clock = time.process_time if threads == 1 else time.perf_counter
        for _ in range(1 + repeat):
            for way, action in ways.items():
                started = clock()
                action()
                samples[way].append((clock() - started) / result.numel() * 1e9)
    return {
        "differing": differing,
        "library": contestant.LIBRARY,
        "itemsize": result.itemsize,
        "samples": {way: values[1:] for way, values in samples.items()},  # the first warms up
    }
