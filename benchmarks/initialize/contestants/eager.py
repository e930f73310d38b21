"""Plain construction."""

from __future__ import annotations

from benchmarks.initialize.workloads import Workload

NAME = "eager"
EXACT = True


def build(workload: Workload) -> object:
    return workload.make()
