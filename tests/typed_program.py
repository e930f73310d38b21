"""What a user writes who checks types strictly; `test_packaging.py` runs mypy on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from typing_extensions import assert_type

import dormant
import dormant.recipes
from dormant import tensor_parallel
from dormant.integrations import accelerate, llama2_accessory, peft, timm, torchvision
from dormant.integrations import diffusers as lazy_diffusers
from dormant.integrations import transformers as lazy_transformers


def build() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))


@dormant.lazy_init(dtype=torch.bfloat16)
def build_lazily(layers: int, *, bias: bool) -> torch.nn.Module:
    return torch.nn.Sequential(*(torch.nn.Linear(8, 8, bias=bias) for _ in range(layers)))


@dormant.lazy_init
def build_lazily_too(layers: int) -> torch.nn.Module:
    return build_lazily(layers, bias=True)


def tell(done: int, total: int) -> None:
    print(f"{done} of {total}")


def main(folder: Path) -> None:
    with dormant.lazy_init(device="cpu"):
        model = build()
    assert_type(dormant.is_lazy(model), bool)
    assert_type(build_lazily(2, bias=False), torch.nn.Module)
    assert_type(build_lazily_too(2), torch.nn.Module)
    assert_type(dormant.__version__, str)
    with dormant.integrations.accelerate.init_empty_weights():
        build()
    dormant.tensor_parallel.split({"wq.weight": torch.zeros(4, 2)}, 2)
    assert_type(dormant.summary(model), dormant.Summary)
    assert_type(dormant.save(model, folder, max_shard_size="1GB", progress=tell), dormant.Report)

    checkpoint = dormant.open_checkpoint(folder)
    assert_type(checkpoint, dormant.Checkpoint)
    assert_type(checkpoint["0.weight"], torch.Tensor)
    entry: dormant.Entry = checkpoint.entries["0.weight"]
    assert_type(entry.shape, tuple[int, ...])
    verification: dormant.Verification = checkpoint.verify(progress=False)
    assert_type(verification.nbytes, int)

    several: list[torch.nn.Module | dict[str, dormant.Checkpoint]] = [model, {"a": checkpoint}]
    for target in (model, model.state_dict(), checkpoint["0.weight"], several):
        assert_type(dormant.is_lazy(target), bool)
        assert_type(dormant.summary(target), dormant.Summary)
        assert_type(dormant.materialize(target), dormant.Report)
    assert_type(dormant.is_lazy(checkpoint), bool)
    assert_type(dormant.summary(checkpoint), dormant.Summary)
    assert_type(dormant.is_lazy(model.parameters()), bool)

    report = dormant.load(model, checkpoint, missing="error", mmap="never", share_reads=True)
    report = dormant.load(model, checkpoint, rename={"old.": ""})
    assert_type(report.missing_keys, tuple[str, ...])
    assert_type(report.tensors, list[dormant.TensorReport])
    plan = dormant.load(model, checkpoint, dry_run=True)
    assert_type(plan, dormant.LoadPlan)
    assert_type(plan.tensors, list[dormant.PlannedTensor])
    assert_type(dormant.materialize([model], values="exact", memory_budget=1 << 30), dormant.Report)
    dormant.save_recipe(model.state_dict(), folder / "model.recipe")
    assert_type(dormant.load_recipe(folder / "model.recipe", weights_only=True), Any)
    with dormant.recipes.pickling():
        pass
    assert_type(dormant.quantize(model, dormant.FourBit(kind="nf4")), dormant.QuantizeReport)
    parts = tensor_parallel.split({"wq.weight": torch.zeros(4, 2)}, 2)
    assert_type(parts, list[dict[str, torch.Tensor]])
    assert_type(dormant.LazyInitContext.materialize(model), torch.nn.Module)


def schemes(model: torch.nn.Module, layer: Callable[[torch.nn.Module], torch.nn.Module]) -> None:
    dormant.quantize(model, "nf4", skip=["lm_head"])
    dormant.quantize(model, dormant.Int8(threshold=0.0))
    report: dormant.QuantizeReport = dormant.quantize(model, layer)
    layer_of_report: dormant.QuantizedLayer = report.layers[0]
    assert_type(layer_of_report.nbytes, int | None)


def shown(summary: dormant.Summary, report: dormant.Report, tensor: dormant.TensorReport) -> None:
    summary.plot("summary.png")
    summary.plot().savefig("summary.svg")
    report.plot(Path("report.png"))
    assert_type(summary.lazy_rate, float)
    assert_type(summary.tensors, list[dormant.TensorSummary])
    sample: dormant.MemorySample = report.memory_trace[0]
    assert_type(sample.resident, int)
    assert_type(tensor.shape, tuple[int, ...])
    assert_type(report.to_dict(), dict[str, Any])
    assert_type(report.count("quantized") + report.count("meta"), int)
    assert_type(summary.tensors[0].meta, bool)
    assert_type(dormant.cmake_prefix_path, str)
    torch.serialization.add_safe_globals(dormant.recipes.safe_globals())


def several(parts: list[dormant.Checkpoint], paths: list[Path]) -> None:
    rules: tensor_parallel.Rules = {
        "wq.weight": tensor_parallel.Sharded(0, unit=128),
        "wo.weight": tensor_parallel.ROW,
        "*": tensor_parallel.REPLICATED,
        **tensor_parallel.LLAMA,
        **tensor_parallel.LLAMA3,
    }
    whole = tensor_parallel.merge(parts, rules=rules)
    assert_type(whole, dict[str, torch.Tensor])
    assert_type(tensor_parallel.reshard(parts, 3), list[dict[str, torch.Tensor]])
    assert_type(tensor_parallel.apply_diffs(whole, [whole]), dict[str, torch.Tensor])
    assert_type(dormant.open_checkpoint([*paths, "more"], rules=rules), dormant.Checkpoint)


def other_libraries(folder: Path, model: torch.nn.Module, some_class: Any) -> None:
    lazy_transformers.from_pretrained(
        some_class, folder, dtype=torch.bfloat16, quantization_config="nf4"
    )
    lazy_transformers.from_config(some_class, folder, materialize=False)
    lazy_diffusers.from_pretrained(some_class, folder, mmap="never")
    peft.get_peft_model(model, some_class)
    peft.load_adapter(model, folder)
    assert_type(timm.create_model("vit", checkpoint_path=folder), torch.nn.Module)
    assert_type(torchvision.get_model("resnet18", checkpoint=folder), torch.nn.Module)
    with accelerate.init_empty_weights():
        accelerate.dispatch_model(build(), {"": "cpu"})
    with llama2_accessory.default_tensor_type(torch.bfloat16, "cpu"):
        llama2_accessory.load_tensor_parallel_model_list(model, [folder, "base"])
    with dormant.LazyInitContext():
        build()


def wrong(model: torch.nn.Module) -> None:
    # Each of these is an error, and mypy would complain of an ignored one that is none.
    dormant.is_lazy(3)  # type: ignore[arg-type]
    dormant.materialize(model, values="precise")  # type: ignore[arg-type]
    dormant.load(model, "file", mising="init")  # type: ignore[call-overload]
    dormant.load(model, 7)  # type: ignore[call-overload]
    dormant.save(model)  # type: ignore[call-arg]
    build_lazily_too("two")  # type: ignore[arg-type]
    dormant.open_checkpoint("file").entries["a"].offset + 1  # type: ignore[operator]
