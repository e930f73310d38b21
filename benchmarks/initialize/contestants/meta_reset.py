"""The meta device, `to_empty`, then the model's own initialization again."""

from __future__ import annotations

import torch

from benchmarks.initialize.workloads import Workload

NAME = "meta + to_empty + reset"
EXACT = False


def build(workload: Workload) -> object:
    with torch.device("meta"):
        model = workload.make()
    model = model.to_empty(device="cpu")
    workload.reset(model)
    return model
