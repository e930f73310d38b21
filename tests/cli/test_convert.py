"""What `dormant convert` writes is compared with what torch, safetensors and transformers do."""

from __future__ import annotations

import errno
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import bitsandbytes
import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint
import transformers
from command import Cli

import dormant
from compare import assert_same_bits
from dormant.cli.main import main


def assert_same_state(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_same_bits(tensor, got[name], name)


def whole(llama: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(llama / "model.safetensors")


def test_a_torch_file_becomes_safetensors_and_back(cli: Cli, tmp_path: Path) -> None:
    state = {
        "matrix": torch.arange(12.0).view(3, 4).t(),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 2),
        "half": torch.randn(5).to(torch.bfloat16),
        "flags": torch.tensor([True, False]),
        "complex": torch.randn(3, dtype=torch.complex64),
    }
    torch.save({"model": state}, tmp_path / "in.pt")
    assert cli("convert", tmp_path / "in.pt", tmp_path / "out.safetensors").code == 0
    assert_same_state(
        safetensors.torch.load_file(tmp_path / "out.safetensors"),
        {name: tensor.contiguous() for name, tensor in state.items()},
    )
    assert cli("convert", tmp_path / "out.safetensors", tmp_path / "back.bin").code == 0
    for mapped in (False, True):
        back = torch.load(tmp_path / "back.bin", weights_only=True, mmap=mapped)
        assert_same_state(back, {name: tensor.contiguous() for name, tensor in state.items()})
    assert cli("verify", tmp_path / "back.bin").code == 0


def test_a_folder_of_ranks_is_made_and_read(cli: Cli, tmp_path: Path, llama: Path) -> None:
    assert cli("convert", llama, tmp_path / "dcp", "--format", "dcp").code == 0
    assert (tmp_path / "dcp" / ".metadata").is_file()
    assert (tmp_path / "dcp" / "config.json").is_file()
    loaded = {name: torch.empty_like(tensor) for name, tensor in whole(llama).items()}
    torch.distributed.checkpoint.load(loaded, checkpoint_id=tmp_path / "dcp")
    assert_same_state(loaded, whole(llama))
    assert cli("verify", tmp_path / "dcp").code == 0
    shown = cli("inspect", tmp_path / "dcp", "--json").json
    assert shown["totals"]["tensors"] == len(loaded)
    assert shown["duplicates"] == []
    run = cli("convert", tmp_path / "dcp", tmp_path / "back.safetensors", "--memory-budget", "4MiB")
    assert run.code == 0
    assert_same_state(safetensors.torch.load_file(tmp_path / "back.safetensors"), whole(llama))
    assert cli("convert", llama, tmp_path / "m.pt", "--format", "dcp").code == 2
    assert cli("convert", llama, tmp_path / "x", "--format", "dcp", "--parts", "2").code == 2


def test_tied_tensors_share_their_bytes_in_a_torch_file(cli: Cli, tmp_path: Path) -> None:
    tied = torch.arange(6.0)
    torch.save({"a": tied, "b": tied, "c": tied.clone()}, tmp_path / "in.pt")
    arguments = ("--dtype", "float16")
    assert cli("convert", tmp_path / "in.pt", tmp_path / "out.pt", *arguments).code == 0
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    assert out["a"].data_ptr() == out["b"].data_ptr() != out["c"].data_ptr()
    assert_same_bits(tied.half(), out["a"], "a")


def test_a_folder_is_cast_and_sharded_and_transformers_loads_it(
    cli: Cli, tmp_path: Path, llama: Path
) -> None:
    out = tmp_path / "out"
    run = cli("convert", llama, out, "--dtype", "bfloat16", "--max-shard-size", "100KB", "--json")
    assert run.code == 0
    assert (out / "model-00001-of-00002.safetensors").is_file()
    assert {Path(file["path"]).name for file in run.json["files"]} == {
        path.name for path in out.iterdir()
    }
    model = transformers.LlamaForCausalLM.from_pretrained(out, dtype="auto")
    assert_same_state(
        dict(model.state_dict()),
        {name: tensor.to(torch.bfloat16) for name, tensor in whole(llama).items()},
    )


def test_parts_are_the_runs_of_the_whole_and_merge_back(cli: Cli, tmp_path: Path) -> None:
    weights = {
        "layers.0.attention.wq.weight": torch.randn(6, 4),
        "layers.0.attention.wo.weight": torch.randn(4, 6),
        "norm.weight": torch.randn(4),
    }
    torch.save(weights, tmp_path / "whole.pt")
    parts = tmp_path / "parts"
    assert cli("convert", tmp_path / "whole.pt", parts, "--parts", "3").code == 0
    for rank in range(3):
        part = torch.load(parts / f"consolidated.{rank:02}.pth", weights_only=True)
        assert_same_state(
            part,
            {
                "layers.0.attention.wq.weight": weights["layers.0.attention.wq.weight"].chunk(3)[
                    rank
                ],
                "layers.0.attention.wo.weight": weights["layers.0.attention.wo.weight"]
                .chunk(3, 1)[rank]
                .contiguous(),
                "norm.weight": weights["norm.weight"],
            },
        )
    # Fewer parts over more: the third must not stay.
    two = ("--parts", "2", "--force")
    assert cli("convert", tmp_path / "whole.pt", parts, *two).code == 0
    assert sorted(path.name for path in parts.iterdir()) == [
        "consolidated.00.pth",
        "consolidated.01.pth",
    ]
    assert cli("convert", parts, tmp_path / "merged.safetensors").code == 0
    assert_same_state(safetensors.torch.load_file(tmp_path / "merged.safetensors"), weights)


def test_names_and_prefixes_are_renamed(cli: Cli, tmp_path: Path) -> None:
    torch.save({"module.a": torch.zeros(1), "b": torch.ones(1)}, tmp_path / "in.pt")
    out = tmp_path / "out.safetensors"
    assert (
        cli("convert", tmp_path / "in.pt", out, "--rename", "module.=", "--rename", "b=c").code == 0
    )
    assert sorted(safetensors.torch.load_file(out)) == ["a", "c"]


def test_a_renaming_of_nothing_is_refused(cli: Cli, tmp_path: Path) -> None:
    torch.save({"layer.a": torch.zeros(1)}, tmp_path / "in.pt")
    for renaming in ("layer=x", "a=x", "layers.=x"):
        run = cli("convert", tmp_path / "in.pt", tmp_path / "out.pt", "--rename", renaming)
        assert run.code == 2
        assert f"--rename {renaming}: no tensor" in run.err


def test_a_renaming_that_makes_two_tensors_one_is_refused(cli: Cli, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1), "b": torch.ones(1)}, tmp_path / "in.pt")
    run = cli("convert", tmp_path / "in.pt", tmp_path / "out.pt", "--rename", "a=b")
    assert run.code == 1
    assert "'a' and 'b' the same name 'b'" in run.err
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_a_quantized_folder_is_what_transformers_quantizes(
    cli: Cli, tmp_path: Path, llama: Path, scheme: str
) -> None:
    # The schemes have the defaults of bitsandbytes; a BitsAndBytesConfig has others.
    config = transformers.BitsAndBytesConfig(
        load_in_4bit=scheme == "nf4",
        load_in_8bit=scheme == "int8",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
    )
    expected = transformers.LlamaForCausalLM.from_pretrained(
        llama, dtype=torch.bfloat16, quantization_config=config
    )
    out = tmp_path / "out"
    run = cli("convert", llama, out, "--quantize", scheme, "--dtype", "bfloat16", "--json")
    assert run.code == 0
    assert run.json["left_out"] == []
    again = transformers.LlamaForCausalLM.from_pretrained(out, dtype=torch.bfloat16)
    kind = bitsandbytes.nn.Linear4bit if scheme == "nf4" else bitsandbytes.nn.Linear8bitLt
    assert type(again.model.layers[0].mlp.up_proj) is kind
    assert_same_state(dict(again.state_dict()), dict(expected.state_dict()))


def test_a_training_checkpoint_is_quantized_by_a_configuration_elsewhere(
    cli: Cli, tmp_path: Path, llama: Path
) -> None:
    state = {f"module.{name}": tensor for name, tensor in whole(llama).items()}
    torch.save({"model": state, "step": 3}, tmp_path / "training.pt")
    arguments = ("--quantize", "nf4", "--dtype", "bfloat16", "--json")
    assert cli("convert", llama, tmp_path / "expected", *arguments).code == 0
    out = tmp_path / "out"
    chosen = ("--key", "model", "--rename", "module.=", "--config", llama)
    run = cli("convert", tmp_path / "training.pt", out, *chosen, *arguments)
    assert run.code == 0, run.err
    expected = tmp_path / "expected"
    assert {path.name for path in out.iterdir()} == {path.name for path in expected.iterdir()}
    for path in out.iterdir():
        assert path.read_bytes() == (expected / path.name).read_bytes(), path.name


def test_a_quantized_folder_has_the_generation_settings_of_the_source(
    cli: Cli, tmp_path: Path, llama: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(llama, copy)
    settings = transformers.GenerationConfig(temperature=0.25, do_sample=True)
    settings.save_pretrained(copy)
    assert cli("convert", copy, tmp_path / "out", "--quantize", "int8").code == 0
    again = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert again.temperature == 0.25


def test_names_that_do_not_fit_the_configuration_are_listed(
    cli: Cli, tmp_path: Path, llama: Path
) -> None:
    state = whole(llama)
    state["model.other.weight"] = state.pop("model.norm.weight")
    safetensors.torch.save_file(state, tmp_path / "in.safetensors")
    arguments = ("--quantize", "nf4", "--config", llama / "config.json")
    run = cli("convert", tmp_path / "in.safetensors", tmp_path / "out", *arguments)
    assert run.code == 1
    assert "model.norm.weight" in run.err
    assert "model.other.weight" in run.err
    assert "--rename" in run.err
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]


def test_tied_tensors_of_merged_parts_are_one(cli: Cli, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    for rank in range(2):
        tied = torch.randn(3, 2)
        other = torch.randn(3, 2)
        part = {"a.wq.weight": tied, "b.wq.weight": tied, "c.wq.weight": other}
        torch.save(part, parts / f"consolidated.{rank:02}.pth")
    for arguments in ((), ("--dtype", "bfloat16")):
        out = tmp_path / "whole.pt"
        assert cli("convert", parts, out, "--force", *arguments).code == 0
        state = torch.load(out, weights_only=True)
        pointers = [state[f"{name}.wq.weight"].data_ptr() for name in "abc"]
        assert pointers[0] == pointers[1] != pointers[2]
    assert cli("convert", parts, tmp_path / "whole.safetensors").code == 0
    assert len(safetensors.torch.load_file(tmp_path / "whole.safetensors")) == 2


def test_strided_tensors_become_dense_in_a_torch_file(cli: Cli, tmp_path: Path) -> None:
    # Larger than what the tile engine goes through again for each tile.
    state = {
        "transposed": torch.randn(700, 300).t(),
        "strided": torch.randn(500, 600)[:, ::3],
        "conjugated": torch.randn(50, dtype=torch.complex64).conj(),
    }
    torch.save(state, tmp_path / "in.pt")
    budget = ("--memory-budget", "1MiB")
    assert cli("convert", tmp_path / "in.pt", tmp_path / "out.pt", *budget).code == 0
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    assert out["transposed"].stride() == state["transposed"].stride()
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in out.values())
    expected = {name: tensor.resolve_conj().contiguous() for name, tensor in state.items()}
    assert_same_state(out, expected)
    assert cli("verify", tmp_path / "out.pt").code == 0


@pytest.mark.parametrize("out", ["out.pt", "out.safetensors"])
def test_progress_reaches_the_end(tmp_path: Path, out: str) -> None:
    torch.save({"a": torch.zeros(1000), "b": torch.zeros(3)}, tmp_path / "in.pt")
    steps: list[tuple[int, int]] = []
    arguments = ["convert", str(tmp_path / "in.pt"), str(tmp_path / out)]
    assert main(arguments, progress=lambda *step: steps.append(step)) == 0
    assert steps == sorted(steps)
    assert steps[-1] == (4012, 4012)


@pytest.mark.parametrize("out", ["out.pt", "out.safetensors", "folder", "new/folder/out.pt"])
def test_a_full_device_leaves_nothing(cli: Cli, tmp_path: Path, out: str) -> None:
    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "in.pt")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        run = cli("convert", tmp_path / "in.pt", tmp_path / out, "--json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert run.code == 3
    assert run.json["error"]["errno"] == errno.EFBIG
    assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]


@pytest.mark.parametrize("out", ["out.pt", "out.safetensors"])
def test_what_the_device_has_no_room_for_is_not_begun(cli: Cli, tmp_path: Path, out: str) -> None:
    # A file of a kilobyte: one element, repeated by a stride of 0.
    torch.save({"a": torch.ones(1).as_strided((1 << 50,), (0,))}, tmp_path / "in.pt")
    run = cli("convert", tmp_path / "in.pt", tmp_path / out, "--json")
    assert (run.code, run.json["error"]["errno"]) == (3, errno.ENOSPC)
    assert [path.name for path in tmp_path.iterdir()] == ["in.pt"]


def test_nothing_is_overwritten_unless_forced(cli: Cli, tmp_path: Path, llama: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes").write_text("mine")
    run = cli("convert", llama, out)
    assert run.code == 2
    assert "--force" in run.err
    assert [path.name for path in out.iterdir()] == ["notes"]
    assert cli("convert", llama, out, "--force").code == 0
    assert (out / "notes").read_text() == "mine"
    assert_same_state(safetensors.torch.load_file(out / "model.safetensors"), whole(llama))


@pytest.mark.parametrize("out", [".", "link"])
def test_an_empty_folder_that_nothing_can_replace_gets_the_files(
    cli: Cli, tmp_path: Path, llama: Path, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder if out == "." else tmp_path)
    assert cli("convert", llama / "model.safetensors", out).code == 0
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
    assert_same_state(safetensors.torch.load_file(folder / "model.safetensors"), whole(llama))


def test_an_empty_folder_is_empty_after_an_error(cli: Cli, tmp_path: Path, llama: Path) -> None:
    data = (llama / "model.safetensors").read_bytes()
    (tmp_path / "in.safetensors").write_bytes(data[:-1])
    folder = tmp_path / "folder"
    folder.mkdir()
    assert cli("convert", tmp_path / "in.safetensors", folder).code == 1
    assert not any(folder.iterdir())


@pytest.mark.parametrize("inside", ["", "model.safetensors"])
def test_what_is_read_is_never_written(cli: Cli, tmp_path: Path, llama: Path, inside: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(llama, copy)
    run = cli("convert", copy / "model.safetensors", copy / inside, "--force")
    assert run.code == 2
    assert_same_state(safetensors.torch.load_file(copy / "model.safetensors"), whole(llama))


def test_a_damaged_input_leaves_no_output(cli: Cli, tmp_path: Path, llama: Path) -> None:
    data = (llama / "model.safetensors").read_bytes()
    (tmp_path / "in.safetensors").write_bytes(data[:-1])
    assert cli("convert", tmp_path / "in.safetensors", tmp_path / "out").code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]


def test_scales_of_a_quantized_checkpoint_are_not_cast(
    cli: Cli, tmp_path: Path, llama: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(llama, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "quantization_config": {}}))
    run = cli("convert", copy, tmp_path / "out", "--dtype", "float16")
    assert run.code == 2
    assert "scales" in run.err


def bitsandbytes_state(scheme: str) -> dict[str, torch.Tensor]:
    with dormant.lazy_init():
        model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LayerNorm(64)).half()
    dormant.quantize(model, scheme, skip=())
    dormant.materialize(model)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def other_quantizers() -> dict[str, torch.Tensor]:
    floats = torch.randn(4, 4)
    return {
        "fp8.weight": floats.to(torch.float8_e4m3fn),
        "fp8.weight_scale_inv": torch.randn(1),
        "fp8.input_scale": torch.randn(()),
        "fp8.bias": torch.randn(4),
        "gptq.qweight": torch.zeros(4, 4, dtype=torch.int32),
        "gptq.scales": torch.randn(1, 4).half(),
        "mx.blocks": torch.zeros(4, 4, dtype=torch.uint8),
        "mx.scales": torch.zeros(4, 1, dtype=torch.uint8).view(torch.float8_e8m0fnu),
        "quanto.weight._data": torch.zeros(4, 4, dtype=torch.int8),
        "quanto.weight._scale": torch.randn(4, 1),
        "plain.weight": floats.clone(),
        "plain.logit_scale": torch.randn(()),
        "plain.num_batches_tracked": torch.tensor(3),
        "number.weight": floats.to(torch.float8_e5m2),
    }


@pytest.mark.parametrize("out", ["out.safetensors", "out.pt"])
@pytest.mark.parametrize("kind", ["nf4", "int8", "others"])
def test_what_belongs_to_quantized_weights_is_not_cast(
    cli: Cli, tmp_path: Path, kind: str, out: str
) -> None:
    state = other_quantizers() if kind == "others" else bitsandbytes_state(kind)
    safetensors.torch.save_file(state, tmp_path / "in.safetensors")
    arguments = ("--dtype", "bfloat16", "--no-decode")
    run = cli("convert", tmp_path / "in.safetensors", tmp_path / out, *arguments)
    assert run.code == 0, run.err
    cast = {
        *("0.bias", "1.weight", "1.bias"),
        *("fp8.bias", "plain.weight", "plain.logit_scale", "number.weight"),
    }
    got = dormant.open_checkpoint(tmp_path / out, decode=False)
    assert got.keys() == state.keys()
    for name, tensor in state.items():
        expected = tensor.to(torch.bfloat16) if name in cast else tensor
        assert_same_bits(expected.view(-1).view(torch.uint8), bytes_of(got[name]), name)
        assert got[name].dtype == expected.dtype, name


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone().view(-1).view(torch.uint8)


def test_no_tensor_is_in_memory_whole(tmp_path: Path) -> None:
    def peak(elements: int) -> int:
        torch.save({"weight": torch.zeros(elements).view(-1, 100).t()}, tmp_path / "in.pt")
        command = ["convert", "in.pt", "out.pt", "--json", "--force", "--memory-budget", "8MiB"]
        ran = subprocess.run(
            [sys.executable, "-m", "dormant", *command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        found: int = json.loads(ran.stdout)["peak_memory"]
        return found

    assert peak(25_000_000) - peak(1000) < 24 << 20  # of 100 MB


def test_a_tensor_beside_the_state_dict_does_not_hide_it(cli: Cli, tmp_path: Path) -> None:
    state = {"weight": torch.ones(2, 2), "bias": torch.zeros(2)}
    torch.save({"state_dict": state, "best_acc1": torch.tensor(76.1)}, tmp_path / "in.pt")
    assert cli("convert", tmp_path / "in.pt", tmp_path / "out.safetensors").code == 0
    assert_same_state(safetensors.torch.load_file(tmp_path / "out.safetensors"), state)


@pytest.mark.parametrize("name", ["out.gguf", "out.onnx", "out.SAFETENSORS"])
def test_a_suffix_of_another_format_is_refused(
    cli: Cli, tmp_path: Path, llama: Path, name: str
) -> None:
    run = cli("convert", llama, tmp_path / name)
    assert run.code == 2
    assert f"{Path(name).suffix!r} is not an output format" in run.err
    assert not (tmp_path / name).exists()
    (tmp_path / name).mkdir()
    assert cli("convert", llama, tmp_path / name).code == 0
    assert cli("convert", llama, tmp_path / "llama-3.1").code == 0
