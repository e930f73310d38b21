"""Quantizes encoded checkpoints of large models, which exist in no other precision meanwhile."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.child import Unavailable
from benchmarks.fingerprint import differences
from benchmarks.options import Options
from benchmarks.outcome import Outcome, Sheet
from benchmarks.quantize_encoded import checkpoints
from benchmarks.sample import median
from dormant.text.table import format_bytes

NAME = "quantize_encoded"
TITLE = "fp8, mxfp4 and GGUF checkpoints of large models to nf4"
_CHILDREN = "benchmarks.quantize_encoded.children"
_SCRATCH = Path(__file__).parents[1] / "out"
_GIB = 1 << 30
_LIMIT = 2 * _GIB
_SPARE_DISK = 10 * _GIB
_DEEPSEEK_LAYER = 17.3 * _GIB  # of 256 experts, in fp8 and in nf4
_DEEPSEEK_PARAMETERS = 671e9
_TIMEOUT = 3600  # seconds
_COMPARED_LAYERS = 2  # of the Llama that transformers reads, too
_COLUMNS = ("", "parameters", "files", "s", "cpu s", "ns/parameter", "GB/s read", "peak", "result")


def run(options: Options) -> Outcome:
    outcome = Outcome(NAME)
    _SCRATCH.mkdir(parents=True, exist_ok=True)
    for part in (_fp8, _mxfp4, _gguf):
        with tempfile.TemporaryDirectory(prefix="encoded-", dir=_SCRATCH) as scratch:
            part(outcome, Path(scratch), options)
    return outcome


def _fp8(outcome: Outcome, scratch: Path, options: Options) -> None:
    sizes, layers = checkpoints.TINY_DEEPSEEK, 3
    if not options.quick:
        free = shutil.disk_usage(_SCRATCH).free - _SPARE_DISK
        layers = 1 + max(1, min(4, int(free / _DEEPSEEK_LAYER)))
        sizes = {**checkpoints.DEEPSEEK, "num_hidden_layers": layers}
    tiny, whole = str(scratch / "tiny"), str(scratch / "whole")
    _written("deepseek", tiny, checkpoints.TINY_DEEPSEEK, options)
    nbytes = _written("deepseek", whole, sizes, options)
    _same_files(outcome, tiny, str(scratch / "packed"), ["mlp.experts.gate_up_proj"], options)
    samples = []
    for number in range(options.repeat):
        out = str(scratch / f"out{number}")
        samples.append(
            options.call(
                f"{_CHILDREN}:fp8_to_files",
                timeout=_TIMEOUT,
                folder=whole,
                small=tiny,
                out=out,
                limit=_LIMIT,
            )
        )
        if number == 0:
            _compare_files(outcome, whole, out, ["self_attn.o_proj.weight"], options)
        shutil.rmtree(out)
    elements = nbytes  # but for scales and norms, one byte each
    sheet = Sheet(f"DeepSeek-V3 in fp8 to files of nf4 under {format_bytes(_LIMIT)}", _COLUMNS)
    sheet.rows.append(_row(f"{layers} of 61 layers", elements, nbytes, samples))
    seconds = median(samples, "seconds")
    sheet.notes.append(
        "random bytes; limit: RLIMIT_DATA, which counts all private writable memory of the "
        "process, libraries included; extrapolated to 671 B parameters, by size: "
        f"{seconds * _DEEPSEEK_PARAMETERS / elements / 60:.0f} minutes"
    )
    outcome.sheets.append(sheet)
    outcome.measurements.append({"model": "DeepSeek-V3", "layers": layers, "samples": samples})


def _same_files(
    outcome: Outcome, folder: str, out: str, names: list[str], options: Options
) -> None:
    options.call(f"{_CHILDREN}:fp8_to_files", folder=folder, small=folder, out=out, limit=_LIMIT)
    _compare_files(outcome, folder, out, names, options)


def _compare_files(
    outcome: Outcome, folder: str, out: str, names: list[str], options: Options
) -> None:
    """The packed weights of these names in layer 1, beside what the libraries make of them."""
    full = [f"model.layers.1.{name}" for name in names]
    expected = options.call(f"{_CHILDREN}:packed_by_libraries", folder=folder, names=full)
    got = options.call(f"{_CHILDREN}:packed_in_files", folder=out, names=full)
    outcome.check(f"fp8, {', '.join(full)}", differences(expected, got))


def _mxfp4(outcome: Outcome, scratch: Path, options: Options) -> None:
    tiny, whole = str(scratch / "tiny"), str(scratch / "whole")
    _written("gpt_oss", tiny, checkpoints.TINY_GPT_OSS, options)
    sizes = checkpoints.TINY_GPT_OSS if options.quick else checkpoints.GPT_OSS
    nbytes = _written("gpt_oss", whole, sizes, options)
    samples = []
    for folder, names in (
        (tiny, ["model.layers.1.mlp.experts.gate_up_proj", "model.layers.1.mlp.experts.down_proj"]),
        *[(whole, ["model.layers.1.self_attn.q_proj.weight"])] * options.repeat,
    ):
        figures = options.call(
            f"{_CHILDREN}:in_memory", timeout=_TIMEOUT, folder=folder, small=tiny, names=names
        )
        if folder == tiny or not samples:
            expected = options.call(f"{_CHILDREN}:packed_by_libraries", folder=folder, names=names)
            outcome.check(f"mxfp4, {names}", differences(expected, figures["digests"]))
        if folder == whole:
            samples.append(figures)
    sheet = Sheet("gpt-oss-20b in mxfp4 to nf4 in memory", _COLUMNS)
    sheet.rows.append(_row("all of it", samples[0]["elements"], nbytes, samples))
    outcome.sheets.append(sheet)
    outcome.measurements.append({"model": "gpt-oss-20b", "samples": samples})


def _gguf(outcome: Outcome, scratch: Path, options: Options) -> None:
    sizes = checkpoints.TINY_LLAMA if options.quick else checkpoints.LLAMA
    some = {**sizes, "block_count": _COMPARED_LAYERS}
    tiny, part, whole = (str(scratch / name) for name in ("tiny", "part", "whole"))
    sheet = Sheet("Llama of 8B in Q4_K_M, from one GGUF file", _COLUMNS)
    try:
        _written("llama", tiny, checkpoints.TINY_LLAMA, options)
    except Unavailable as reason:
        sheet.notes.append(f"not available: {reason}")
        outcome.sheets.append(sheet)
        return
    few = _written("llama", part, some, options)
    nbytes = _written("llama", whole, sizes, options)
    for scheme in (None, "nf4"):
        expected = options.call(
            f"{_CHILDREN}:by_transformers", timeout=_TIMEOUT, folder=tiny, small=tiny, scheme=scheme
        )["digests"]
        got = options.call(f"{_CHILDREN}:describe", folder=tiny, scheme=scheme)
        outcome.check(f"GGUF, all {len(expected)} tensors, {scheme}", differences(expected, got))

    def measure(what: str, nbytes: int, function: str, count: int, **arguments: Any) -> None:
        samples = [
            options.call(f"{_CHILDREN}:{function}", timeout=_TIMEOUT, small=tiny, **arguments)
            for _ in range(count)
        ]
        sheet.rows.append(_row(what, samples[0]["elements"], nbytes, samples))
        for sample in samples:
            sample.pop("digests", None)
        outcome.measurements.append({"model": "Llama 8B", "what": what, "samples": samples})

    out = str(scratch / "out")
    for name, folder, size in (("", whole, nbytes), (f", {_COMPARED_LAYERS} layers", part, few)):
        repeat = options.repeat
        measure(f"dormant, bf16 files{name}", size, "to_files", repeat, folder=folder, out=out)
        measure(f"dormant, nf4{name}", size, "in_memory", repeat, folder=folder, names=[])
    for scheme in (None, "nf4"):
        what = f"transformers, {scheme or 'bf16'}, {_COMPARED_LAYERS} layers"
        measure(what, few, "by_transformers", 1, folder=part, scheme=scheme)
    sheet.notes.append(
        "transformers: from_pretrained(gguf_file=...), in memory, for nf4 then bitsandbytes layer "
        "by layer; once"
    )
    outcome.sheets.append(sheet)


def _written(function: str, folder: str, sizes: dict[str, Any], options: Options) -> int:
    written: Callable[..., int] = options.call
    return written(
        f"benchmarks.quantize_encoded.checkpoints:{function}",
        timeout=_TIMEOUT,
        folder=folder,
        sizes=sizes,
    )


def _row(what: str, elements: int, nbytes: int, samples: list[dict[str, Any]]) -> list[str]:
    seconds = median(samples, "seconds")
    return [
        what,
        f"{elements / 1e9:.1f} B",
        format_bytes(nbytes),
        f"{seconds:.1f}",
        f"{median(samples, 'processor'):.1f}",
        f"{seconds / elements * 1e9:.2f}",
        f"{nbytes / seconds / 1e9:.2f}",
        format_bytes(int(median(samples, "highest"))),
        format_bytes(int(median(samples, "final"))),
    ]
