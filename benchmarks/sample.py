"""One measurement: time, and what the process's memory did meanwhile."""

from __future__ import annotations

import gc
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dormant.reporting.memory import highest_resident_bytes, resident_bytes


def sample(action: Callable[[], object]) -> dict[str, Any]:
    """Runs `action` once in this process.

    Returns:
        "seconds" on the wall clock; "processor": seconds of processor time, all threads together,
        which a busy machine changes less; "growth": resident bytes left behind while the result is
        alive; "peak": the highest resident bytes meanwhile above those before; "minor_faults" and
        "major_faults": pages touched for the first time, the latter by waiting for a disk. Memory
        is None where the system does not tell.
    """
    gc.collect()
    reset = _reset_high_water_mark()
    before, faults = resident_bytes(), resource.getrusage(resource.RUSAGE_SELF)
    started, worked = time.perf_counter(), time.process_time()
    result = action()
    seconds, processor = time.perf_counter() - started, time.process_time() - worked
    after, highest = resident_bytes(), highest_resident_bytes()
    more_faults = resource.getrusage(resource.RUSAGE_SELF)
    del result
    known = before is not None and after is not None and highest is not None
    return {
        "seconds": seconds,
        "processor": processor,
        "growth": after - before if known else None,
        "peak": highest - before if known and reset else None,
        "minor_faults": more_faults.ru_minflt - faults.ru_minflt,
        "major_faults": more_faults.ru_majflt - faults.ru_majflt,
    }


def _reset_high_water_mark() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def median(samples: Sequence[dict[str, Any]], key: str) -> float:
    """The median of one figure; NaN where it is unknown."""
    values = [sample[key] for sample in samples if sample[key] is not None]
    return statistics.median(values) if values else float("nan")


def peak_over_final(samples: Sequence[dict[str, Any]]) -> float:
    """MiB of the median peak over the final tensors."""
    return (median(samples, "peak") - median(samples, "final")) / (1 << 20)
