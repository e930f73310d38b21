"""Loads checkpoints into Llamas, each contestant in separate processes."""

from __future__ import annotations

import importlib
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.child import Unavailable
from benchmarks.contestants import Contestant, find
from benchmarks.load import page_cache
from benchmarks.load.stored import FORMS, Stored, empty_model
from benchmarks.options import Options
from benchmarks.outcome import Outcome, Sheet, aim
from benchmarks.sample import median, peak_over_final, sample
from dormant.text.table import format_bytes

NAME = "load"
TITLE = "from checkpoint files in bfloat16 to a Llama with their values"
_PEAK = 64  # MiB over the final tensors
_SPEED_UP = 5  # over transformers, where the dtype changes
_OF_COPY = 0.7  # share of the parallel copy's speed, warm
_SCRATCH = Path(__file__).parents[1] / "out"  # on a disk, where /tmp may be in memory


@dataclass(frozen=True)
class Case:
    """A checkpoint, the dtype of the model, and whether the system has the files in memory."""

    size: str
    form: str
    dtype: str
    cache: str

    def __str__(self) -> str:
        return f"{self.size} from {self.form} to {self.dtype}, {self.cache} cache"


_DTYPES = ("bfloat16", "float32", "float16")
FULL = (
    *(Case("1.1B", "safetensors", dtype, "warm") for dtype in _DTYPES),
    *(Case("1.1B", form, "float32", "warm") for form in FORMS if form != "safetensors"),
    Case("1.1B", "safetensors", "float32", "cold"),
)
LARGE = (
    *(Case("1.1B", form, dtype, "warm") for form in FORMS for dtype in _DTYPES),
    *(Case("1.1B", "safetensors", dtype, "cold") for dtype in _DTYPES[:2]),
    *(Case("2.1B", "safetensors", dtype, "warm") for dtype in _DTYPES),
    *(Case("2.1B", form, "float32", "warm") for form in FORMS if form != "safetensors"),
)
QUICK = (
    *(Case("tiny", form, "float32", "warm") for form in FORMS),
    Case("tiny", "safetensors", "bfloat16", "cold"),
)


def run(options: Options) -> Outcome:
    outcome = Outcome(NAME)
    everyone = find("benchmarks.load")
    _SCRATCH.mkdir(parents=True, exist_ok=True)
    cases = QUICK if options.quick else LARGE if options.large else FULL
    with tempfile.TemporaryDirectory(prefix="load-", dir=_SCRATCH) as scratch:
        small = {form: _write(scratch, form, "tiny", options) for form in FORMS}
        for size, of_size in _grouped(cases, "size"):
            reference = small["safetensors"]
            if size != reference.size:
                reference = _write(scratch, "safetensors", size, options)
            for form, group in _grouped(of_size, "form"):
                stored = small[form] if size == "tiny" else reference
                if form != stored.form:
                    stored = _write(scratch, form, size, options)
                reasons = _compare(outcome, everyone, stored, reference, group, options)
                for case in group:
                    outcome.sheets.append(
                        _measure(outcome, everyone, reasons, case, stored, small[form], options)
                    )
                if stored not in (reference, small[form]):
                    shutil.rmtree(stored.folder)
            if reference.size != "tiny":
                shutil.rmtree(reference.folder)
    return outcome


def _grouped(cases: Sequence[Case], attribute: str) -> list[tuple[str, list[Case]]]:
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(getattr(case, attribute), []).append(case)
    return list(groups.items())


def _write(folder: str, form: str, size: str, options: Options) -> Stored:
    stored = Stored(str(Path(folder) / f"{size} {form}"), form, size)
    options.call("benchmarks.load.stored:write", **asdict(stored))
    return stored


def _compare(
    outcome: Outcome,
    everyone: list[Contestant],
    stored: Stored,
    reference: Stored,
    cases: list[Case],
    options: Options,
) -> dict[str, str]:
    """Compares everyone's tensors with the file's; returns why some do not apply."""
    reasons: dict[str, str] = {}
    dtypes = sorted({case.dtype for case in cases})
    for contestant in everyone:
        if contestant.exact is None:
            continue
        answers = options.call(
            "benchmarks.load.task:compare",
            module=contestant.module,
            stored=asdict(stored),
            reference=asdict(reference),
            dtypes=dtypes,
        )
        if "unavailable" in answers:
            reasons[contestant.name] = answers["unavailable"]
            continue
        for dtype, differing in answers.items():
            what = f"{contestant.name}, {stored.size} from {stored.form} to {dtype}"
            outcome.check(what, differing)
    return reasons


def _measure(
    outcome: Outcome,
    everyone: list[Contestant],
    reasons: dict[str, str],
    case: Case,
    stored: Stored,
    small: Stored,
    options: Options,
) -> Sheet:
    measured: dict[str, list[dict[str, Any]]] = {}
    for _ in range(options.repeat):  # in turns, so that a busy minute hits all of them
        for contestant in everyone:
            if contestant.name in reasons:
                continue
            try:
                figures = options.call(
                    "benchmarks.load.task:measure",
                    module=contestant.module,
                    stored=asdict(stored),
                    small=asdict(small),
                    dtype=case.dtype,
                    cold=case.cache == "cold",
                )
            except Unavailable as reason:  # those without values were not tried before
                reasons[contestant.name] = str(reason)
                continue
            measured.setdefault(contestant.name, []).append(figures)
    sheet = _sheet(case, stored.nbytes(), measured)
    sheet.notes += [f"{name}: not available: {reason}" for name, reason in reasons.items()]
    sheet.notes += _aims(case, measured)
    for contestant, samples in measured.items():
        outcome.measurements.append(
            {
                "contestant": contestant,
                **asdict(case),
                "nbytes": stored.nbytes(),
                "samples": samples,
            }
        )
    return sheet


def _sheet(case: Case, nbytes: int, measured: dict[str, list[dict[str, Any]]]) -> Sheet:
    columns = ("", "s", "cpu s", "GB/s", "x copy", "x copy, cpu", "peak - final")
    sheet = Sheet(str(case), (*columns, "minor faults", "major", "then touching it, s"))
    copy = _limit(measured)
    for name, samples in sorted(measured.items(), key=lambda item: median(item[1], "seconds")):
        seconds = median(samples, "seconds")
        limit = name.startswith("limit")
        sheet.rows.append(
            [
                name,
                f"{seconds:.3f}",
                f"{median(samples, 'processor'):.3f}",
                f"{nbytes / seconds / 1e9:.2f}",
                *(
                    f"{median(samples, clock) / copy[clock]:.2f}"
                    for clock in ("seconds", "processor")
                ),
                "-" if limit else f"{peak_over_final(samples):+.0f} MiB",
                f"{median(samples, 'minor_faults'):.0f}",
                f"{median(samples, 'major_faults'):.0f}",
                "-" if limit else f"{median(samples, 'touching'):.3f}",
            ]
        )
    cached = [s["cached"] for samples in measured.values() for s in samples]
    sheet.notes += [
        f"median of {len(cached) // len(measured)} fresh processes, {torch.get_num_threads()} "
        f"threads; {format_bytes(nbytes)} of files; GB/s of the files' bytes; x copy is the time "
        "beside the faster parallel copy, which reads the files and writes as much fresh memory as "
        "the tensors take",
        f"before each sample {min(cached):.1%} to {max(cached):.1%} of the files' pages were in "
        "memory"
        + ("; what a disk or host below remembers is not known" if case.cache == "cold" else ""),
        "peak - final: highest resident memory above that before, less the bytes of the tensors "
        "(negative where they stay in mapped files); then touching it: reading a byte of each page",
    ]
    return sheet


def _limit(measured: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """Seconds of the faster parallel copy, by clock."""
    copies = [samples for name, samples in measured.items() if name.startswith("limit: parallel c")]
    return {
        clock: min(median(samples, clock) for samples in copies)
        for clock in ("seconds", "processor")
    }


def _aims(case: Case, measured: dict[str, list[dict[str, Any]]]) -> list[str]:
    ours = measured["dormant"]
    notes = [aim("peak over the final tensors", peak_over_final(ours), _PEAK, "MiB")]
    theirs = measured.get("transformers from_pretrained")
    if case.dtype == "bfloat16" or case.cache == "cold":
        return notes
    copy = _limit(measured)
    for clock in ("seconds", "processor"):
        if theirs is not None:
            share = median(ours, clock) / median(theirs, clock)
            text = f"{_SPEED_UP} times transformers' speed: {clock}"
            notes.append(aim(text, share, 1 / _SPEED_UP, "x"))
        share = median(ours, clock) / copy[clock]
        text = f"{_OF_COPY:.0%} of the parallel copy's speed: {clock}"
        notes.append(aim(text, share, round(1 / _OF_COPY, 2), "x"))
    return notes


# ---- in the child processes


def compare(
    module: str, stored: dict[str, str], reference: dict[str, str], dtypes: list[str]
) -> dict[str, Any]:
    """For each dtype the tensors that differ from what safetensors and `to` give; or why none."""
    from safetensors import safe_open

    build = importlib.import_module(module).build
    answers: dict[str, Any] = {}
    buffers = dict(empty_model(stored["size"]).named_buffers())
    for name in dtypes:
        dtype = getattr(torch, name)
        try:
            model = build(Stored(**stored), dtype)
        except NotImplementedError as reason:
            return {"unavailable": str(reason)}
        got = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        differing = {*got}
        for path in Stored(**reference).files():
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118
                    if _same(got.get(key), file.get_tensor(key).to(dtype)):
                        differing.discard(key)
                    else:
                        differing.add(key)
        differing -= {key for key, buffer in buffers.items() if _same(got.get(key), buffer)}
        answers[name] = sorted(differing)
        del model, got
    return answers


def _same(got: torch.Tensor | None, expected: torch.Tensor) -> bool:
    if got is None or got.dtype != expected.dtype or got.device != expected.device:
        return False
    bits = {2: torch.int16, 4: torch.int32}[expected.element_size()]
    return torch.equal(got.detach().view(bits), expected.view(bits))


def measure(
    module: str, stored: dict[str, str], small: dict[str, str], dtype: str, cold: bool
) -> dict[str, Any]:
    """One sample, after a small one: imports are not what is compared."""
    build = importlib.import_module(module).build
    checkpoint, kind = Stored(**stored), getattr(torch, dtype)
    build(Stored(**small), kind)
    files = checkpoint.files()
    page_cache.fill(files)
    if cold:
        page_cache.empty(files)
    cached = page_cache.cached_share(files)
    results: list[Any] = []
    figures = sample(lambda: results.append(build(checkpoint, kind)))
    tensors = results[0].state_dict().values() if hasattr(results[0], "state_dict") else ()
    started = time.perf_counter()
    for tensor in tensors:
        _touch(tensor)
    return {
        **figures,
        "touching": time.perf_counter() - started,
        "final": sum(tensor.nbytes for tensor in tensors),
        "cached": cached,
    }


def _touch(tensor: torch.Tensor) -> None:
    flat = tensor.detach().reshape(-1).view(torch.uint8)
    flat[::4096].sum()
