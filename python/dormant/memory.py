"""Resident memory of this process, as the system counts it."""

from __future__ import annotations

import os
import time
from pathlib import Path


def resident_bytes() -> int | None:
    """Bytes of physical memory this process takes now; None where the system does not tell."""
    try:
        with Path("/proc/self/statm").open("rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def highest_resident_bytes() -> int | None:
    """The most `resident_bytes` since the process started; None where the system does not tell."""
    try:
        with Path("/proc/self/status").open("rb") as file:
            for line in file:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


class PeakMemory:
    """The highest resident memory between two points in time.

    The system's own high-water mark is exact, but covers the whole life of the process. Resetting
    it would spoil other measurements in the same process, so where an earlier peak was higher the
    figure is the highest of the samples taken by `sample`.
    """

    _INTERVAL = 0.001  # seconds; a sample costs some 10 microseconds

    def __init__(self) -> None:
        self._before = highest_resident_bytes()
        self._highest = resident_bytes()
        self._next = time.monotonic()

    def sample(self) -> None:
        """Looks at the memory now, unless it did so within the last millisecond."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._INTERVAL
        self._note(resident_bytes())

    def result(self) -> int | None:
        """The peak in bytes; None where the system does not tell."""
        after = highest_resident_bytes()
        if after is not None and self._before is not None and after > self._before:
            return after
        self._note(resident_bytes())
        return self._highest

    def _note(self, resident: int | None) -> None:
        if resident is not None and (self._highest is None or resident > self._highest):
            self._highest = resident
