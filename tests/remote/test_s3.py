"""S3, as moto serves it; where s3fs and moto are not installed, nothing of this is tested."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

import dormant
from compare import assert_same_bits

s3fs = pytest.importorskip("s3fs")
server = pytest.importorskip("moto.server")

STATE = {"a": torch.randn(1000, 1000), "b": torch.randn(3000, 2000)}


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    moto = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    url = f"http://{host}:{port}"
    # What earlier tests put there is the process's.
    urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset", method="POST")).close()
    yield {"endpoint_url": url}
    moto.stop()


@pytest.fixture
def bucket(options: dict[str, str], tmp_path: Path) -> s3fs.S3FileSystem:
    filesystem = s3fs.S3FileSystem(**options)
    filesystem.mkdir("bucket")
    filesystem.pipe("bucket/one/model.safetensors", safetensors.torch.save(STATE))
    dormant.save(STATE, tmp_path / "shards", max_shard_size=5 << 20)
    for path in (tmp_path / "shards").iterdir():
        filesystem.pipe(f"bucket/shards/{path.name}", path.read_bytes())
    return filesystem


@pytest.mark.parametrize("place", ["one/model.safetensors", "one", "shards"])
def test_objects_are_files_and_prefixes_folders(
    place: str, bucket: s3fs.S3FileSystem, options: dict[str, str]
) -> None:
    state = dict(dormant.open_checkpoint(f"s3://bucket/{place}", storage_options=options))
    dormant.materialize(state)
    assert state.keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert_same_bits(tensor, state[name], name)


def test_an_object_that_was_replaced_is_noticed(
    bucket: s3fs.S3FileSystem, options: dict[str, str]
) -> None:
    tensor = dormant.open_checkpoint("s3://bucket/one", storage_options=options)["a"]
    bucket.pipe(
        "bucket/one/model.safetensors",
        safetensors.torch.save({name: t + 1 for name, t in STATE.items()}),
    )
    with pytest.raises(ValueError, match=r"has ETag .* as when it was opened"):
        dormant.materialize(tensor)
    assert dormant.is_lazy(tensor)


def test_what_is_not_there(bucket: s3fs.S3FileSystem, options: dict[str, str]) -> None:
    for url in ("s3://bucket/absent", "s3://absent/model"):
        with pytest.raises(FileNotFoundError, match=f"no such file or folder: {url}"):
            dormant.open_checkpoint(url, storage_options=options)
