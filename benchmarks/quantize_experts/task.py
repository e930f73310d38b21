"""Packs the experts of checkpoints, has them compute, and packs more than memory would hold."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.contestants import Contestant, find
from benchmarks.fingerprint import differences
from benchmarks.options import Options
from benchmarks.outcome import Outcome, Sheet, aim
from benchmarks.sample import median, peak_over_final
from dormant.reporting.memory import available_bytes
from dormant.text.table import format_bytes

NAME = "quantize_experts"
TITLE = "mixtures of experts to nf4, and the forward of what was packed"
_THEIRS = "transformers, then replace_parameter_4bit"
_CHILDREN = "benchmarks.quantize_experts.children"
_SCRATCH = Path(__file__).parents[1] / "out"
_GIB = 1 << 30
_TIMEOUT = 3600  # seconds
_NEW_TOKENS = 16
_PEAK = 64  # MiB over the final tensors


def run(options: Options) -> Outcome:
    outcome = Outcome(NAME)
    everyone = find("benchmarks.quantize_experts")
    tiny = ("Mixtral, tiny", "Qwen3-MoE, tiny")
    forwards = tiny if options.quick else ("Mixtral, 4 layers", "Qwen3-MoE, 3 layers")
    loaded = tiny[0] if options.quick else "Mixtral, 1B"
    _SCRATCH.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="experts-", dir=_SCRATCH) as scratch:
        nbytes = {
            shape: options.call(
                "benchmarks.quantize_experts.shapes:write",
                folder=str(Path(scratch, shape)),
                shape=shape,
            )
            for shape in {*tiny, *forwards, loaded}
        }
        for shape in dict.fromkeys((*forwards, loaded)):
            _compare(outcome, everyone, scratch, shape, options)
        outcome.sheets.append(_load(outcome, everyone, scratch, loaded, nbytes[loaded], options))
        outcome.sheets.append(_generate(outcome, everyone, scratch, forwards, options))
    if options.large:
        outcome.sheets.append(_large(outcome, options))
    return outcome


def _compare(
    outcome: Outcome, everyone: list[Contestant], scratch: str, shape: str, options: Options
) -> None:
    digests = {
        contestant.name: options.call(
            f"{_CHILDREN}:describe",
            module=contestant.module,
            folder=str(Path(scratch, shape)),
            shape=shape,
        )
        for contestant in everyone
    }
    expected = digests.pop(_THEIRS)
    for name, got in digests.items():
        what = f"{name}, {shape}: {len(expected)} tensors and logits"
        outcome.check(what, differences(expected, got))


def _load(
    outcome: Outcome,
    everyone: list[Contestant],
    scratch: str,
    shape: str,
    nbytes: int,
    options: Options,
) -> Sheet:
    measured: dict[str, list[dict[str, Any]]] = {}
    for _ in range(options.repeat):
        for contestant in everyone:
            figures = options.call(
                f"{_CHILDREN}:load",
                module=contestant.module,
                folder=str(Path(scratch, shape)),
                small=str(Path(scratch, "Mixtral, tiny")),
                shape=shape,
                small_shape="Mixtral, tiny",
            )
            measured.setdefault(contestant.name, []).append(figures)
    sheet = Sheet(
        f"{shape}, a tensor for each expert in the files, to nf4 with double quantization",
        ("", "s", "cpu s", "speed-up", "speed-up, cpu", "peak - final", "peak"),
    )
    theirs = measured[_THEIRS]
    for name, samples in measured.items():
        sheet.rows.append(
            [
                name,
                f"{median(samples, 'seconds'):.2f}",
                f"{median(samples, 'processor'):.2f}",
                *(
                    f"{median(theirs, clock) / median(samples, clock):.1f}"
                    for clock in ("seconds", "processor")
                ),
                f"{peak_over_final(samples):+.0f} MiB",
                format_bytes(int(median(samples, "peak"))),
            ]
        )
        outcome.measurements.append({"contestant": name, "load": shape, "samples": samples})
    final = int(median(measured["dormant"], "final"))
    sheet.notes.append(
        f"median of {options.repeat} fresh processes, {theirs[0]['threads']} threads, warm cache; "
        f"{format_bytes(nbytes)} of files, {format_bytes(final)} of tensors; peak: highest "
        "resident memory above that before"
    )
    over = peak_over_final(measured["dormant"])
    sheet.notes.append(aim("dormant: peak over the final tensors", over, _PEAK, "MiB"))
    return sheet


def _generate(
    outcome: Outcome,
    everyone: list[Contestant],
    scratch: str,
    shapes: tuple[str, ...],
    options: Options,
) -> Sheet:
    sheet = Sheet(
        "forward of the packed model, bfloat16",
        ("", "prompt, tokens/cpu s", "new tokens/s", "cpu s/token", "speed-up"),
    )
    for shape in shapes:
        measured: dict[str, list[dict[str, Any]]] = {}
        for _ in range(options.repeat):
            for contestant in everyone:
                figures = options.call(
                    f"{_CHILDREN}:generate",
                    module=contestant.module,
                    folder=str(Path(scratch, shape)),
                    shape=shape,
                    count=_NEW_TOKENS,
                )
                measured.setdefault(contestant.name, []).append(figures)
        theirs = measured[_THEIRS]
        chosen = {f"{sample['chosen']}" for samples in measured.values() for sample in samples}
        outcome.check(f"{shape}: tokens generated", [] if len(chosen) == 1 else sorted(chosen))
        for name, samples in measured.items():
            speed_up = median(theirs, "processor") / median(samples, "processor")
            sheet.rows.append(
                [
                    f"{shape}: {name}",
                    f"{median(samples, 'prompt'):.1f}",
                    f"{median(samples, 'tokens'):.2f}",
                    f"{median(samples, 'processor'):.3f}",
                    f"{speed_up:.1f}",
                ]
            )
            found = {"contestant": name, "forward": shape, "samples": samples}
            outcome.measurements.append(found)
    sheet.notes.append(
        f"median of {options.repeat} fresh processes, one thread; a prompt of 16 tokens (median "
        f"of five), then {_NEW_TOKENS} one by one; speed-up of these, in processor time"
    )
    return sheet


def _large(outcome: Outcome, options: Options) -> Sheet:
    """As many layers as memory has room for."""
    shape, whole = "Qwen3-30B-A3B", 48
    layers = next(n for n in (whole, 24, 12, 6) if n == 6 or _limit(n) < (available_bytes() or 0))
    limit = _limit(layers)
    expected = options.call(f"{_CHILDREN}:by_bitsandbytes", shape=shape, layers=layers)
    figures = options.call(
        f"{_CHILDREN}:materialize", timeout=_TIMEOUT, shape=shape, layers=layers, limit=limit
    )
    over = figures["highest"] - figures["before"] - figures["final"]
    what = f"{shape}, experts of layer {layers - 1}: {len(expected)} tensors"
    outcome.check(what, differences(expected, figures.pop("digests")))
    outcome.measurements.append({"large": shape, "layers": layers, **figures})
    sheet = Sheet(
        "from recipes, bfloat16 to nf4 with double quantization",
        ("", "in bfloat16", "quantized", "limit", "s", "cpu s", "peak", "result", "peak - result"),
        [
            [
                f"{shape}, {layers} of {whole} layers",
                format_bytes(figures["nbytes"]),
                f"{figures['share']:.1%}",
                format_bytes(limit),
                f"{figures['seconds']:.1f}",
                f"{figures['processor']:.1f}",
                format_bytes(figures["highest"]),
                format_bytes(figures["final"]),
                f"{over / (1 << 20):.0f} MiB",
            ]
        ],
    )
    sheet.notes.append(
        "one fresh process; limit: RLIMIT_DATA, which counts all private writable memory; peak: "
        "highest resident memory, libraries included"
    )
    return sheet


def _limit(layers: int) -> int:
    """19 GiB for the whole model; for less the same for embeddings and libraries."""
    return int((2.8 + 16.2 * layers / 48) * _GIB)
