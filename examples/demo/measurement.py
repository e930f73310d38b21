"""One measurement: a way in a separate process, observed from outside."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import child
from dormant.reporting.memory import MemorySample, MemoryTrace

_PRELOADED = ["torch", "dormant", "bitsandbytes", "child"]
_PRELOADED += [f"transformers.models.{name}.modeling_{name}" for name in ("bert", "llama")]
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}

Show = Callable[[str, "tuple[int, int] | None", "int | None"], None]
"""Called with the activity, (done, total) if they are known, and the bytes above the start."""


@dataclass(frozen=True)
class Measurement:
    """The cost and the result of one way.

    Attributes:
        seconds: until the model, or the files, existed.
        used: until every page of its weights had also been read once.
        processor: seconds of processor time until then, of all threads together; other work on the
            machine affects it less.
        peak: highest resident memory until then, above that at the start; None if it is not known.
        start: resident bytes at the start.
        trace: memory over time.
        nbytes: bytes of the weights.
        digests: of every tensor.
        outputs: digest of what the model computed.
        values: the computed values, if they are shown.
    """

    seconds: float
    used: float
    processor: float
    peak: int | None
    start: int
    trace: tuple[MemorySample, ...]
    nbytes: int
    digests: dict[str, str]
    outputs: str
    values: list[list[float]]


class Failed(Exception):
    """A process ended without a result; the message says how, and contains what it printed."""


def measure(
    case: str, way: str, folder: Path, log: Path, show: Show, *, quick: bool
) -> Measurement:
    """Runs one way of a case.

    Args:
        case: the name of the case.
        way: "ordinary" or "dormant".
        folder: the folder to read or write.
        log: the file that gets the output of libraries.
        show: called with the current activity every tenth of a second.
        quick: fork a process that has imported the libraries; this is faster, but memory is
            measured less exactly.

    Raises:
        Failed: the process failed.
    """
    os.environ.update(_ENVIRONMENT)
    context: Any = multiprocessing.get_context("forkserver" if quick else "spawn")
    if quick:
        context.set_forkserver_preload(_PRELOADED)
    here, there = context.Pipe()
    process = context.Process(
        target=child.run, args=(there, case, way, str(folder), str(log)), daemon=True
    )
    # The child inherits the mask: this process handles an interrupt, and then ends the child.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    there.close()
    try:
        return _follow(here, process, show)
    except (EOFError, ConnectionError):
        process.join(5)
        printed = log.read_text("utf-8", errors="replace")[-2000:] if log.exists() else ""
        raise Failed(
            f"demo: {case}, {way}: the process ended with status {process.exitcode} and without "
            f"a result (-9 often means that memory ran out).\n{printed}"
        ) from None
    finally:
        process.kill()
        process.join()
        here.close()


def _follow(connection: Connection, process: Any, show: Show) -> Measurement:
    show("importing", None, None)
    _receive(connection, "ready", lambda progress: show("importing", progress, None))
    with MemoryTrace(process=process.pid) as trace:
        connection.send("go")

        def shown(progress: tuple[int, int] | None) -> None:
            samples = trace.samples
            above = samples[-1].resident - samples[0].resident if samples else None
            show("working", progress, above)

        cost = _receive(connection, "used", shown)
    result = _receive(connection, "result", lambda progress: show("comparing", progress, None))
    start = trace.samples[0].resident if trace.samples else 0
    peaks = [sample.resident for sample in trace.samples]
    if cost["peak"] is not None:
        peaks.append(cost["peak"])
    return Measurement(
        seconds=cost["seconds"],
        used=cost["used"],
        processor=cost["processor"],
        peak=max(peaks) - start if peaks and start else None,
        start=start,
        trace=trace.samples,
        **result,
    )


def _receive(
    connection: Connection, awaited: str, shown: Callable[[tuple[int, int] | None], None]
) -> Any:
    progress: tuple[int, int] | None = None
    while True:
        while not connection.poll(0.1):
            shown(progress)
        kind, value = connection.recv()
        if kind == "failed":
            raise Failed(f"demo: {value}")
        if kind == "progress":
            progress = value
        elif kind == "step":
            progress = None
        elif kind == awaited:
            return value
