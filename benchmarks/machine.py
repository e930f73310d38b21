"""The machine that measured, as far as it matters to the figures."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """Processor, memory, page settings, versions and how busy it is."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "huge_pages": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


def headline() -> str:
    """One line for the top of the output."""
    facts = machine()
    return (
        f"{facts['processor']}, {facts['cores']} cores, {facts['capability']}, "
        f"torch {facts['torch']}, load average {facts['load_average']:.1f}"
    )


def _processor() -> str:
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
