"""What loading costs: the memory of the result and little more, and no byte in vain."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

import dormant
from child import in_child, sees_the_memory

MIB = 1 << 20

FILE_BYTES = 8 * 4096 * 4096 * 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 MiB of bfloat16 in eight layers."""
    path = tmp_path_factory.mktemp("large") / "model.safetensors"
    state = {f"{i}.weight": torch.full((4096, 4096), i + 1, dtype=torch.bfloat16) for i in range(8)}
    safetensors.torch.save_file(state, path)
    return path


def measured_in_child(path: Path, code: str) -> dict[str, int]:
    """Runs `code` in a new process and returns what it prints as JSON."""
    prelude = f"""
        import json, pathlib, torch, dormant
        from dormant.reporting.memory import highest_resident_bytes, resident_bytes

        path = pathlib.Path({str(path)!r})

        def model(dtype, layers=8):
            with dormant.lazy_init(dtype=dtype):
                return torch.nn.Sequential(
                    *[torch.nn.Linear(4096, 4096, bias=False) for _ in range(layers)]
                )

        def characters_read():
            lines = pathlib.Path("/proc/self/io").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("rchar")).split()[1])

        # What a process needs once is not the model's own: the code itself, the threads.
        dormant.load(model(torch.float32, 1), path, unexpected="ignore")
    """
    return in_child(prelude, code)


@pytest.mark.parametrize("mmap", ["auto", "never"])
def test_the_peak_of_a_cast_is_the_model_and_little_more(mmap: str, checkpoint: Path) -> None:
    found = measured_in_child(
        checkpoint,
        f"""
        before = resident_bytes()
        loaded = model(torch.float32)
        dormant.load(loaded, path, mmap={mmap!r})
        print(json.dumps({{
            "final": sum(p.nbytes for p in loaded.parameters()),
            "grown": resident_bytes() - before,
            "peak": highest_resident_bytes() - before,
        }}))
        """,
    )
    assert found["final"] == 2 * FILE_BYTES
    assert sees_the_memory(found)
    assert found["peak"] <= found["final"] + 64 * MIB


def test_the_same_dtype_is_shown_in_place(checkpoint: Path) -> None:
    """A mapping takes no memory of its own before it is read."""
    found = measured_in_child(
        checkpoint,
        """
        loaded = model(torch.bfloat16)
        before, read = resident_bytes(), characters_read()
        dormant.load(loaded, path)
        print(json.dumps({
            "grown": resident_bytes() - before,
            "read": characters_read() - read,
            "sum": int(sum(p[7, 9].item() for p in loaded.parameters())),
        }))
        """,
    )
    assert found["sum"] == 36
    assert found["grown"] <= 32 * MIB
    assert found["read"] <= MIB


def test_every_byte_is_read_once(checkpoint: Path) -> None:
    found = measured_in_child(
        checkpoint,
        """
        loaded = model(torch.float32)
        before = characters_read()
        dormant.load(loaded, path, mmap="never")
        print(json.dumps({"read": characters_read() - before}))
        """,
    )
    assert FILE_BYTES <= found["read"] <= FILE_BYTES + MIB


def test_bytes_of_tensors_that_are_not_wanted_are_not_read(checkpoint: Path) -> None:
    found = measured_in_child(
        checkpoint,
        """
        loaded = model(torch.float32, 2)
        before = characters_read()
        dormant.load(loaded, path, unexpected="ignore", mmap="never")
        print(json.dumps({"read": characters_read() - before}))
        """,
    )
    assert FILE_BYTES // 4 <= found["read"] <= FILE_BYTES // 4 + MIB


# Layouts of transformers: stacks of what the files have one by one

EXPERTS = """
    import json, os, pathlib, sys, torch, transformers, dormant
    from dormant.reporting.memory import highest_resident_bytes, resident_bytes

    torch.set_num_threads(2)
    folder = pathlib.Path(FOLDER)

    def model(width=768, layers=2):
        config = transformers.MixtralConfig(
            hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
            num_attention_heads=8, num_key_value_heads=2, vocab_size=64, num_local_experts=16,
        )
        with dormant.lazy_init():
            return transformers.MixtralForCausalLM(config)

    BUDGET = 16 << 20
    first = model(64, 1)
    dormant.save(first, folder / "first", memory_budget=BUDGET)
    again = model(64, 1)
    dormant.load(again, folder / "first", dtype=torch.bfloat16, mmap="never", memory_budget=BUDGET)
    again = model(64, 1)
    dormant.load(again, folder / "first", materialize=False)
    dormant.save(again, folder / "second", memory_budget=BUDGET)
"""


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """450 MiB of float32, a matrix of 4.5 MiB for each expert, which the model has in stacks."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("experts")
    found = in_child(
        EXPERTS.replace("FOLDER", repr(str(folder))),
        """
        large = model()
        before = resident_bytes()
        dormant.save(large, folder / "large", memory_budget=BUDGET, max_shard_size="100MB")
        print(json.dumps({"peak": highest_resident_bytes() - before}))
        """,
    )
    assert found["peak"] <= 32 * MIB
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stacks_of_experts_take_the_final_memory_and_the_budget(dtype: str, experts: Path) -> None:
    found = in_child(
        EXPERTS.replace("FOLDER", repr(str(experts))),
        f"""
        loaded = model()
        before = resident_bytes()
        dormant.load(
            loaded, folder / "large", dtype=torch.{dtype}, mmap="never", memory_budget=BUDGET
        )
        print(json.dumps({{
            "final": sum(p.nbytes for p in loaded.parameters()),
            "grown": resident_bytes() - before,
            "peak": highest_resident_bytes() - before,
        }}))
        """,
    )
    assert found["final"] > 200 * MIB
    assert sees_the_memory(found)
    assert found["peak"] <= found["final"] + 32 * MIB


def test_experts_go_from_file_to_file_without_a_stack(experts: Path, tmp_path: Path) -> None:
    found = in_child(
        EXPERTS.replace("FOLDER", repr(str(experts))),
        f"""
        target = pathlib.Path({str(tmp_path)!r})
        loaded = model()
        before = resident_bytes()
        dormant.load(loaded, folder / "large", materialize=False)
        dormant.save(loaded, target, memory_budget=BUDGET, max_shard_size="100MB")
        lazy = all(map(dormant.is_lazy, loaded.parameters()))
        print(json.dumps({{"peak": highest_resident_bytes() - before, "lazy": lazy}}))
        """,
    )
    assert found["lazy"]
    assert found["peak"] <= 32 * MIB  # a stack has 72 or 144
    for file in (experts / "large").glob("model*"):
        assert file.read_bytes() == (tmp_path / file.name).read_bytes(), file.name
        (tmp_path / file.name).unlink()


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_real_tensor_keeps_its_memory(device: str | None) -> None:
    """The CPU named as the device is no other place: nothing is made twice there."""
    model = torch.nn.Linear(30, 20)
    places = [parameter.data_ptr() for parameter in model.parameters()]
    state = {name: tensor.clone() for name, tensor in torch.nn.Linear(30, 20).state_dict().items()}
    dormant.load(model, state, device=device)
    assert [parameter.data_ptr() for parameter in model.parameters()] == places
    assert torch.equal(model.weight, state["weight"])
