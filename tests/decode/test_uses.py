"""Encoded checkpoints go wherever plain ones go: load, convert, quantize, save, shards."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from encoded import (
    BITSANDBYTES,
    FP8,
    MXFP4,
    assert_same,
    decoded_blocks,
    fp8_blocks,
    random_bytes,
    random_float8,
    random_scales,
    under,
    write,
)
from safetensors.torch import load_file

import dormant
from child import in_child
from dormant import _C
from pages import blocks


class Two(torch.nn.Module):
    """Two layers and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(256, 320, bias=False, dtype=torch.bfloat16)
        self.second = torch.nn.Linear(320, 130, dtype=torch.bfloat16)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return {
        **under("first", fp8_blocks(320, 256)),
        **under("second", fp8_blocks(130, 320, seed=4)),
        "second.bias": torch.arange(130, dtype=torch.bfloat16),
    }


@pytest.fixture
def folder(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    return write(tmp_path / "fp8", tensors, FP8)


def plain(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The state dict that the tensors stand for."""
    found = {
        f"{name}.weight": decoded_blocks(
            tensors[f"{name}.weight"], tensors[f"{name}.weight_scale_inv"], 128, 128, dtype
        )
        for name in ("first", "second")
    }
    return {**found, "second.bias": tensors["second.bias"].to(dtype)}


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("budget", [None, "1MiB"])
def test_load(
    folder: Path, tensors: dict[str, torch.Tensor], lazy: bool, budget: str | None
) -> None:
    if lazy:
        with dormant.lazy_init():
            model = Two()
    else:
        model = Two()
    report = dormant.load(model, folder, missing="error", memory_budget=budget)
    for name, expected in plain(tensors, torch.bfloat16).items():
        assert_same(model.state_dict()[name], expected)
    assert report.count("checkpoint") == 3


def test_load_in_the_dtype_asked_for(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    with dormant.lazy_init():
        model = Two()
    dormant.load(model, dormant.open_checkpoint(folder, decode=torch.float32), dtype=torch.float32)
    for name, expected in plain(tensors, torch.float32).items():
        assert_same(model.state_dict()[name], expected)


def test_one_pass_to_nf4_has_the_codes_of_the_decoded_model(
    folder: Path, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    with dormant.lazy_init():
        model, eager = Two(), Two()
    dormant.quantize(model, "nf4", skip=[])
    dormant.load(model, folder)
    dormant.quantize(eager, "nf4", skip=[])
    dormant.load(eager, plain(tensors, torch.bfloat16))
    found, expected = model.state_dict(), eager.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def test_the_tensors_never_exist_whole(tmp_path: Path) -> None:
    big = {"big.weight": random_float8(4096, 4096), "big.weight_scale_inv": random_scales(32, 32)}
    folder = write(tmp_path / "big", big, FP8)
    found = in_child(
        "import json, resource, torch, dormant\n",
        f"""
        torch.set_num_threads(2)
        checkpoint = dormant.open_checkpoint({str(folder)!r})
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        dormant.save(
            {{"big.weight": checkpoint["big.weight"]}}, {str(tmp_path / "out.safetensors")!r},
            memory_budget="4MiB",
        )
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({{"grown": (after - before) * 1024}}))
        """,
    )
    assert found["grown"] < 16 << 20  # the tensor has 32 MiB, its codes 16, mapped or read
    out = load_file(tmp_path / "out.safetensors")["big.weight"]
    assert_same(out, decoded_blocks(*big.values(), 128, 128, torch.bfloat16))


def test_shards_are_parts_of_the_decoded_tensor(
    folder: Path, tensors: dict[str, torch.Tensor]
) -> None:
    checkpoint = dormant.open_checkpoint(folder)
    whole = plain(tensors, torch.bfloat16)["first.weight"]
    rows = checkpoint["first.weight"].narrow(0, 100, 120).clone()
    columns = checkpoint["first.weight"].narrow(1, 60, 77).clone()
    dormant.materialize([rows, columns])
    assert_same(rows, whole[100:220])
    assert_same(columns, whole[:, 60:137].contiguous())


def test_parts_of_a_tensor_parallel_set_are_decoded_before_they_are_merged(
    tmp_path: Path,
) -> None:
    parts = [fp8_blocks(200, 128, seed=rank) for rank in range(2)]
    for rank, part in enumerate(parts):
        torch.save(under("layers.0.attention.wq", part), tmp_path / f"consolidated.0{rank}.pth")
    (tmp_path / "config.json").write_text(
        json.dumps({"dtype": "bfloat16", "quantization_config": FP8})
    )
    tensor = dormant.open_checkpoint(tmp_path)["layers.0.attention.wq.weight"]
    dormant.materialize(tensor)
    expected = [decoded_blocks(*part.values(), 128, 128, torch.bfloat16) for part in parts]
    assert_same(tensor, torch.cat(expected))


def test_files_of_torch_save(tmp_path: Path) -> None:
    parts = fp8_blocks(256, 256)
    torch.save(under("a", parts), tmp_path / "model.pt")
    tensor = dormant.open_checkpoint(tmp_path / "model.pt")["a.weight"]
    dormant.materialize(tensor)
    assert_same(tensor, decoded_blocks(*parts.values(), 128, 128, torch.float32))


@pytest.mark.threads
def test_two_threads_materialize_one_and_the_same(
    folder: Path, tensors: dict[str, torch.Tensor]
) -> None:
    expected = plain(tensors, torch.bfloat16)["first.weight"]
    checkpoint = dormant.open_checkpoint(folder)
    shared = checkpoint["first.weight"]
    own: list[torch.Tensor] = []
    ready = threading.Barrier(2)

    def work() -> None:
        ready.wait()
        mine = checkpoint["first.weight"].clone()
        dormant.materialize(shared)
        dormant.materialize(mine)
        own.append(mine)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for tensor in (shared, *own):
        assert_same(tensor, expected)


def test_a_read_that_fails_leaves_the_model_lazy(folder: Path) -> None:
    for call in range(1, 8):
        with dormant.lazy_init():
            model = Two()
        checkpoint = dormant.open_checkpoint(folder)
        _C.set_faults(f"read:{call}")
        try:
            dormant.load(model, checkpoint, mmap="never")
        except OSError:
            assert dormant.is_lazy(model)
        else:
            assert call > 1
            break
        finally:
            _C.set_faults("")
    dormant.load(model, checkpoint)
    assert not dormant.is_lazy(model)


def run(*arguments: object) -> dict[str, Any]:
    """The JSON that a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "dormant", *map(str, arguments), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_convert_decodes_and_forgets_the_encoding(
    folder: Path, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    run("convert", folder, tmp_path / "out", "--memory-budget", "8MiB")
    out = load_file(tmp_path / "out" / "model.safetensors")
    for name, expected in plain(tensors, torch.bfloat16).items():
        assert_same(out[name], expected)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {"dtype": "bfloat16"}

    run("convert", folder, tmp_path / "half", "--dtype", "float16")
    out = load_file(tmp_path / "half" / "model.safetensors")
    for name, expected in plain(tensors, torch.float16).items():
        assert_same(out[name], expected)
    config = json.loads((tmp_path / "half" / "config.json").read_text())
    assert config == {"dtype": "float16"}


def test_convert_can_leave_everything_encoded(
    folder: Path, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    run("convert", folder, tmp_path / "out", "--no-decode")
    out = load_file(tmp_path / "out" / "model.safetensors")
    assert out.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(out[name].view(torch.uint8), tensor.view(torch.uint8))
    assert "quantization_config" in json.loads((tmp_path / "out" / "config.json").read_text())


def test_inspect_says_how_tensors_are_encoded(folder: Path) -> None:
    found = run("inspect", folder)
    assert found["totals"]["encodings"] == {
        "fp8 e4m3, blocks of 128x128": {
            "tensors": 2,
            "nbytes": 320 * 256 + 130 * 320 + 4 * (3 * 2 + 2 * 3),
        }
    }
    raw = run("inspect", folder, "--no-decode")
    assert raw["totals"]["encodings"] == {}
    assert raw["totals"]["tensors"] == 5


def deepseek(tmp_path: Path) -> tuple[Any, Path, dict[str, torch.Tensor]]:
    """A tiny DeepSeek-V3 in fp8, expert by expert, and its plain tensors."""
    config = transformers.DeepseekV3Config(
        hidden_size=64,
        intermediate_size=96,
        moe_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        kv_lora_rank=16,
        q_lora_rank=24,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
        vocab_size=80,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "plain")
    state = load_file(tmp_path / "plain" / "model.safetensors")
    tensors: dict[str, torch.Tensor] = {}
    decoded: dict[str, torch.Tensor] = {}
    for place, (name, tensor) in enumerate(state.items()):
        if not name.endswith("proj.weight"):
            tensors[name] = decoded[name] = tensor
            continue
        rows, columns = tensor.shape
        weight = random_float8(rows, columns, seed=place)
        weight = torch.where(weight.float().isnan(), 0.0, weight.float()).to(torch.float8_e4m3fn)
        scale = random_scales(-(-rows // 32), -(-columns // 32), seed=place) / 1000
        tensors[name], tensors[f"{name}_scale_inv"] = weight, scale
        decoded[name] = decoded_blocks(weight, scale, 32, 32, torch.bfloat16)
    folder = write(tmp_path / "fp8", tensors)
    said = config.to_dict()
    said["quantization_config"] = {**FP8, "weight_block_size": [32, 32]}
    said["architectures"] = ["DeepseekV3ForCausalLM"]
    (folder / "config.json").write_text(json.dumps(said))
    return config, folder, decoded


def test_experts_in_fp8_become_the_stacks_of_todays_models(tmp_path: Path) -> None:
    config, folder, decoded = deepseek(tmp_path)
    write(tmp_path / "decoded", decoded)
    read = transformers.AutoConfig.from_pretrained(folder)
    with dormant.lazy_init():
        model = transformers.AutoModelForCausalLM.from_config(read, dtype=torch.bfloat16)
        other = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    dormant.load(model, folder, missing="error")
    dormant.load(other, tmp_path / "decoded", missing="error")
    expected = other.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    dormant.save(model, tmp_path / "saved")
    said = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "quantization_config" not in said
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == decoded.keys()
    for name, tensor in decoded.items():
        assert torch.equal(saved[name], tensor), name


def test_convert_quantizes_fp8_to_nf4_in_one_pass(tmp_path: Path) -> None:
    config, _, decoded = deepseek(tmp_path)
    write(tmp_path / "decoded", decoded)
    said = config.to_dict() | {"architectures": ["DeepseekV3ForCausalLM"]}
    (tmp_path / "decoded" / "config.json").write_text(json.dumps(said))
    for name in ("fp8", "decoded"):
        run("convert", tmp_path / name, tmp_path / f"{name}-nf4", "--quantize", "nf4")
    found, expected = (
        load_file(tmp_path / f"{name}-nf4" / "model.safetensors") for name in ("fp8", "decoded")
    )
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
    said = json.loads((tmp_path / "fp8-nf4" / "config.json").read_text())
    assert said["quantization_config"]["quant_method"] == "bitsandbytes"


def test_experts_of_gpt_oss(tmp_path: Path) -> None:
    config = transformers.GptOssConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        num_local_experts=4,
        vocab_size=80,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    model = transformers.GptOssForCausalLM(config).to(torch.bfloat16)
    state = dict(model.state_dict())
    for name in [name for name in state if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = state.pop(name).shape
        state[f"{name}_blocks"] = random_bytes(experts, rows, columns // 32, 16)
        state[f"{name}_scales"] = random_bytes(experts, rows, columns // 32, seed=1) % 16 + 110
    folder = write(tmp_path, state, MXFP4)
    with dormant.lazy_init():
        lazy = transformers.GptOssForCausalLM(config).to(torch.bfloat16)
    dormant.load(lazy, folder, missing="error")
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    layer = lazy.model.layers[0].mlp.experts
    for name in ("gate_up_proj", "down_proj"):
        prefix = f"model.layers.0.mlp.experts.{name}"
        expected = convert_moe_packed_tensors(state[f"{prefix}_blocks"], state[f"{prefix}_scales"])
        assert_same(getattr(layer, name).detach(), expected)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A model whose first layer bitsandbytes has packed."""
    with dormant.lazy_init():
        model = Two()
    dormant.quantize(model, "nf4", skip=["second"])
    dormant.materialize(model)
    return write(tmp_path / "packed", model.state_dict(), BITSANDBYTES)


def test_packed_layers_take_packed_bytes(packed: Path) -> None:
    with dormant.lazy_init():
        model = Two()
    dormant.quantize(model, "nf4", skip=["second"])
    dormant.load(model, packed, missing="error")
    expected = load_file(packed / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_plain_layers_take_decoded_weights(packed: Path) -> None:
    import bitsandbytes

    with dormant.lazy_init():
        layer, model = Two(), Two()
    dormant.quantize(layer, "nf4", skip=["second"])
    dormant.load(layer, packed, missing="error")
    dormant.load(model, packed, missing="error")
    weight: Any = layer.first.weight
    expected = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
    assert_same(model.first.weight.detach(), expected)


def layers() -> torch.nn.Module:
    """A layer under the name that the page has."""
    layer = torch.nn.Linear(128, 256, bias=False, dtype=torch.bfloat16)
    mlp = torch.nn.ModuleDict({"mlp": torch.nn.ModuleDict({"up_proj": layer})})
    return torch.nn.ModuleDict(
        {"model": torch.nn.ModuleDict({"layers": torch.nn.ModuleList([mlp])})}
    )


def test_the_code_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tensors = under("model.layers.0.mlp.up_proj", fp8_blocks(256, 128))
    write(tmp_path / "DeepSeek-V3", tensors, FP8)
    with dormant.lazy_init():
        model, packed, quantized, plain_model = (layers() for _ in range(4))
    first, second = blocks("quantized_checkpoints.md")
    first.run({"dormant": dormant, "model": model})
    expected = decoded_blocks(*tensors.values(), 128, 128, torch.bfloat16)
    assert_same(next(iter(model.state_dict().values())), expected)
    dormant.quantize(packed, "nf4", skip=[])
    dormant.materialize(packed)
    write(tmp_path / "llama-nf4", packed.state_dict(), BITSANDBYTES)
    second.run({"dormant": dormant, "model": quantized, "plain_model": plain_model})
    for name, tensor in quantized.state_dict().items():
        assert torch.equal(tensor, packed.state_dict()[name]), name
