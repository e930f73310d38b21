"""`torch.nn.utils.skip_init` for each layer, then `reset_parameters`."""

from __future__ import annotations

import torch

from benchmarks.initialize.workloads import Workload

NAME = "skip_init + reset_parameters"
EXACT = False


def build(workload: Workload) -> object:
    if workload.layers is None:
        raise NotImplementedError("skip_init builds single layers that take device=")
    model = torch.nn.Sequential(
        *(torch.nn.utils.skip_init(kind, *arguments) for kind, arguments in workload.layers)
    )
    workload.reset(model)
    return model
