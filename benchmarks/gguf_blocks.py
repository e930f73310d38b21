"""Nanoseconds per element of decoding tensors of GGUF files on one thread, beside gguf."""

from __future__ import annotations

import ctypes
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import dormant
from benchmarks.options import Options
from benchmarks.outcome import Outcome, Sheet, aim

NAME = "gguf_blocks"
TITLE = "tensors of a GGUF file in the page cache to float32, one thread"
_KINDS = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4",
)  # fmt: skip
_SIZES = (2048, 4096)  # rows and columns: 32 MiB of floats, more than caches hold
_QUICK = (16, 512)
_TIMES_LIBRARY = 0.1  # of the library's time, at most
_TIMES_WRITE = 2.0  # of the time in which the result is written to warm memory, at most


def run(options: Options) -> Outcome:
    outcome = Outcome(NAME)
    sheet = Sheet(
        "nanoseconds per element, median",
        ("type", "warm", "GB/s", "new", "gguf", "times faster", "write", "x write"),
    )
    library, write = 0.0, 0.0
    for kind in _KINDS:
        case = options.call(
            "benchmarks.gguf_blocks:measure",
            kind=kind,
            sizes=_QUICK if options.quick else _SIZES,
            repeat=1 if options.quick else 2 * options.repeat + 1,
        )
        outcome.check(kind, case["differing"])
        ours, new, theirs, memory = (
            statistics.median(case["samples"][way]) for way in ("warm", "new", "gguf", "write")
        )
        library, write = max(library, ours / theirs), max(write, ours / memory)
        sheet.rows.append(
            [
                kind,
                f"{ours:.3f}",
                f"{4 / ours:.1f}",
                f"{new:.2f}",
                f"{theirs:.2f}",
                f"{theirs / ours:.0f}",
                f"{memory:.3f}",
                f"{ours / memory:.1f}",
            ]
        )
        outcome.measurements.append({"type": kind, **case})
    if not options.quick:
        sheet.notes.append(aim("share of the library's time", library, _TIMES_LIBRARY, ""))
        sheet.notes.append(aim("times writing", write, _TIMES_WRITE, "x"))
    sheet.notes.append(
        "warm: load into a parameter that has memory; new: materialize, whose memory the system "
        "hands out page by page; gguf: quants.dequantize of a mapped tensor; write: memset of "
        "memory that has been written to"
    )
    outcome.sheets.append(sheet)
    return outcome


# ---- in the child processes


def measure(kind: str, sizes: list[int], repeat: int) -> dict[str, Any]:
    """Whether the outputs differ in a bit, then samples of each way in ns per element, in turns."""
    try:
        import gguf
        import numpy
    except ImportError as missing:
        raise NotImplementedError(f"{missing.name} is not installed") from missing
    torch.set_num_threads(1)
    number = gguf.GGMLQuantizationType[kind]
    elements, size = gguf.GGML_QUANT_SIZES[number]
    rows, columns = sizes
    shape = (rows, columns // elements * size)
    blocks = numpy.random.default_rng(1).integers(0, 64, shape, dtype=numpy.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.gguf")
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tensor("weight", blocks, raw_dtype=number)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        checkpoint = dormant.open_checkpoint(path)
        stored = gguf.GGUFReader(path).tensors[0].data

        def decoded() -> torch.Tensor:
            tensor: torch.Tensor = checkpoint["weight"]
            dormant.materialize(tensor, progress=False)
            return tensor

        module = torch.nn.Module()
        module.weight = torch.nn.Parameter(torch.ones(rows, columns), requires_grad=False)
        dormant.load(module, checkpoint, progress=False)
        expected = torch.from_numpy(gguf.quants.dequantize(stored, number))
        found = decoded()
        differing = [
            way
            for way, tensor in (("new", found), ("warm", module.weight.data))
            if not torch.equal(tensor.view(torch.int32), expected.view(torch.int32))
        ]
        ways: dict[str, Callable[[], object]] = {
            "warm": lambda: dormant.load(module, checkpoint, progress=False),
            "new": decoded,
            "gguf": lambda: gguf.quants.dequantize(stored, number),
            "write": lambda: ctypes.memset(found.data_ptr(), 1, found.numel() * 4),
        }
        samples: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(1 + repeat):
            for way, action in ways.items():
                started = time.process_time()
                action()
                samples[way].append((time.process_time() - started) / found.numel() * 1e9)
    return {
        "differing": differing,
        "samples": {way: values[1:] for way, values in samples.items()},  # the first warms up
    }
