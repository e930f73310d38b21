"""What a user writes who checks types strictly; `test_packaging.py` runs mypy on it."""

from __future__ import annotations

from pathlib import Path

import torch
from typing_extensions import assert_type

import dormant
from dormant import tensor_parallel


def build() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))


@dormant.lazy_init(dtype=torch.bfloat16)
def build_lazily(layers: int, *, bias: bool) -> torch.nn.Module:
    return torch.nn.Sequential(*(torch.nn.Linear(8, 8, bias=bias) for _ in range(layers)))


def tell(done: int, total: int) -> None:
    print(f"{done} of {total}")


def main(folder: Path) -> None:
    with dormant.lazy_init(device="cpu"):
        model = build()
    assert_type(dormant.is_lazy(model), bool)
    assert_type(build_lazily(2, bias=False), torch.nn.Module)
    assert_type(dormant.summary(model), dormant.Summary)
    assert_type(dormant.save(model, folder, max_shard_size="1GB", progress=tell), dormant.Report)

    checkpoint = dormant.open_checkpoint(folder)
    assert_type(checkpoint, dormant.Checkpoint)
    assert_type(checkpoint["0.weight"], torch.Tensor)
    assert_type(checkpoint.entries["0.weight"].shape, tuple[int, ...])
    assert_type(checkpoint.verify(progress=False).nbytes, int)

    report = dormant.load(model, checkpoint, missing="error", mmap="never", rename={"old.": ""})
    assert_type(report.missing, tuple[str, ...])
    assert_type(report.tensors, list[dormant.TensorReport])
    assert_type(dormant.materialize([model], values="exact", memory_budget=1 << 30), dormant.Report)
    assert_type(dormant.quantize(model, dormant.FourBit(kind="nf4")), dormant.QuantizeReport)
    parts = tensor_parallel.split({"wq.weight": torch.zeros(4, 2)}, 2)
    assert_type(parts, list[dict[str, torch.Tensor]])
    assert_type(dormant.LazyInitContext.materialize(model), torch.nn.Module)


def wrong(model: torch.nn.Module) -> None:
    # Each of these is an error, and mypy would complain of an ignored one that is none.
    dormant.materialize(model, values="precise")  # type: ignore[arg-type]
    dormant.load(model, "file", mising="init")  # type: ignore[call-arg]
    dormant.load(model, 7)  # type: ignore[arg-type]
    dormant.save(model)  # type: ignore[call-arg]
    dormant.open_checkpoint("file").entries["a"].offset + 1  # type: ignore[operator]
