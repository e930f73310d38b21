"""Lazily, then `dormant.materialize`."""

from __future__ import annotations

import dormant
from benchmarks.initialize.workloads import Workload

NAME = "dormant"
EXACT = True


def build(workload: Workload) -> object:
    with dormant.lazy_init():
        model = workload.make()
    dormant.materialize(model, progress=False)
    return model
