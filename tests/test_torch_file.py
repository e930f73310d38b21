"""Files of torch.save give the tensors of torch.load, bit for bit, without being read for it."""

from __future__ import annotations

import io
import struct
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

import dormant
from compare import assert_same_bits
from dormant import _C
from living import live_storages
from torch_bytes import Record, Storage, Tensor, legacy_bytes, pickled, zip_bytes

LAYOUTS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older"])

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    torch.float8_e8m0fnu,
    *(torch.complex32, torch.complex64, torch.complex128, torch.bool),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
]


def save(value: Any, folder: Path, *, zipped: bool, name: str = "model.pt") -> Path:
    path = folder / name
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def noise(dtype: torch.dtype, *size: int) -> torch.Tensor:
    """Every byte is random, so signalling NaNs and the like are among the elements."""
    count = torch.Size(size).numel() * dtype.itemsize
    data = torch.randint(0, 2 if dtype is torch.bool else 256, (count,), dtype=torch.uint8)
    return data.view(dtype).view(size)


def assert_loads_as_pytorch_does(
    path: Path, expected: dict[str, torch.Tensor] | None = None
) -> None:
    """Compares geometry before, and bits after everything comes to life at once."""
    expected = torch.load(path) if expected is None else expected
    checkpoint = dormant.open_checkpoint(path)
    state = dict(checkpoint)
    assert list(state) == list(expected)
    for name, tensor in expected.items():
        got, entry = state[name], checkpoint.entries[name]
        assert dormant.is_lazy(got), name
        facts = (got.dtype, got.shape, got.stride(), got.is_conj(), got.is_neg())
        assert facts == (
            tensor.dtype,
            tensor.shape,
            tensor.stride(),
            tensor.is_conj(),
            tensor.is_neg(),
        )
        assert (entry.dtype, entry.shape) == (tensor.dtype, tuple(tensor.shape))
        assert entry.nbytes == tensor.numel() * tensor.element_size()
        assert entry.strides == (None if tensor.is_contiguous() else tensor.stride())
    dormant.materialize(state)
    for name, tensor in expected.items():
        assert not dormant.is_lazy(state[name])
        assert_same_bits(tensor, state[name], name)
    ties = {(a, b) for a in expected for b in expected if shares(expected[a], expected[b])}
    assert ties == {(a, b) for a in state for b in state if shares(state[a], state[b])}


def shares(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.untyped_storage()._cdata == b.untyped_storage()._cdata


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(tmp_path: Path, dtype: torch.dtype, zipped: bool) -> None:
    torch.manual_seed(0)
    state = {"many": noise(dtype, 37, 5), "one": noise(dtype, 1), "scalar": noise(dtype)}
    path = save(state, tmp_path, zipped=zipped)
    if not zipped and dtype in torch.storage._new_dtypes():
        # torch.save writes it in the older layout, torch.load stumbles over its storage type.
        with pytest.raises(AttributeError, match="UntypedStorage"):
            torch.load(path)
        assert_loads_as_pytorch_does(path, state)
    else:
        assert_loads_as_pytorch_does(path)


@LAYOUTS
def test_tied_and_strided_tensors(tmp_path: Path, zipped: bool) -> None:
    whole = torch.randn(40, 30)
    state = {
        "whole": whole,
        "tied": whole,
        "row": whole[3],
        "column": whole[:, 7],
        "transposed": whole.t(),
        "every other": whole[::2, 1::3],
        "expanded": whole[5, :1].expand(6),
        "last element": whole[39, 29],
        "permuted": torch.randn(2, 3, 4).permute(2, 0, 1),
        "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "alone": torch.randn(7),
    }
    assert_loads_as_pytorch_does(save(state, tmp_path, zipped=zipped))


@LAYOUTS
def test_tensors_without_elements(tmp_path: Path, zipped: bool) -> None:
    state = {
        "none": torch.empty(0),
        "rows": torch.empty(0, 5, dtype=torch.int64),
        "columns": torch.empty(4, 0, 3),
        "of more": torch.randn(6)[2:2],
        "beside": torch.ones(2),
    }
    assert_loads_as_pytorch_does(save(state, tmp_path, zipped=zipped))


@LAYOUTS
def test_conjugates_and_negatives(tmp_path: Path, zipped: bool) -> None:
    value = torch.randn(3, 4, dtype=torch.complex64)
    negative = torch._neg_view(torch.randn(5))
    state = {"plain": value, "conjugate": value.conj(), "negative": negative}
    assert_loads_as_pytorch_does(save(state, tmp_path, zipped=zipped))


@LAYOUTS
def test_parameters_are_opened_as_plain_tensors(tmp_path: Path, zipped: bool) -> None:
    module = torch.nn.Linear(3, 2)
    path = save(dict(module.named_parameters()), tmp_path, zipped=zipped)
    checkpoint = dormant.open_checkpoint(path)
    for name, parameter in module.named_parameters():
        tensor = checkpoint[name]
        assert type(tensor) is torch.Tensor
        assert not tensor.requires_grad
        assert_same_bits(parameter.detach(), tensor)


@LAYOUTS
def test_a_tensor_with_attributes_is_opened_without_them(tmp_path: Path, zipped: bool) -> None:
    tensor = torch.ones(3)
    tensor.note = "kept by torch.load"
    path = save({"a": tensor}, tmp_path, zipped=zipped)
    assert torch.load(path)["a"].note == "kept by torch.load"
    assert dormant.open_checkpoint(path)["a"].tolist() == [1.0, 1.0, 1.0]


def test_tensors_saved_on_another_device_are_opened_on_the_cpu(tmp_path: Path) -> None:
    path = save({"a": torch.arange(3.0)}, tmp_path, zipped=False)
    path.write_bytes(path.read_bytes().replace(b"X\3\0\0\0cpu", b"X\6\0\0\0cuda:0"))
    expected = torch.load(path, map_location="cpu")["a"]
    assert_same_bits(expected, dormant.open_checkpoint(path)["a"])


def test_an_older_file_with_views_of_storages(tmp_path: Path) -> None:
    # What torch before 0.4 wrote: two storages that are parts of a third.
    data = struct.pack("<6f", *range(6))
    state = {
        "first": Tensor(Storage("root", 6, fields=(("a", 0, 2),)), (2,)),
        "second": Tensor(Storage("root", 6, fields=(("b", 2, 4),)), (3,), offset=1),
    }
    path = tmp_path / "old.pt"
    path.write_bytes(legacy_bytes(state, [("root", 6, data)]))
    assert torch.load(path)["second"].tolist() == [3.0, 4.0, 5.0]
    checkpoint = dormant.open_checkpoint(path)
    held = dict(checkpoint)
    dormant.materialize(held)
    for name, tensor in torch.load(path).items():
        assert_same_bits(tensor, held[name], name)
    at = checkpoint.entries["second"].offset
    assert at is not None
    assert path.read_bytes()[at : at + 12] == data[12:]


@LAYOUTS
def test_an_entry_says_where_the_first_element_lies(tmp_path: Path, zipped: bool) -> None:
    whole = torch.randn(8, 9)
    path = save({"x": torch.ones(3), "part": whole[2:, 4:]}, tmp_path, zipped=zipped)
    entry = dormant.open_checkpoint(path).entries["part"]
    assert entry.file == path
    assert entry.offset is not None
    data = path.read_bytes()[entry.offset : entry.offset + 4]
    assert struct.unpack("<f", data)[0] == whole[2, 4].item()
    assert entry.strides == (9, 1)


def test_a_storage_that_is_no_whole_number_of_elements(tmp_path: Path) -> None:
    storage = torch.arange(7, dtype=torch.uint8).untyped_storage()
    tensor = torch.empty(0, dtype=torch.uint16).set_(storage, 0, (1,))  # type: ignore[call-overload]
    assert_loads_as_pytorch_does(save({"a": tensor}, tmp_path, zipped=True))


# What is in a file beside tensors by name.


@LAYOUTS
@pytest.mark.parametrize("key", ["model", "state_dict", "anything"])
def test_a_mapping_in_the_mapping_is_unwrapped(tmp_path: Path, key: str, zipped: bool) -> None:
    weights = {"a": torch.randn(3), "version": 2}
    path = save({"epoch": 5, key: weights, "lr": 0.1}, tmp_path, zipped=zipped)
    checkpoint = dormant.open_checkpoint(path)
    assert list(checkpoint) == ["a"]
    assert checkpoint.extra == {"epoch": 5, "lr": 0.1, "version": 2}
    assert_same_bits(weights["a"], checkpoint["a"])


def test_a_mapping_beside_tensors_stays_beside_them(tmp_path: Path) -> None:
    path = save({"a": torch.ones(1), "inner": {"b": torch.ones(2)}}, tmp_path, zipped=True)
    with pytest.raises(ValueError, match=r"got 2: \['', 'inner'\]"):
        dormant.open_checkpoint(path)
    checkpoint = dormant.open_checkpoint(path, key="")
    assert list(checkpoint) == ["a"]
    assert checkpoint.extra["inner"]["b"].tolist() == [1.0, 1.0]


def test_several_mappings_need_a_key(tmp_path: Path) -> None:
    state = {"model": {"a": torch.ones(1)}, "ema": {"a": torch.zeros(1)}}
    path = save(state, tmp_path, zipped=True)
    with pytest.raises(ValueError, match=r"got 2: \['model', 'ema'\]\. Choose .*key='model'"):
        dormant.open_checkpoint(path)
    checkpoint = dormant.open_checkpoint(path, key="ema")
    assert checkpoint["a"].tolist() == [0.0]
    assert checkpoint.extra["model"]["a"].tolist() == [1.0]
    with pytest.raises(KeyError, match=r"no mapping 'other' .*\['model', 'ema'\]"):
        dormant.open_checkpoint(path, key="other")


@LAYOUTS
def test_the_state_of_an_optimizer_is_lazy_too(tmp_path: Path, zipped: bool) -> None:
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    saved = {"model": module.state_dict(), "optimizer": optimizer.state_dict()}
    checkpoint = dormant.open_checkpoint(save(saved, tmp_path, zipped=zipped))
    assert set(checkpoint) == {"weight", "bias"}
    state = checkpoint.extra["optimizer"]
    assert state["param_groups"] == saved["optimizer"]["param_groups"]
    moments = state["state"][0]["exp_avg"]
    assert dormant.is_lazy(moments)
    assert_same_bits(saved["optimizer"]["state"][0]["exp_avg"], moments)


def test_values_beside_tensors_that_refer_to_themselves(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"n": 1}
    loop["self"] = loop
    path = save({"a": torch.ones(1), "loop": loop}, tmp_path, zipped=True)
    extra = dormant.open_checkpoint(path).extra["loop"]
    assert extra["self"] is extra


def test_a_state_dict_beside_the_tensors_keeps_its_versions(tmp_path: Path) -> None:
    state = torch.nn.BatchNorm1d(3).state_dict()
    path = save({"model": state, "ema": state}, tmp_path, zipped=True)
    ema = dormant.open_checkpoint(path, key="model").extra["ema"]
    assert ema._metadata == state._metadata  # type: ignore[attr-defined]


class Held:
    """A class that a file may hold where the user allows it."""

    def __init__(self, value: object) -> None:
        self.value = value


def test_objects_of_classes_that_the_user_allows_are_made(tmp_path: Path) -> None:
    state = {"a": torch.ones(1), "number": Held(3), "tensor": Held(torch.ones(2))}
    path = save(state, tmp_path, zipped=True)
    with torch.serialization.safe_globals([Held]):
        checkpoint = dormant.open_checkpoint(path, foreign="error")
    assert checkpoint["a"].tolist() == [1.0]
    assert checkpoint.extra["number"].value == 3
    held = checkpoint.extra["tensor"].value
    assert dormant.is_lazy(held)
    assert held.tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match=r"test_torch_file\.Held"):
        dormant.open_checkpoint(path, foreign="error")
    assert dormant.open_checkpoint(path).extra["number"].state == {"value": 3}


def test_versions_of_modules_reach_load_state_dict(tmp_path: Path) -> None:
    # Without its version BatchNorm would take the file for an old one, and count from zero.
    saved = torch.nn.BatchNorm1d(4)
    state = saved.state_dict()
    path = save(state, tmp_path, zipped=True)
    checkpoint = dormant.open_checkpoint(path)
    assert checkpoint._metadata == state._metadata  # type: ignore[attr-defined]
    del state["num_batches_tracked"]
    path = save(state, tmp_path, zipped=True, name="without.pt")
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        torch.nn.BatchNorm1d(4).load_state_dict(torch.load(path))
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        torch.nn.BatchNorm1d(4).load_state_dict(dormant.open_checkpoint(path))


# Lifetime.


@LAYOUTS
def test_tied_tensors_share_a_storage_while_one_is_held(tmp_path: Path, zipped: bool) -> None:
    value = torch.randn(5)
    checkpoint = dormant.open_checkpoint(
        save({"a": value, "b": value[1:]}, tmp_path, zipped=zipped)
    )
    a, b = checkpoint["a"], checkpoint["b"]
    assert _C.storage_id(a) == _C.storage_id(b)
    dormant.materialize(a)
    assert not dormant.is_lazy(b)
    assert_same_bits(value[1:], b)


def test_a_checkpoint_keeps_no_tensor_alive(tmp_path: Path) -> None:
    checkpoint = dormant.open_checkpoint(save({"a": torch.ones(5)}, tmp_path, zipped=True))
    before = live_storages()
    tensor = checkpoint["a"]
    assert _C.live_storages() == before + 1
    del tensor
    assert _C.live_storages() == before


def test_a_changed_tensor_does_not_change_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = dormant.open_checkpoint(save({"a": torch.ones(5)}, tmp_path, zipped=True))
    changed = checkpoint["a"]
    changed.mul_(3)
    assert checkpoint["a"].tolist() == [1.0] * 5
    assert changed.tolist() == [3.0] * 5
    again = checkpoint["a"]
    dormant.materialize(again)
    again.zero_()
    assert checkpoint["a"].tolist() == [1.0] * 5


@LAYOUTS
def test_a_deleted_file_can_still_be_read(tmp_path: Path, zipped: bool) -> None:
    value = torch.randn(50)
    path = save({"a": value}, tmp_path, zipped=zipped)
    tensor = dormant.open_checkpoint(path)["a"]
    path.unlink()
    dormant.materialize(tensor)
    assert_same_bits(value, tensor)


def test_opening_inside_lazy_init_records_nothing(tmp_path: Path) -> None:
    value = torch.randn(4, 3)
    path = save({"a": value.t(), "b": torch.nn.Parameter(value)}, tmp_path, zipped=True)
    with dormant.lazy_init():
        checkpoint = dormant.open_checkpoint(path)
        tensor = checkpoint["a"]
    assert _C.operators(tensor) == _C.operators(checkpoint["a"])
    assert_same_bits(value.t(), tensor)


@pytest.mark.threads
def test_threads_share_a_checkpoint(tmp_path: Path) -> None:
    state = {str(i): torch.randn(1000) for i in range(40)}
    state |= {f"tied {i}": state[str(i)] for i in range(40)}
    checkpoint = dormant.open_checkpoint(save(state, tmp_path, zipped=True))
    failures: list[BaseException] = []

    def read(seed: int) -> None:
        try:
            names = [list(state)[i] for i in torch.randperm(len(state)).tolist()]
            for name in names:
                tensor = checkpoint[name]
                dormant.materialize(tensor)
                assert_same_bits(state[name], tensor, f"{name} in thread {seed}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_records_beyond_four_gigabytes(tmp_path: Path) -> None:
    """A sparse file whose sizes and offsets need the 64-bit fields of the zip format."""
    count = (5 << 30) // 4
    state = {"a": Tensor(Storage("0", count), (count,)), "b": Tensor(Storage("1", 3))}
    small = zip_bytes([Record("archive/data.pkl", pickled(state)), Record("archive/version", b"3")])
    directory_size, directory_at = struct.unpack_from("<II", small, len(small) - 10)
    path = tmp_path / "large.pt"
    with path.open("wb") as file:
        file.write(small[:directory_at])
        directory = bytearray(small[directory_at : directory_at + directory_size])
        for name, size in ((b"archive/data/0", 4 * count), (b"archive/data/1", 12)):
            begin = file.tell()
            last = struct.pack("<3f", 7.0, 8.0, 9.0)
            crc = 0
            wide = struct.pack("<HHQQ", 1, 16, size, size)
            file.write(
                struct.pack(
                    "<4s5H3I2H",
                    *(b"PK\3\4", 45, 0x800, 0, 0, 0, crc, 0xFFFFFFFF, 0xFFFFFFFF),
                    *(len(name), len(wide)),
                )
            )
            file.write(name + wide)
            file.seek(size - 12, io.SEEK_CUR)
            file.write(last)
            wide = struct.pack("<HHQQQ", 1, 24, size, size, begin)
            directory += struct.pack(
                "<4s6H3I5H2I",
                *(b"PK\1\2", 45, 45, 0x800, 0, 0, 0, crc, 0xFFFFFFFF, 0xFFFFFFFF),
                *(len(name), len(wide), 0, 0, 0, 0, 0xFFFFFFFF),
            )
            directory += name + wide
        at = file.tell()
        file.write(directory)
        end = file.tell()
        file.write(
            struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 4, 4, len(directory), at)
            + struct.pack("<4sIQI", b"PK\6\7", 0, end, 1)
            + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 4, 4, 0xFFFFFFFF, 0xFFFFFFFF, 0)
        )
    expected = torch.load(path, mmap=True)
    checkpoint = dormant.open_checkpoint(path)
    assert checkpoint.entries["b"].offset > 5 << 30  # type: ignore[operator]
    for name in ("a", "b"):
        part = checkpoint[name][-3:].clone()
        dormant.materialize(part)
        assert part.tolist() == expected[name][-3:].tolist() == [7.0, 8.0, 9.0]
    path.unlink()


# verify.


def test_verify_reads_every_byte_and_checks_every_record(tmp_path: Path) -> None:
    path = save({"a": torch.randn(3_000_000), "b": torch.ones(7)}, tmp_path, zipped=True)
    steps: list[tuple[int, int]] = []
    result = dormant.open_checkpoint(path).verify(progress=lambda *step: steps.append(step))
    assert result.files == (str(path),)
    assert result.tensors == 2
    assert result.nbytes >= 12_000_028
    assert result.unchecked_nbytes == 0
    assert steps[-1] == (result.nbytes, result.nbytes)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert "2 tensors in 1 file:" in str(result)
    assert result.to_dict()["records"] == result.records > 2


def test_verify_tells_what_has_no_checksum(tmp_path: Path) -> None:
    path = save({"a": torch.randn(30)}, tmp_path, zipped=False)
    result = dormant.open_checkpoint(path).verify()
    assert (result.records, result.unchecked_nbytes) == (0, path.stat().st_size)
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = save({"a": torch.randn(30)}, tmp_path, zipped=True)
    finally:
        torch.serialization.set_crc32_options(before)
    result = dormant.open_checkpoint(path).verify()
    assert (result.records, result.unchecked_nbytes) == (0, result.nbytes)


def test_verify_can_be_interrupted(tmp_path: Path) -> None:
    path = save({str(i): torch.randn(300) for i in range(50)}, tmp_path, zipped=True)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    checkpoint = dormant.open_checkpoint(path)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.verify(progress=stop)
    assert checkpoint.verify().tensors == 50


def test_files_of_other_writers_are_accepted(tmp_path: Path) -> None:
    """A zip file without data descriptors, alignment or a format version, as libtorch's once."""
    import zipfile

    source = io.BytesIO()
    torch.save(OrderedDict(a=torch.arange(5.0)), source)
    path = tmp_path / "repacked.pt"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in ("data.pkl", "data/0", "version"):
            new.writestr(f"archive/{name}", old.read(f"archive/{name}"))
    assert_loads_as_pytorch_does(path)
