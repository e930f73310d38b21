"""docs/formats.md says of every format what the code does with it."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy
import pytest
import safetensors.torch
import torch
from written import write_set

import dormant
from dormant.cli.main import main
from pages import DOCS, ROOT

sys.path += [str(ROOT / "tests" / folder) for folder in ("cpp", "decode")]

import test_against_python as cpp

PAGE = (DOCS / "formats.md").read_text()
YES_OR_NO = {"yes": True, "no": False}


def table(heading: str) -> list[dict[str, str]]:
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[1:]]


FORMATS = {row["format"]: row for row in table("Files and folders")}


def shards_of_torch_files(folder: Path) -> Path:
    layer = torch.nn.Linear(3, 3)
    dormant.save(layer, folder / "a.bin")
    index = '{"metadata": {}, "weight_map": {"weight": "a.bin", "bias": "a.bin"}}'
    (folder / "pytorch_model.bin.index.json").write_text(index)
    return folder


def split_gguf(folder: Path) -> Path:
    writer = gguf.GGUFWriter(folder / "m", "llama", split_max_tensors=1)
    for name in "ab":
        writer.add_tensor(name, numpy.ones((2, 32), numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return next(iter(folder.glob("*-00001-of-00002.gguf")))


def script(folder: Path) -> Path:
    torch.jit.script(torch.nn.Linear(2, 3)).save(folder / "m.pt")
    return folder / "m.pt"


def set_of(pattern: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        write_set(folder, pattern)
        return folder

    return make


# The format of the page, and makers of examples: those that C++ reads, then those that it does not.
EXAMPLES: dict[str, list[Callable[[Path], Path]]] = {
    "safetensors": [cpp.FORMATS["safetensors"]],
    "sharded safetensors or torch.save files": [cpp.FORMATS["shards"], shards_of_torch_files],
    "torch.save, zip layout": [cpp.FORMATS["torch_file"]],
    "torch.save, layout before torch 1.6": [cpp.FORMATS["torch_file_older"]],
    "pickled modules, Lightning's `.ckpt`, TorchScript": [
        cpp.FORMATS["pickled_module"],
        cpp.FORMATS["foreign"],
        script,
    ],
    "torch.distributed.checkpoint": [
        cpp.FORMATS["distributed"],
        cpp.FORMATS["saved_as_distributed"],
    ],
    "torch.distributed.checkpoint in safetensors (`HuggingFaceStorageWriter`)": [
        cpp.FORMATS["distributed_safetensors"]
    ],
    "GGUF, also split": [cpp.FORMATS["gguf_file"], split_gguf],
    "tensor-parallel set of LLaMA": [set_of("consolidated.{:02}.pth")],
    "tensor-parallel set of LLaMA2-Accessory, and its differences": [
        set_of("consolidated.{:02}-of-03.model.pth")
    ],
}
REMOTE = "any of these behind a [URL](remote.md)"


def test_every_row_has_an_example() -> None:
    assert FORMATS.keys() == {*EXAMPLES, REMOTE}
    shown = {make for makers in EXAMPLES.values() for make in makers}
    plain = [name for name, make in cpp.FORMATS.items() if make in shown]
    assert len(plain) == 10  # the others are encodings
    for name, makers in EXAMPLES.items():
        read_in_cpp = any(make in cpp.FORMATS.values() for make in makers)
        assert YES_OR_NO[FORMATS[name]["C++ read"]] == read_in_cpp, name


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*torch.jit.script.*")
@pytest.mark.parametrize("name", EXAMPLES)
def test_a_format_is_read_verified_and_converted(name: str, tmp_path: Path) -> None:
    row = FORMATS[name]
    assert row["read"] == "yes"
    for number, make in enumerate(EXAMPLES[name]):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = make(folder)
        checkpoint = dormant.open_checkpoint(path)
        assert len(checkpoint) > 0
        assert dormant.is_lazy(dict(checkpoint))
        checked = checkpoint.verify().records > 0
        of_torch = any(str(file).endswith(".bin") for file in checkpoint.files)
        expected = of_torch if row["checksums"] == "by file" else YES_OR_NO[row["checksums"]]
        assert checked == expected
        out = tmp_path / f"{number}.safetensors"
        assert YES_OR_NO[row["convert from"]] == (main(["convert", str(path), str(out)]) == 0)
        assert safetensors.torch.load_file(out).keys() <= set(checkpoint)


# How the page says that a format is written: what follows the input of dormant convert.
OUTPUTS = {
    "`NAME.safetensors`": [["out.safetensors"]],
    "a folder, with `--max-shard-size`": [["out", "--max-shard-size", "1KB"]],
    "`NAME.pt`, `.pth`, `.bin`": [["out.pt"], ["out.pth"], ["out.bin"]],
    'a folder, with `format="dcp"` or `--format dcp`': [["out", "--format", "dcp"]],
    "a folder, with `--parts N`": [["out", "--parts", "2"]],
}
BEGINS = {
    "`NAME.safetensors`": "*.safetensors",
    "a folder, with `--max-shard-size`": "out/*.index.json",
    "`NAME.pt`, `.pth`, `.bin`": "out.[pb]*",
    'a folder, with `format="dcp"` or `--format dcp`': "out/.metadata",
    "a folder, with `--parts N`": "out/consolidated.01.pth",
}


def test_what_is_written_is_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = [row["write"] for row in FORMATS.values()]
    assert {text for text in said if text != "no"} == OUTPUTS.keys()
    weights = {"layers.0.attention.wq.weight": torch.randn(64, 8), "norm.weight": torch.ones(64)}
    source = tmp_path / "source.safetensors"
    safetensors.torch.save_file(weights, source)
    for text, outputs in OUTPUTS.items():
        for output in outputs:
            folder = tmp_path / "made"
            folder.mkdir()
            monkeypatch.chdir(folder)
            assert main(["convert", str(source), *output]) == 0
            assert list(folder.glob(BEGINS[text])), text
            found = dormant.open_checkpoint(output[0])
            for name, tensor in weights.items():
                assert torch.equal(found[name].clone(), tensor)
            shutil.rmtree(folder)


def test_the_encodings_are_those_of_the_registry() -> None:
    source = (ROOT / "csrc" / "checkpoint" / "encodings" / "registry.cpp").read_text()
    rows = re.findall(r'^ +\{"([^"]+)", \{(.*?)\}, find_\w+\},$', source, re.MULTILINE)
    expected = {name: sorted(re.findall(r'"(.*?)"', methods)) for name, methods in rows}
    assert len(expected) >= 9
    shown = {
        row["encoding"]: sorted(re.findall(r"`(.*?)`", row["`quant_method` in config.json"]))
        for row in table("Encodings")
    }
    assert shown == expected


def test_the_types_of_gguf_are_those_of_the_decoder() -> None:
    source = (ROOT / "csrc" / "decode" / "gguf_types.cpp").read_text()
    types = re.findall(r'GgufType\{\d+, "(\w+)", \d+, \d+, ([^}]*)\}', source)
    expected: dict[str, set[str]] = {"decoded": set(), "shown": set(), "raise": set()}
    for name, said in types:
        kind = "decoded" if "BlockCode" in said else "raise" if said == "kBytes" else "shown"
        expected[kind].add(name)
    listed = re.findall(r"^- GGUF types that (?:are )?(\w+)(.*?):(.*?)\.$", PAGE, re.M | re.DOTALL)
    assert {kind: {*re.findall(r"\w+", names)} for kind, _, names in listed} == expected
