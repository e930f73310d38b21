"""The memory of this process as the system counts it: what it uses, and what is available."""

from __future__ import annotations

import os
import resource
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple


class MemorySample(NamedTuple):
    """The memory of a process at one moment.

    Attributes:
        seconds: since the first sample.
        resident: bytes of physical memory that the process uses.
        mapped: the part of these that are pages of files or shared memory. The system may reclaim
            pages of files, because their bytes are on disk.
    """

    seconds: float
    resident: int
    mapped: int


def resident_bytes() -> int | None:
    """Bytes of physical memory that this process uses now; None if the system does not say."""
    found = resident_and_mapped_bytes()
    return None if found is None else found[0]


def resident_and_mapped_bytes(process: int | None = None) -> tuple[int, int] | None:
    """The bytes of `MemorySample`, for this process or another one of this user, or None."""
    name = "self" if process is None else str(process)
    try:
        # One short line; /proc/self/status would be formatted with fifty lines for each read.
        resident, mapped = _read(f"/proc/{name}/statm").split()[1:3]
        page = os.sysconf("SC_PAGE_SIZE")
        return int(resident) * page, int(mapped) * page
    except (OSError, ValueError, IndexError):
        return None


def highest_resident_bytes() -> int | None:
    """The highest `resident_bytes` since the process started; None if the system does not say."""
    try:
        return int(_read("/proc/self/status").partition(b"VmHWM:")[2].split(None, 1)[0]) * 1024
    except (OSError, ValueError, IndexError):
        return None


def _read(path: str) -> bytes:
    """The first 4 KiB of a file that the kernel makes when it is read.

    A larger buffer would be shortened where it is, in the middle of memory that blocks of tensors
    have just left, and the allocator would keep that memory.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 1 << 12)
    finally:
        os.close(descriptor)


def available_bytes() -> int | None:
    """Bytes that this process could still allocate without swap; None if the system does not say.

    The minimum of what the machine, the control group (a container) and `ulimit -v` allow.
    """
    rooms = [_of_machine(), _of_control_group(), _of_limit()]
    return min((max(0, room) for room in rooms if room is not None), default=None)


def _of_machine() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _of_control_group() -> int | None:
    """Version 2 of control groups: each group up to the root may have a limit."""
    rooms: list[int] = []
    try:
        own = Path("/proc/self/cgroup").read_text().strip().rpartition("::")[2]
        group = Path("/sys/fs/cgroup", own.lstrip("/"))
        for folder in (group, *group.parents):
            limit = folder / "memory.max"
            if limit.is_file() and (most := limit.read_text().strip()) != "max":
                rooms.append(int(most) - int((folder / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return min(rooms, default=None)


def _of_limit() -> int | None:
    try:
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit == resource.RLIM_INFINITY:
            return None
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        return limit - pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


class PeakMemory:
    """The highest resident memory between two points in time.

    The system's own high-water mark is exact, but covers the whole life of the process. Resetting
    it would disturb other measurements in the same process. If an earlier peak was higher, the
    result is therefore the highest of the samples taken by `sample`.
    """

    _INTERVAL = 0.001  # seconds; a sample costs some 10 microseconds

    def __init__(self) -> None:
        self._before = highest_resident_bytes()
        self._highest = resident_bytes()
        self._next = time.monotonic()

    def sample(self) -> None:
        """Takes a sample, unless the last one was taken less than a millisecond ago."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._INTERVAL
        self._note(resident_bytes())

    def result(self) -> int | None:
        """The peak in bytes; None if the system does not say."""
        after = highest_resident_bytes()
        if after is not None and self._before is not None and after > self._before:
            return after
        self._note(resident_bytes())
        return self._highest

    def _note(self, resident: int | None) -> None:
        if resident is not None and (self._highest is None or resident > self._highest):
            self._highest = resident


class MemoryTrace:
    """Resident memory over time, sampled by a background thread while the context is open.

    Args:
        enabled: False does nothing.
        process: the process to sample; None for this one.
    """

    _INTERVAL = 0.005  # seconds
    # If there are more, each two neighbors are merged, and samples are taken half as often.
    _MOST = 4096

    def __init__(self, enabled: bool = True, process: int | None = None) -> None:
        self._process = process
        self._samples: list[MemorySample] = []
        self._started = time.perf_counter()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        if enabled:
            self._thread = threading.Thread(
                target=self._watch, name="dormant memory trace", daemon=True
            )

    def __enter__(self) -> MemoryTrace:
        if self._thread is not None:
            self._sample()
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._sample()

    @property
    def samples(self) -> tuple[MemorySample, ...]:
        """The samples in order of time; empty if the system does not say."""
        return tuple(self._samples)

    def _watch(self) -> None:
        interval = self._INTERVAL
        while not self._stop.wait(interval):
            self._sample()
            if len(self._samples) >= self._MOST:
                self._samples = thinned(self._samples)
                interval *= 2

    def _sample(self) -> None:
        found = resident_and_mapped_bytes(self._process)
        if found is not None:
            self._samples.append(MemorySample(time.perf_counter() - self._started, *found))


def thinned(samples: list[MemorySample]) -> list[MemorySample]:
    """Half as many samples with the same peak: the higher of each two neighbors."""
    pairs = (samples[at : at + 2] for at in range(0, len(samples), 2))
    return [max(pair, key=lambda sample: sample.resident) for pair in pairs]
