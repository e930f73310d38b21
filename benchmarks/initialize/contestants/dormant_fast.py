"""Lazily, then `dormant.materialize(values="fast")`: the distributions of eager, other numbers."""

from __future__ import annotations

import dormant
from benchmarks.initialize.workloads import Workload

NAME = 'dormant, values="fast"'
EXACT = False


def build(workload: Workload) -> object:
    with dormant.lazy_init():
        model = workload.make()
    dormant.materialize(model, values="fast", progress=False)
    return model
