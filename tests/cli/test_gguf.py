"""The command on GGUF files: looked at, verified, cast and quantized in one pass."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy
import pytest
import safetensors.torch
import torch
import transformers
from command import Cli

import dormant
from gguf_models import CASES, write_model

KINDS = gguf.GGMLQuantizationType
LLAMA = next(case for case in CASES if case.architecture == "llama")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return write_model(LLAMA, tmp_path, KINDS.Q8_0)


def test_inspect_shows_types_and_metadata(cli: Cli, path: Path) -> None:
    run = cli("inspect", path)
    assert run.code == 0
    assert "encoded as GGUF Q8_0: 15 tensors" in run.out
    assert "general.architecture: llama" in run.out
    described = json.loads(cli("inspect", path, "--json").out)
    assert described["metadata"]["llama.embedding_length"] == 64
    assert "96 elements" in described["metadata"]["tokenizer.ggml.tokens"]
    tensors = {tensor["name"]: tensor for tensor in described["tensors"]}
    assert tensors["blk.0.ffn_up.weight"]["encoding"] == "GGUF Q8_0"
    assert tensors["blk.0.ffn_up.weight"]["parts"][0]["nbytes"] == 96 * 2 * 34


def test_verify_reads_it(cli: Cli, path: Path) -> None:
    run = cli("verify", path)
    assert run.code == 0
    path.write_bytes(path.read_bytes()[:-1])
    assert cli("verify", path).code == 1


def test_convert_casts(cli: Cli, path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    assert cli("convert", path, out, "--dtype", "bfloat16").code == 0
    found = safetensors.torch.load_file(out)
    reader = gguf.GGUFReader(path)
    assert found.keys() == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        assert torch.equal(found[tensor.name], values.to(torch.bfloat16)), tensor.name


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_convert_quantizes_by_the_file_alone(
    scheme: str, cli: Cli, path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = cli("convert", path, out, "--quantize", scheme, "--dtype", "bfloat16")
    assert run.code == 0, run.err
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.bfloat16
    )
    dormant.quantize(theirs, scheme)
    dormant.save(theirs, tmp_path / "theirs")
    one = safetensors.torch.load_file(out / "model.safetensors")
    other = safetensors.torch.load_file(tmp_path / "theirs" / "model.safetensors")
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_the_float_tensor_never_exists(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        path = tmp_path / f"{rows}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        blocks = numpy.zeros((rows, 4096 // 256 * 144), numpy.uint8)
        writer.add_tensor("w", blocks, raw_dtype=KINDS.Q4_K)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        options = ["--dtype", "bfloat16", "--memory-budget", "16MiB", "--json", "--force"]
        ran = subprocess.run(
            [sys.executable, "-m", "dormant", "convert", path.name, "out.safetensors", *options],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        found: int = json.loads(ran.stdout)["peak_memory"]
        return found

    # 268 MB of floats, 134 MB of bfloat16, 38 MB of blocks.
    assert peak(16384) - peak(16) < 24 << 20
