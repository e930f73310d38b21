"""open_checkpoint: which files it opens, and that everything done to state dicts stays lazy."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import dormant
from compare import assert_same_bits
from dormant import _C, tensor_parallel

STATE = {
    "embed.weight": torch.randn(50, 16),
    "layer.weight": torch.randn(16, 16).bfloat16(),
    "layer.bias": torch.randn(16, dtype=torch.float64),
    "steps": torch.tensor(7),
}


def write(state: dict[str, torch.Tensor], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path, metadata={"format": "pt"})
    else:
        torch.save(state, path)
    return path


def index(folder: Path, name: str, shards: dict[str, dict[str, torch.Tensor]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, state in shards.items():
        write(state, folder / file)
    weights = {tensor: file for file, state in shards.items() for tensor in state}
    path = folder / name
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weights}))
    return path


def assert_holds(checkpoint: dormant.Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    state = dict(checkpoint)
    assert state.keys() == expected.keys()
    assert all(dormant.is_lazy(tensor) for tensor in state.values())
    dormant.materialize(state)
    for name, tensor in expected.items():
        assert_same_bits(tensor, state[name], name)


@pytest.fixture(params=["model.safetensors", "model.pt", "model.bin"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(STATE, tmp_path / request.param)


# Which files.


def test_a_single_file(path: Path) -> None:
    checkpoint = dormant.open_checkpoint(path)
    assert_holds(checkpoint, STATE)
    assert_holds(dormant.open_checkpoint(str(path)), STATE)
    assert checkpoint.files == (path,)
    assert checkpoint.nbytes == sum(t.numel() * t.element_size() for t in STATE.values())


def test_the_contents_tell_the_format_where_the_name_does_not(tmp_path: Path) -> None:
    for name in ("model.safetensors", "model.pt"):
        file = write(STATE, tmp_path / name)
        assert_holds(dormant.open_checkpoint(file.rename(tmp_path / "weights")), STATE)


def test_a_header_that_begins_like_a_pickle(tmp_path: Path) -> None:
    # The first byte is that of a safetensors header's length, here 0x80.
    file = write({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    (tmp_path / "weights").write_bytes(
        (0x80).to_bytes(8, "little") + data[8 : 8 + size].ljust(0x80) + data[8 + size :]
    )
    assert_holds(dormant.open_checkpoint(tmp_path / "weights"), {"a": torch.ones(1)})


@pytest.mark.parametrize(
    ("name", "shards"),
    [
        ("model.safetensors.index.json", "model-{}-of-2.safetensors"),
        ("pytorch_model.bin.index.json", "pytorch_model-{}-of-2.bin"),
        ("other.safetensors.index.json", "other-{}.safetensors"),
    ],
)
def test_an_index_and_its_folder(tmp_path: Path, name: str, shards: str) -> None:
    names = list(STATE)
    parts = [{n: STATE[n] for n in names[:2]}, {n: STATE[n] for n in names[2:]}]
    file = index(tmp_path, name, {shards.format(i): part for i, part in enumerate(parts)})
    for opened in (dormant.open_checkpoint(file), dormant.open_checkpoint(tmp_path)):
        assert_holds(opened, STATE)
        assert opened.metadata["total_size"] == 1
        assert len(opened.files) == 2
        entry = opened.entries[names[2]]
        assert entry.file == tmp_path / shards.format(1)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_an_index_that_does_not_fit_its_files(tmp_path: Path, suffix: str) -> None:
    one, two = {"a": torch.ones(1), "b": torch.ones(1)}, {"c": torch.ones(1)}
    shards = {f"1.{suffix}": one, f"2.{suffix}": two}
    file = index(tmp_path, f"model.{suffix}.index.json", shards)

    def rewrite(**weights: str) -> None:
        file.write_text(json.dumps({"metadata": {}, "weight_map": weights}))

    first, second = shards
    rewrite(a=second, b=first, c=second)
    with pytest.raises(ValueError, match=r"'a' is in .*1\..*, expected in .*2\."):
        dormant.open_checkpoint(file)
    rewrite(a=first, b=first, c=second, d=second)
    with pytest.raises(ValueError, match=r"'d' is in no file, expected in .*2\."):
        dormant.open_checkpoint(file)
    rewrite(a=first, c=second)
    with pytest.raises(ValueError, match=r"'b' of .*1\..* is not in the index"):
        dormant.open_checkpoint(file)
    rewrite(a=first, b=first, c=second)
    write({**two, "a": torch.zeros(1)}, tmp_path / second)
    with pytest.raises(ValueError, match=r"tensor 'a' is in two files"):
        dormant.open_checkpoint(file)


def test_a_folder_is_searched_in_the_order_of_transformers(tmp_path: Path) -> None:
    def only(value: float) -> dict[str, torch.Tensor]:
        return {"a": torch.full((2,), value)}

    def opened() -> float:
        return float(dormant.open_checkpoint(tmp_path)["a"][0])

    write(only(6), tmp_path / "weights.pt")
    assert opened() == 6
    write(only(5), tmp_path / "consolidated.00.pth")
    assert opened() == 5
    index(tmp_path, "pytorch_model.bin.index.json", {"part.bin": only(4)})
    assert opened() == 4
    write(only(3), tmp_path / "pytorch_model.bin")
    assert opened() == 3
    index(tmp_path, "model.safetensors.index.json", {"part.safetensors": only(2)})
    assert opened() == 2
    write(only(1), tmp_path / "model.safetensors")
    assert opened() == 1


def test_a_folder_of_links(tmp_path: Path) -> None:
    """What a download cache looks like: links to files whose names say nothing."""
    parts = {"1.safetensors": {"a": torch.ones(2)}, "2.safetensors": {"b": torch.zeros(2)}}
    index(tmp_path / "snapshot", "model.safetensors.index.json", parts)
    (tmp_path / "blobs").mkdir()
    for number, file in enumerate(sorted((tmp_path / "snapshot").iterdir())):
        blob = file.rename(tmp_path / "blobs" / f"{number:064x}")
        file.symlink_to(Path("..") / "blobs" / blob.name)
    assert_holds(
        dormant.open_checkpoint(tmp_path / "snapshot"),
        {**parts["1.safetensors"], **parts["2.safetensors"]},
    )


def test_a_folder_with_several_choices(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        write({"a": torch.ones(1)}, tmp_path / name)
    with pytest.raises(ValueError, match=r"more than one checkpoint: a\.pt, b\.pt\. Pass the path"):
        dormant.open_checkpoint(tmp_path)


def test_a_folder_with_nothing_to_open(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds no checkpoint; files: \['config\.json'\]"):
        dormant.open_checkpoint(tmp_path)


def test_nothing_at_the_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing lies at") as caught:
        dormant.open_checkpoint(tmp_path / "absent.pt")
    assert caught.value.errno == 2
    with pytest.raises(ValueError, match="got no path"):
        dormant.open_checkpoint([])


def test_several_paths_are_one_mapping(tmp_path: Path) -> None:
    names = list(STATE)
    first = write({n: STATE[n] for n in names[:1]}, tmp_path / "first.safetensors")
    second = write({n: STATE[n] for n in names[1:]}, tmp_path / "second.pt")
    checkpoint = dormant.open_checkpoint([second, first])
    assert_holds(checkpoint, STATE)
    assert list(checkpoint) == [*names[1:], names[0]]
    assert checkpoint.files == (second, first)
    assert checkpoint.verify().tensors == len(STATE)


def test_a_name_in_two_paths(tmp_path: Path) -> None:
    first = write({"a": torch.ones(1)}, tmp_path / "first.pt")
    second = write({"a": torch.ones(1)}, tmp_path / "second.pt")
    with pytest.raises(ValueError, match=r"1 tensors are in two.*'a' in .*first\.pt and .*second"):
        dormant.open_checkpoint([first, second])


# Tensor-parallel sets.

PARTS = [
    {
        "layers.0.attention.wq.weight": torch.randn(4, 6),
        "layers.0.attention.wo.weight": torch.randn(6, 3),
        "norm.weight": torch.arange(6.0),
    }
    for _ in range(3)
]
WHOLE = {
    name: torch.cat([part[name] for part in PARTS], dim)
    for name, dim in (("layers.0.attention.wq.weight", 0), ("layers.0.attention.wo.weight", 1))
} | {"norm.weight": PARTS[0]["norm.weight"]}


def write_set(folder: Path, name: str, parts: list[dict[str, torch.Tensor]] = PARTS) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for rank, part in enumerate(parts):
        path = folder / name.format(rank)
        torch.save({"model": part} if "model" in name else part, path)
        paths.append(path)
    return paths


@pytest.mark.parametrize("name", ["consolidated.{:02}.pth", "consolidated.{:02}-of-03.model.pth"])
def test_a_tensor_parallel_set_is_merged(tmp_path: Path, name: str) -> None:
    paths = write_set(tmp_path, name)
    torch.save({}, tmp_path / "consolidated.00-of-03.optimizer.pth")
    for opened in (
        dormant.open_checkpoint(tmp_path),
        dormant.open_checkpoint(paths),
        dormant.open_checkpoint(reversed(paths)),
    ):
        assert_holds(opened, WHOLE)
        assert opened.files == tuple(paths)
        entry = opened.entries["layers.0.attention.wo.weight"]
        assert (entry.shape, entry.nbytes, entry.file) == ((6, 9), 6 * 9 * 4, None)
        assert [part.file for part in entry.parts] == paths
        assert opened.verify().nbytes > 0


def test_one_part_of_a_set_is_opened_as_it_is(tmp_path: Path) -> None:
    paths = write_set(tmp_path, "consolidated.{:02}.pth")
    assert_holds(dormant.open_checkpoint(paths[1]), PARTS[1])


def test_parts_are_merged_by_the_given_rules(tmp_path: Path) -> None:
    paths = write_set(tmp_path, "consolidated.{:02}.pth", [{"x": torch.ones(2, 2)}] * 2)
    with pytest.raises(KeyError, match="no rule fits"):
        dormant.open_checkpoint(paths)
    opened = dormant.open_checkpoint(paths, rules={"x": tensor_parallel.ROW})
    assert_holds(opened, {"x": torch.ones(2, 4)})


def test_a_set_without_all_parts(tmp_path: Path) -> None:
    paths = write_set(tmp_path, "consolidated.{:02}-of-03.model.pth")
    with pytest.raises(ValueError, match=r"set of 2 parts .* lacks parts \[1\]"):
        dormant.open_checkpoint([paths[0], paths[2]])
    paths[2].unlink()
    with pytest.raises(ValueError, match=r"lacks parts \[2\]"):
        dormant.open_checkpoint(tmp_path)
    paths[1].rename(tmp_path / "consolidated.07-of-03.model.pth")
    with pytest.raises(ValueError, match=r"lacks parts \[1, 2\] and has parts \[7\] beside its 3"):
        dormant.open_checkpoint(tmp_path)


def test_two_sets_in_one_folder(tmp_path: Path) -> None:
    write_set(tmp_path, "consolidated.{:02}.pth")
    write_set(tmp_path, "consolidated.{:02}-of-03.model.pth")
    with pytest.raises(ValueError, match="more than one checkpoint"):
        dormant.open_checkpoint(tmp_path)


def test_differences_are_added_in_order(tmp_path: Path) -> None:
    base = write_set(tmp_path / "base", "consolidated.{:02}.pth")
    folders = []
    expected = dict(WHOLE)
    for number in range(2):
        parts = [{name: torch.randn_like(t) for name, t in part.items()} for part in PARTS]
        for part in parts:
            part["norm.weight"] = parts[0]["norm.weight"]
            part["layers.0.attention.wq.bias"] = torch.ones(4)
        folders.append(tmp_path / f"diff{number}")
        write_set(folders[-1], "consolidated.{:02}-of-03.model-diff.pth", parts)
        expected = tensor_parallel.apply_diffs(expected, [tensor_parallel.merge(parts)])
    checkpoint = dormant.open_checkpoint([base[0].parent, *folders])
    assert_holds(checkpoint, expected)
    entry = checkpoint.entries["norm.weight"]
    assert len(entry.parts) == 3
    assert len(checkpoint.files) == 9


def test_differences_alone_are_opened_as_they_are(tmp_path: Path) -> None:
    write_set(tmp_path, "consolidated.{:02}-of-03.model-diff.pth")
    assert_holds(dormant.open_checkpoint(tmp_path), WHOLE)


def test_differences_of_another_model(tmp_path: Path) -> None:
    write_set(tmp_path / "base", "consolidated.{:02}.pth")
    write_set(tmp_path / "diff", "consolidated.{:02}-of-02.model-diff.pth", PARTS[:2])
    with pytest.raises(
        ValueError, match=r"do not fit.*'layers\.0\.attention\.w. ?.*shape \(8, 6\)"
    ):
        dormant.open_checkpoint([tmp_path / "base", tmp_path / "diff"])


# The mapping.


def test_it_is_a_mapping(path: Path) -> None:
    checkpoint = dormant.open_checkpoint(path)
    assert sorted(checkpoint) == sorted(STATE)
    assert len(checkpoint) == 4
    assert "steps" in checkpoint
    assert "other" not in checkpoint
    assert checkpoint.get("other") is None
    assert checkpoint == checkpoint
    assert checkpoint != dormant.open_checkpoint(path)
    assert {checkpoint: 1}
    text = repr(checkpoint)
    assert str(path) in text
    assert "4 tensors" in text


def test_an_unknown_name_suggests_similar_ones(path: Path) -> None:
    with pytest.raises(KeyError, match=r"no tensor 'layer\.wieght'; similar names: \['layer\.we"):
        _ = dormant.open_checkpoint(path)["layer.wieght"]


def test_entries_and_metadata_cannot_be_changed(path: Path) -> None:
    checkpoint: Any = dormant.open_checkpoint(path)
    with pytest.raises(TypeError):
        checkpoint.entries["x"] = None
    with pytest.raises(TypeError):
        checkpoint.metadata["x"] = None


def test_metadata_of_safetensors(tmp_path: Path) -> None:
    safetensors.torch.save_file(STATE, tmp_path / "a.safetensors", metadata={"made by": "hand"})
    assert dormant.open_checkpoint(tmp_path).metadata == {"made by": "hand"}


def bytes_read() -> int:
    """What this process has read from files so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
def test_opening_reads_no_tensor_and_a_part_reads_its_own_bytes(tmp_path: Path, name: str) -> None:
    value = torch.randn(2000, 2000)
    file = write({"a": value, "b": value.half()}, tmp_path / name)
    before = bytes_read()
    tensor = dormant.open_checkpoint(file)["a"]
    assert bytes_read() - before < 100_000
    part = tensor[100:200].to(torch.float64)
    assert bytes_read() - before < 100_000
    dormant.materialize(part)
    # The part has 800,000 bytes in the file, the tensor 16,000,000.
    assert bytes_read() - before < 2_000_000
    assert_same_bits(value[100:200].double(), part)


# What people do to state dicts.


def compositions() -> dict[str, Any]:
    return {
        "a cast": lambda s: s["embed.weight"].to(torch.bfloat16),
        "a cast up": lambda s: s["layer.weight"].float(),
        "half": lambda s: s["embed.weight"].half(),
        "cat": lambda s: torch.cat([s["embed.weight"], s["layer.weight"].float()]),
        "cat of columns": lambda s: torch.cat([s["layer.weight"], s["layer.weight"]], dim=1),
        "stack": lambda s: torch.stack([s["layer.weight"], s["layer.weight"]]),
        "a chunk": lambda s: s["embed.weight"].chunk(3)[1].clone(),
        "split columns": lambda s: s["embed.weight"].split(5, dim=1)[2].contiguous(),
        "a slice": lambda s: s["embed.weight"][3:9, ::2].clone(),
        "a row": lambda s: s["embed.weight"][7].clone(),
        "a transpose": lambda s: s["embed.weight"].t().contiguous(),
        "permuted heads": lambda s: (
            s["layer.weight"].view(4, 2, 2, 16).transpose(1, 2).reshape(16, 16)
        ),
        "a view": lambda s: s["embed.weight"].view(25, 32),
        "a sum": lambda s: s["layer.bias"] * 2 + 1,
        "a scalar": lambda s: s["steps"].float(),
        "reversed rows": lambda s: s["embed.weight"].flip(0),
    }


@pytest.mark.parametrize("name", compositions())
def test_compositions_equal_eager(path: Path, name: str) -> None:
    compose = compositions()[name]
    with dormant.lazy_init():
        got = compose(dormant.open_checkpoint(path))
    assert dormant.is_lazy(got)
    dormant.materialize(got)
    assert_same_bits(compose(STATE), got)


def test_compositions_outside_the_context_stay_lazy(path: Path) -> None:
    checkpoint = dormant.open_checkpoint(path)
    renamed = {f"model.{name}": t.to(torch.float16) for name, t in checkpoint.items()}
    renamed["model.both"] = torch.cat([checkpoint["embed.weight"], checkpoint["embed.weight"]])
    assert all(dormant.is_lazy(tensor) for tensor in renamed.values())
    dormant.materialize(renamed)
    for name, tensor in STATE.items():
        assert_same_bits(tensor.half(), renamed[f"model.{name}"], name)
    assert_same_bits(torch.cat([STATE["embed.weight"]] * 2), renamed["model.both"])


class Model(torch.nn.Module):
    """Takes STATE; its initialisation runs a QR, which a profiler sees."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, 16)
        self.layer = torch.nn.Linear(16, 16)
        torch.nn.init.orthogonal_(self.layer.weight)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))


def eager_model(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model = Model()
    model.load_state_dict(state)
    return model.state_dict()


def test_a_lazy_module_stays_lazy_when_loaded(path: Path) -> None:
    with dormant.lazy_init():
        model = Model()
    model.load_state_dict(dormant.open_checkpoint(path))  # type: ignore[arg-type]
    assert all(dormant.is_lazy(p) for p in model.parameters())
    report = dormant.materialize(model)
    assert report.lazy_rate == 1.0
    for name, expected in eager_model(STATE).items():
        assert_same_bits(expected, model.state_dict()[name], name)


def test_a_real_module_takes_the_values(path: Path) -> None:
    model = Model()
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    model.load_state_dict(dormant.open_checkpoint(path))  # type: ignore[arg-type]
    for name, expected in eager_model(STATE).items():
        got = model.state_dict()[name]
        assert got.data_ptr() == before[name]
        assert_same_bits(expected, got, name)


def test_a_module_can_be_given_the_tensors_themselves(path: Path) -> None:
    with torch.device("meta"):
        model = Model()
    model.load_state_dict(dormant.open_checkpoint(path), assign=True)  # type: ignore[arg-type]
    assert dormant.is_lazy(model.embed.weight)
    dormant.materialize(model)
    for name, expected in STATE.items():
        assert_same_bits(expected, model.state_dict()[name], name)


def test_ties_of_a_torch_file_survive(tmp_path: Path) -> None:
    weight = torch.randn(9, 4)
    file = write({"embed": weight, "head": weight}, tmp_path / "model.pt")
    state = dict(dormant.open_checkpoint(file))
    assert _C.storage_id(state["embed"]) == _C.storage_id(state["head"])
    report = dormant.materialize(state)
    assert report.storages == 1
    state["embed"].zero_()
    assert state["head"].count_nonzero() == 0


def test_tensors_of_torch_load_initialise_nothing_in_vain(tmp_path: Path) -> None:
    class Large(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(300, 300)  # above the size that recording copies
            torch.nn.init.orthogonal_(self.layer.weight)

    eager = Large().state_dict()
    file = write(eager, tmp_path / "model.pt")

    def decompositions(act: Any) -> int:
        with torch.profiler.profile() as profile:
            act()
        return sum(event.count for event in profile.key_averages() if "qr" in event.key)

    with dormant.lazy_init():
        initialised, loaded = Large(), Large()
    assert decompositions(lambda: dormant.materialize(initialised)) > 0

    def load() -> None:
        loaded.load_state_dict(torch.load(file, mmap=True))
        dormant.materialize(loaded)

    assert decompositions(load) == 0
    for name, expected in eager.items():
        assert_same_bits(expected, loaded.state_dict()[name], name)


# save.


def test_a_checkpoint_is_converted_by_save(path: Path, tmp_path: Path) -> None:
    checkpoint = dormant.open_checkpoint(path)
    report = dormant.save(checkpoint, tmp_path / "out.safetensors")
    assert report.nbytes == checkpoint.nbytes
    written = safetensors.torch.load_file(tmp_path / "out.safetensors")
    assert written.keys() == STATE.keys()
    for name, expected in STATE.items():
        assert_same_bits(expected, written[name], name)


def test_strided_and_conjugated_tensors_are_saved_as_their_values(tmp_path: Path) -> None:
    value = torch.randn(5, 6, dtype=torch.complex64)
    state = {"conjugate": value.conj(), "transposed": value.t(), "row": value[2, ::2]}
    torch.save(state, tmp_path / "model.pt")
    dormant.save(dormant.open_checkpoint(tmp_path / "model.pt"), tmp_path / "out")
    written = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    for name, expected in state.items():
        assert_same_bits(expected, written[name], name)


def test_a_merged_and_cast_set_is_saved(tmp_path: Path) -> None:
    write_set(tmp_path / "set", "consolidated.{:02}.pth")
    merged = dormant.open_checkpoint(tmp_path / "set")
    dormant.save({n: t.to(torch.bfloat16) for n, t in merged.items()}, tmp_path / "o.safetensors")
    written = safetensors.torch.load_file(tmp_path / "o.safetensors")
    for name, expected in WHOLE.items():
        assert_same_bits(expected.bfloat16(), written[name], name)


CONVERT = """
import sys
import torch, dormant
from dormant.memory import highest_resident_bytes
source, target, dtype = sys.argv[1:]
dormant.save({n: t.to(torch.float16) for n, t in dormant.open_checkpoint(source).items()}
             if dtype else dormant.open_checkpoint(source), target)
print(highest_resident_bytes())
"""


def peak_of_converting(source: Path, target: Path, dtype: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", CONVERT, source, target, dtype],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.parametrize("dtype", ["", "float16"], ids=["as it is", "cast"])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_converting_takes_no_memory_for_the_model(tmp_path: Path, suffix: str, dtype: str) -> None:
    small = write({"a": torch.randn(1000)}, tmp_path / f"small.{suffix}")
    least = peak_of_converting(small, tmp_path / "small", dtype)
    values = {str(i): torch.randn(40_000_000 // 4) for i in range(4)}
    large = write(values, tmp_path / f"large.{suffix}")
    peak = peak_of_converting(large, tmp_path / "large", dtype)
    # 160 MB of weights.
    assert peak - least < 48 << 20
    converted = tmp_path / "large" / "model.safetensors"
    written = safetensors.torch.load_file(converted)
    for name in ("0", "3"):
        assert_same_bits(values[name].half() if dtype else values[name], written[name], name)
    large.unlink()
    converted.unlink()


# The document.


def test_the_code_of_the_document_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = Path(__file__).resolve().parent.parent / "docs" / "checkpoints.md"
    blocks = re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL)
    assert len(blocks) == 6
    norm = {"norm.weight": torch.randn(8), "norm.bias": torch.randn(8)}
    state = {**norm, "mlp.weight": torch.randn(6, 8)}
    write(state, tmp_path / "llama" / "model.safetensors")
    write_set(tmp_path / "base", "consolidated.{:02}.pth")
    write_set(tmp_path / "finetuned", "consolidated.{:02}-of-03.model-diff.pth")
    module = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    training: dict[str, Any] = {"model": module.state_dict(), "ema": module.state_dict()}
    training |= {"step": 12, "optimizer": optimizer.state_dict()}
    torch.save(training, tmp_path / "training.pt")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert_same_bits(state["norm.weight"], names["weight"])
    converted = safetensors.torch.load_file(tmp_path / "converted" / "model.safetensors")
    swapped = torch.cat([state["mlp.weight"][3:], state["mlp.weight"][:3]]).half()
    assert_same_bits(swapped, converted["model.mlp.weight"])
    assert not dormant.is_lazy(names["model"])
    assert_same_bits(norm["norm.bias"], names["model"].bias.detach())
    summed = names["base_and_differences"]["norm.weight"]
    assert_same_bits(PARTS[0]["norm.weight"] * 2, summed)
    assert names["step"] == 12
    assert_same_bits(training["optimizer"]["state"][0]["exp_avg"], names["moments"])
    assert "3 tensors in 1 files" in capsys.readouterr().out


def test_materialize_shows_a_file_in_place_or_copies_it(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    value = torch.randn(64, 33)
    safetensors.torch.save_file({"value": value}, path)
    for mmap, way in (("auto", "mapped"), ("always", "mapped"), ("never", "tiles")):
        tensor = dormant.open_checkpoint(path)["value"]
        report = dormant.materialize(tensor, mmap=mmap)  # type: ignore[arg-type]
        assert [each.way for each in report.tensors] == [way]
        assert_same_bits(value, tensor)
    with pytest.raises(ValueError, match="mmap"):
        dormant.materialize(tensor, mmap="maybe")  # type: ignore[arg-type]
