"""Checkpoints of every format, opened, loaded and converted while one thing after another fails.

As in `test_faults.py`: what fails half-way changes nothing that can be seen, and succeeds when it
is tried again.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import dormant
from compare import assert_same_bits
from dormant import _C
from dormant.checkpoint import ranges
from dormant.cli.main import main
from every_format import FORMATS, Formats, Packable, Written, every_format
from faults import (
    Kind,
    bits_of,
    files_of,
    fingerprint,
    named_as_written,
    open_files,
    sweep,
)
from range_server import Answer, Request, serving
from reachable import holdings

LOCAL = [name for name in FORMATS if name != "remote"]
# What is read from a server are no reads of files.
READ_AND_ALLOCATE = [
    (name, kind)
    for name in FORMATS
    for kind in ("read", "allocate")
    if (name, kind) != ("remote", "read")
]


class Model(Packable):
    """With a buffer, a counter, and a tensor that no checkpoint has."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(64)
        self.own = nn.Parameter(torch.randn(30, 7))


def eager(seed: int = 5) -> Model:
    torch.manual_seed(seed)
    return Model()


def lazy(seed: int = 5) -> Model:
    torch.manual_seed(seed)
    with dormant.lazy_init():
        return Model()


def mixed() -> Model:
    model = lazy()
    dormant.materialize([model.linear, model.norm.running_mean])
    return model


BUILDS: dict[str, Callable[[], Model]] = {"lazy": lazy, "real": eager, "mixed": mixed}


@pytest.fixture(autouse=True)
def no_faults() -> Iterator[None]:
    yield
    _C.set_faults("")


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Formats]:
    state = {name: tensor.detach().clone() for name, tensor in eager(seed=6).state_dict().items()}
    del state["own"]
    with every_format(tmp_path_factory.mktemp("formats"), state) as all_of_them:
        yield all_of_them


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that failed are tried again soon."""
    monkeypatch.setattr(ranges, "_FIRST_DELAY", 0.001)


def loaded(written: Written) -> Model:
    """What the model is in plain PyTorch, after it has taken the state."""
    expected = eager()
    missing, unexpected = expected.load_state_dict(written.state, strict=False)
    assert not unexpected
    assert set(missing) <= {"own", "norm.num_batches_tracked"}
    return expected


def load(model: nn.Module, written: Written) -> None:
    dormant.load(model, written.path, missing="init", progress=False)


def assert_loaded(expected: nn.Module, model: nn.Module) -> None:
    for name, tensor in expected.state_dict().items():
        found = model.state_dict()[name]
        assert not dormant.is_lazy(found), name
        assert_same_bits(tensor, found, name)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_the_values_that_it_was_written_with(name: str, formats: Formats) -> None:
    model = lazy()
    load(model, formats[name])
    assert_loaded(loaded(formats[name]), model)


@pytest.mark.parametrize(("name", "kind"), READ_AND_ALLOCATE)
def test_a_checkpoint_that_cannot_be_opened_or_read_leaves_no_file_open(
    name: str, kind: Kind, formats: Formats
) -> None:
    written = formats[name]
    expected = loaded(written).state_dict()
    descriptors: list[int | None] = []

    def values() -> dict[str, torch.Tensor]:
        tensors = dict(dormant.open_checkpoint(written.path))
        dormant.materialize(tensors, mmap="never", progress=False)
        return tensors

    def prepare() -> None:
        descriptors[:] = [open_files()]

    def check(_: None, error: BaseException | None) -> None:
        while error is not None:  # frames of its traceback have the checkpoint
            error.__traceback__ = None
            error = error.__cause__ or error.__context__
        if name != "remote":  # connections are kept for the next request
            assert open_files() == descriptors[0]
        for key, tensor in values().items():
            assert_same_bits(expected[key], tensor.to(expected[key].dtype), key)

    assert sweep(kind, prepare, lambda _: values(), check) > 0


@pytest.mark.parametrize("build", ["lazy", "mixed"])
@pytest.mark.parametrize(("name", "kind"), READ_AND_ALLOCATE)
def test_a_load_of_any_format_that_fails_leaves_the_model_as_it_was(
    name: str, kind: Kind, build: str, formats: Formats
) -> None:
    written = formats[name]
    expected = loaded(written)
    before: dict[str, Any] = {}

    def prepare() -> Model:
        model = BUILDS[build]()
        before["fingerprint"], before["bits"] = fingerprint(model), bits_of(model)
        return model

    def check(model: Model, error: BaseException | None) -> None:
        if error is not None:
            assert_as_before(model, error, before)
            load(model, written)
        assert_loaded(expected, model)

    assert sweep(kind, prepare, lambda model: load(model, written), check) > 0


def assert_as_before(model: nn.Module, error: BaseException, before: dict[str, Any]) -> None:
    assert fingerprint(model) == before["fingerprint"]
    for name, bits in before["bits"].items():
        if not named_as_written(error, name):
            assert_same_bits(bits, holdings(model).tensors[name], name)


@pytest.mark.parametrize("lazily", [True, False], ids=["lazy", "real"])
def test_a_load_from_a_server_that_goes_away_leaves_the_model_as_it_was(
    lazily: bool, tmp_path: Path
) -> None:
    """From the n-th request on, each is refused."""
    torch.manual_seed(0)
    state = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(6))).state_dict()
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    with serving(tmp_path) as server:
        url = f"{server.url}/model.safetensors"
        n = 0
        while True:
            torch.manual_seed(1)
            with dormant.lazy_init() if lazily else contextlib.nullcontext():
                model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(6)))
            before = {"fingerprint": fingerprint(model), "bits": bits_of(model)}
            answered = itertools.count()

            def refuse(request: Request, n: int = n, answered: Any = answered) -> Answer | None:
                return Answer(status=403) if next(answered) >= n else None

            server.misbehave = refuse
            error = None
            try:
                dormant.load(model, url, progress=False)
            except OSError as caught:
                error = caught
            server.misbehave = lambda request: None
            if error is not None:
                assert "403" in str(error)
                assert_as_before(model, error, before)
                dormant.load(model, url, progress=False)
            for name, tensor in state.items():
                assert_same_bits(tensor, model.state_dict()[name], name)
            if error is None:
                break
            n += 1
    assert n > 2


@pytest.mark.parametrize("name", ["fp8", "gptq"])
def test_a_configuration_that_is_there_and_cannot_be_read_is_an_error(
    name: str, formats: Formats
) -> None:
    folder = Path(formats[name].path)
    with serving(folder) as server:
        tensors = set(dormant.open_checkpoint(server.url + "/model.safetensors"))
        assert tensors == set(formats[name].state)
        server.misbehave = lambda request: (
            Answer(status=500) if request.name == "config.json" else None
        )
        with pytest.raises(OSError, match="500"):
            dormant.open_checkpoint(server.url + "/model.safetensors")


# ---- convert


def convert(source: Path, target: Path, *options: str) -> int:
    return main(["convert", str(source), str(target), "--force", *options], progress=False)


CONVERSIONS = [
    ("fp8", ()),
    ("mxfp4", ("--dtype", "float16")),
    ("gptq", ()),
    ("gguf", ()),
    ("foreign", ()),
    ("distributed", ()),
    ("distributed", ("--format", "dcp")),
    ("foreign", ("--format", "dcp")),
    ("remote", ()),
]


@pytest.mark.parametrize("kind", ["read", "write", "allocate"])
@pytest.mark.parametrize(("name", "options"), CONVERSIONS, ids=str)
def test_a_conversion_that_fails_keeps_the_earlier_files(
    name: str,
    options: tuple[str, ...],
    kind: Kind,
    formats: Formats,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    written = formats[name]
    folder = tmp_path / "converted"
    earlier = {"earlier": torch.ones(3)}
    kept_as: Any = "dcp" if "dcp" in options else None
    codes: list[int] = []

    def prepare() -> dict[str, bytes]:
        for path in folder.iterdir() if folder.exists() else ():
            path.unlink()
        dormant.save(earlier, folder, format=kept_as, progress=False)
        return files_of(folder)

    def attempt(_: object) -> None:
        codes.append(convert(written.path, folder, *options))

    def check(before: dict[str, bytes], error: BaseException | None) -> None:
        assert error is None
        if codes[-1] != 0:
            said = capsys.readouterr().err
            assert os.strerror(WHY[kind]) in said or "memory" in said, said
            assert files_of(folder) == before
            assert convert(written.path, folder, *options) == 0
        assert not [path.name for path in tmp_path.iterdir() if path.name != "converted"]
        found = dormant.open_checkpoint(folder)
        assert set(found) == set(written.state)
        for key, tensor in written.state.items():
            wanted = torch.float16 if "float16" in options and tensor.is_floating_point() else None
            assert_same_bits(tensor.to(wanted or found[key].dtype), found[key].clone(), key)

    faults = sweep(kind, prepare, attempt, check)
    assert faults > 0 or name == "remote" or kind == "allocate"


WHY = {"read": errno.EIO, "write": errno.ENOSPC, "allocate": errno.ENOMEM}
