"""The zip files of `dormant convert`, read by the standard library and by torch."""

from __future__ import annotations

import os
import pickle
import zipfile
import zlib
from pathlib import Path

import torch

from dormant.saving.zip_layout import ZipLayout


def test_records_are_found_and_aligned(tmp_path: Path) -> None:
    layout = ZipLayout()
    contents = {f"folder/{'n' * length}": bytes(range(length)) for length in range(40)}
    placed = {layout.add(name, len(data)): data for name, data in contents.items()}
    path = tmp_path / "records.zip"
    with path.open("wb") as file:
        for record, data in placed.items():
            assert record.offset % 64 == 0
            os.pwrite(file.fileno(), data, record.offset)
        for offset, header in layout.headers([zlib.crc32(data) for data in placed.values()]):
            os.pwrite(file.fileno(), header, offset)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == contents


def test_files_beyond_4_gib_are_read(tmp_path: Path) -> None:
    # The bytes are holes in the file; only their ends are written.
    count = (5 << 30) // 4

    class Key(str):
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            if isinstance(value, Key):
                return ("storage", torch.FloatStorage, str(value), "cpu", count)
            return None

    class Tensor:
        def __init__(self, key: str) -> None:
            self.key = Key(key)

        def __reduce__(self) -> tuple[object, ...]:
            rebuild = torch._utils._rebuild_tensor_v2
            return rebuild, (self.key, 0, (count,), (1,), False, {})

    path = tmp_path / "large.pt"
    layout = ZipLayout()
    with (tmp_path / "data.pkl").open("wb") as file:
        Pickler(file, protocol=2).dump({"a": Tensor("0"), "b": Tensor("1")})
    document = (tmp_path / "data.pkl").read_bytes()
    text = {layout.add("archive/data.pkl", len(document)): document}
    records = [layout.add(f"archive/data/{key}", 4 * count) for key in "01"]
    version = b"3\n"
    text[layout.add("archive/version", len(version))] = version
    with path.open("wb") as file:
        for record, data in text.items():
            os.pwrite(file.fileno(), data, record.offset)
        for number, record in enumerate(records):
            value = torch.tensor(7.0 + number).numpy().tobytes()
            os.pwrite(file.fileno(), value, record.offset + 4 * (count - 1))
        for offset, header in layout.headers([zlib.crc32(document), 0, 0, zlib.crc32(version)]):
            os.pwrite(file.fileno(), header, offset)
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("archive/data/1").file_size == 4 * count
        assert archive.read("archive/version") == version
    state = torch.load(path, mmap=True, weights_only=True)
    assert [state[name][-1].item() for name in "ab"] == [7.0, 8.0]
    assert [state[name][0].item() for name in "ab"] == [0.0, 0.0]
