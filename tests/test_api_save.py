"""`save`: files equal to those of eager construction, lazy tensors stay lazy, all files or none."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import safetensors.torch
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import dormant
from dormant.saving.safetensors_header import lay_out_file
from living import live_storages

State = dict[str, torch.Tensor]

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float8_e5m2,
    torch.float8_e4m3fn,
    torch.float8_e5m2fnuz,
    torch.float8_e4m3fnuz,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
]


def lazily(build: Callable[[], object]) -> object:
    torch.manual_seed(3)
    with dormant.lazy_init():
        return build()


def eagerly(build: Callable[[], object]) -> object:
    torch.manual_seed(3)
    return build()


def file_of(state: State, path: Path) -> bytes:
    """What the format's own library writes for eager tensors."""
    contiguous = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    safetensors.torch.save_file(contiguous, path, metadata={"format": "pt"})
    return path.read_bytes()


def assert_same_state(got: State, expected: State) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype is tensor.dtype
        assert got[name].shape == tensor.shape
        same = torch.equal(
            got[name].contiguous().reshape(-1).view(torch.uint8),
            tensor.contiguous().reshape(-1).view(torch.uint8),
        )
        assert same, f"{name} differs"


def every_dtype() -> State:
    with torch.no_grad():
        base = torch.empty(77, 13).normal_()
        state = {str(dtype): (base * 9).abs().to(dtype) for dtype in DTYPES}
        state["exponents"] = (base * 9).abs().to(torch.uint8).view(torch.float8_e8m0fnu)
        state["packed"] = (base * 9).abs().to(torch.uint8).view(torch.float4_e2m1fn_x2)
        state['é "quoted" \\ \n name'] = torch.zeros(2, 3)
        state["scalar"] = torch.full((), 2.5)
        state["no elements"] = torch.empty(0, 4)
        return state


def every_view() -> State:
    """Views of storages, in the shapes that a copy to a file can meet."""
    with torch.no_grad():
        table = torch.empty(300, 200).normal_()
        partly = torch.zeros(100, 50)
        partly[3] = 7
        partly[:, 20:30].uniform_()
        waves = torch.empty(40, 30, dtype=torch.complex64).normal_()
        return {
            "whole": table,
            "transposed": table.t(),
            "rows": table[10:20],
            "columns": table[:, 33:77],
            "every third row": table[::3],
            "every third column": table[:, ::3],
            "expanded": table[:1].expand(5, 200),
            "partly": partly,
            "conjugate": waves.conj(),
            "negative": waves.conj().imag,
            "transposed copy": table.t().contiguous(),
            "cast": table.to(torch.bfloat16),
            "orthogonal": nn.init.orthogonal_(torch.empty(30, 20)),
            "permuted": torch.randperm(1000),
        }


@pytest.mark.parametrize("build", [every_dtype, every_view])
def test_the_file_has_the_bytes_of_eager_construction_and_safetensors(
    build: Callable[[], State], tmp_path: Path
) -> None:
    lazy, eager = lazily(build), eagerly(build)
    report = dormant.save(lazy, tmp_path / "lazy.safetensors")
    expected = file_of(
        {name: t.resolve_conj().clone() for name, t in eager.items()}, tmp_path / "eager"
    )
    assert (tmp_path / "lazy.safetensors").read_bytes() == expected
    assert len(report.tensors) == len(lazy)
    assert report.count("initialized") > 0.8 * len(lazy)


@pytest.mark.core
def test_real_and_lazy_tensors_give_the_same_file(tmp_path: Path) -> None:
    for name, state in (("lazy", lazily(every_view)), ("real", eagerly(every_view))):
        dormant.save(state, tmp_path / f"{name}.safetensors")
    lazy, real = (tmp_path / f"{name}.safetensors" for name in ("lazy", "real"))
    assert lazy.read_bytes() == real.read_bytes()


@pytest.mark.core
def test_lazy_tensors_stay_lazy_and_materialize_to_the_same_values(tmp_path: Path) -> None:
    state = lazily(every_view)
    lazy_before = {name: dormant.is_lazy(tensor) for name, tensor in state.items()}
    assert lazy_before["orthogonal"]
    assert lazy_before["whole"]
    storages = live_storages()
    dormant.save(state, tmp_path)
    assert {name: dormant.is_lazy(tensor) for name, tensor in state.items()} == lazy_before
    assert dormant._C.live_storages() == storages
    dormant.materialize(state)
    eager = {name: tensor.resolve_conj() for name, tensor in eagerly(every_view).items()}
    assert_same_state({n: t.resolve_conj().resolve_neg() for n, t in state.items()}, eager)
    assert_same_state(safetensors.torch.load_file(tmp_path / "model.safetensors"), eager)


def test_tensors_larger_than_a_piece_are_equal_on_any_number_of_threads(tmp_path: Path) -> None:
    def build() -> State:
        with torch.no_grad():
            weight = torch.empty(9000, 1111).normal_(0, 0.02)
            return {"weight": weight, "half": weight[:, 100:1000].half(), "tail": weight[5:]}

    expected = file_of({n: t.clone() for n, t in eagerly(build).items()}, tmp_path / "eager")
    for threads in (1, 3):
        torch.set_num_threads(threads)
        dormant.save(lazily(build), tmp_path / "lazy.safetensors")
        assert (tmp_path / "lazy.safetensors").read_bytes() == expected


def test_saving_inside_the_context_is_the_same(tmp_path: Path) -> None:
    model = lazily(Stack)
    dormant.save(model, tmp_path / "outside.safetensors")
    with dormant.lazy_init(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        dormant.save(model, tmp_path / "inside.safetensors")
    outside, inside = (tmp_path / f"{name}.safetensors" for name in ("outside", "inside"))
    assert inside.read_bytes() == outside.read_bytes()


def test_saving_draws_no_random_numbers(tmp_path: Path) -> None:
    model = lazily(lambda: nn.Linear(50, 50))
    before = torch.get_rng_state()
    dormant.save(model, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_elements_that_nobody_initialized_are_zero(tmp_path: Path) -> None:
    with dormant.lazy_init():
        state = {"all": torch.empty(1000), "some": torch.empty(1000)}
        state["some"][:10].fill_(1)
    dormant.save(state, tmp_path)
    loaded = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert loaded["all"].count_nonzero() == 0
    assert loaded["some"].tolist() == [1.0] * 10 + [0.0] * 990


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(40, 40) for _ in range(6)))
        self.norm = nn.BatchNorm1d(40)


def test_a_large_model_is_split_as_huggingface_hub_splits_it(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    model = lazily(Stack)
    report = dormant.save(model, tmp_path, max_shard_size=15_000)
    eager = eagerly(Stack).state_dict()
    split = hub.split_torch_state_dict_into_shards(
        eager, filename_pattern="model{suffix}.safetensors", max_shard_size=15_000
    )
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(split.filename_to_tensors) > 2
    assert index == {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    for file, names in split.filename_to_tensors.items():
        expected = file_of({name: eager[name] for name in names}, tmp_path / "expected")
        assert (tmp_path / file).read_bytes() == expected
    assert report.nbytes == index["metadata"]["total_size"]
    assert dormant.is_lazy(model)


@pytest.mark.parametrize(
    ("size", "files"),
    [
        (13_768, 3),
        (13_767, 4),
        ("13.768KB", 3),
        (" 13.767 kb", 4),
        ("0.013768MB", 3),
        ("13.4453125KiB", 3),
        ("13.4453124KiB", 4),
    ],
)
def test_a_shard_size_may_be_a_number_or_text(size: int | str, files: int, tmp_path: Path) -> None:
    dormant.save(eagerly(Stack), tmp_path, max_shard_size=size)
    assert len(list(tmp_path.glob(f"model-*-of-0000{files}.safetensors"))) == files


@pytest.mark.parametrize("size", [0, -1, "", "5", "GB", "five GB", "0GB", 1.5, True, None])
def test_another_shard_size_is_an_error(size: object, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_shard_size must be a positive"):
        dormant.save({}, tmp_path, max_shard_size=size)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_single_file_takes_everything_and_touches_no_other(tmp_path: Path) -> None:
    others = ["model.safetensors.index.json", "model-00001-of-00002.safetensors"]
    for name in others:
        (tmp_path / name).write_text("kept")
    dormant.save(eagerly(Stack), tmp_path / "model.safetensors", max_shard_size=100)
    assert len(safetensors.torch.load_file(tmp_path / "model.safetensors")) == 17
    assert all((tmp_path / name).read_text() == "kept" for name in others)


def test_a_save_replaces_an_earlier_one_in_its_folder_only(tmp_path: Path) -> None:
    model = eagerly(Stack)
    (tmp_path / "config.json").write_text("{}")
    dormant.save(model, tmp_path)
    dormant.save(model, tmp_path, max_shard_size=15_000)
    assert not (tmp_path / "model.safetensors").exists()
    shards = set(tmp_path.glob("model-*"))
    dormant.save(model, tmp_path, max_shard_size=9_000)
    assert not shards & set(tmp_path.glob("model-*"))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in tmp_path.glob("model-*")}
    dormant.save(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 9, bias=False)
        self.embedding = nn.Embedding(9, 6)
        self.head.weight = self.embedding.weight


class DeclaredTied(Tied):
    _tied_weights_keys: ClassVar[dict[str, str]] = {"head.weight": "embedding.weight"}


@pytest.mark.parametrize(("kind", "kept"), [(Tied, "head"), (DeclaredTied, "embedding")])
@pytest.mark.parametrize("build", [lazily, eagerly])
def test_a_tied_tensor_is_written_once(
    build: Callable[..., nn.Module], kind: type[Tied], kept: str, tmp_path: Path
) -> None:
    report = dormant.save(build(kind), tmp_path)
    loaded = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert_same_state(loaded, {f"{kept}.weight": eagerly(Tied).embedding.weight.detach()})
    assert [set(t.names) for t in report.tensors] == [{"head.weight", "embedding.weight"}]
    assert report.tensors[0].names[0] == f"{kept}.weight"


@pytest.mark.parametrize("build", [lazily, eagerly])
def test_views_of_the_same_elements_in_another_order_are_not_tied(
    build: Callable[..., State], tmp_path: Path
) -> None:
    def square() -> State:
        with torch.no_grad():
            waves = torch.empty(8, 8, dtype=torch.complex64).normal_()
            views = [waves, waves.t(), waves.conj(), waves[:4], waves.imag, waves.conj().imag]
            return {str(place): view for place, view in enumerate(views)}

    report = dormant.save(build(square), tmp_path)
    assert [tensor.names for tensor in report.tensors] == [(str(place),) for place in range(6)]
    loaded = safetensors.torch.load_file(tmp_path / "model.safetensors")
    expected = {n: t.resolve_conj().resolve_neg() for n, t in eagerly(square).items()}
    assert_same_state(loaded, expected)


def test_progress_counts_the_bytes_of_all_files(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    model = lazily(Stack)
    report = dormant.save(
        model, tmp_path, max_shard_size=15_000, progress=lambda *step: steps.append(step)
    )
    assert steps[0] == (0, report.nbytes)
    assert steps[-1] == (report.nbytes, report.nbytes)
    assert steps == sorted(steps)


def test_what_the_format_cannot_hold_is_listed(tmp_path: Path) -> None:
    state = {
        "fine": torch.zeros(2),
        "sparse": torch.eye(3).to_sparse(),
        "wide": torch.zeros(2, dtype=torch.complex128),
        "shapeless": nn.LazyLinear(3).weight,
        "meta": torch.empty(3, device="meta"),
        "fake": FakeTensorMode().from_tensor(torch.zeros(1)),
        "text": "no tensor",
        "__metadata__": torch.zeros(1),
    }
    with pytest.raises(ValueError, match="cannot hold 7 of 8") as caught:
        dormant.save(state, tmp_path)  # type: ignore[arg-type]
    message = str(caught.value)
    assert all(repr(name) in message for name in state if name != "fine")
    assert "'fine'" not in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", [None, "model", [torch.zeros(1)], {1: torch.zeros(1)}])
def test_another_target_is_an_error(target: object, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="save: "):
        dormant.save(target, tmp_path)  # type: ignore[arg-type]


def test_a_header_longer_than_readers_accept_is_an_error() -> None:
    with pytest.raises(ValueError, match="readers of safetensors accept 100000000"):
        lay_out_file({"x" * 100_000_000: torch.zeros(1)})


@pytest.mark.parametrize("name", ["a/b/m.safetensors", "a/b/m.pt", "a/b/m", "a.pt/m.bin/"])
def test_parents_are_made_and_an_error_removes_them(name: str, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise RuntimeError("stop")

    path = f"{tmp_path}/{name}"
    with pytest.raises(RuntimeError, match="stop"):
        dormant.save({"a": torch.zeros(1)}, path, progress=stop)
    with pytest.raises(ValueError, match="its layout is"):
        dormant.save({"a": torch.eye(2).to_sparse()}, path)
    assert not list(tmp_path.iterdir())
    dormant.save({"a": torch.zeros(1)}, path)
    found = Path(path)
    assert found.is_dir() == (found.name == "m" or name.endswith("/"))
    assert torch.equal(dormant.open_checkpoint(found)["a"], torch.zeros(1))


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(ValueError, match="got an empty path"):
        dormant.save({"a": torch.zeros(1)}, "")


@pytest.fixture
def small_files() -> Iterator[int]:
    """A limit on file sizes: the system then refuses to write, as a full device does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = 1 << 20
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    yield size
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("shard", ["5GB", "500KB"])
def test_an_error_of_the_system_leaves_no_file(
    shard: str, small_files: int, tmp_path: Path
) -> None:
    model = lazily(lambda: nn.ModuleList([nn.Linear(300, 300), nn.Linear(1000, 1000)]))
    with pytest.raises(
        OSError, match=r"writing \d+ bytes at offset \d+ of .*safetensors"
    ) as caught:
        dormant.save(model, tmp_path, max_shard_size=shard)
    assert caught.value.errno == errno.EFBIG
    assert not list(tmp_path.iterdir())
    assert dormant.is_lazy(model)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("build", [lazily, eagerly])
def test_a_full_device_is_an_error_with_its_number(build: Callable[..., State]) -> None:
    tensors = [(t, 0) for t in build(every_view).values()]
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        for tensor in tensors:
            with pytest.raises(OSError, match="of /dev/full: No space left") as caught:
                dormant._C.write([tensor], descriptor, "/dev/full", None)
            assert caught.value.errno == errno.ENOSPC
    finally:
        os.close(descriptor)


def test_an_earlier_file_survives_a_failed_save(tmp_path: Path, small_files: int) -> None:
    dormant.save(eagerly(Stack), tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(OSError, match="writing"):
        dormant.save(lazily(lambda: nn.Linear(1000, 1000)), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("shard", ["5GB", "200KB"])
def test_an_exception_of_progress_stops_it_and_leaves_no_file(shard: str, tmp_path: Path) -> None:
    model = lazily(lambda: nn.Sequential(*(nn.Linear(200, 200) for _ in range(4))))

    def stop(done: int, total: int) -> None:
        if done == total:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        dormant.save(model, tmp_path, max_shard_size=shard, progress=stop)
    assert not list(tmp_path.iterdir())
    assert dormant.is_lazy(model)


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_stops_it_soon_and_leaves_no_file(tmp_path: Path) -> None:
    with dormant.lazy_init():
        state = {"large": torch.empty(1 << 30).normal_()}
    started = threading.Event()

    def interrupt() -> None:
        started.wait()
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()

    def on_step(done: int, total: int) -> None:
        assert done < total // 2, "the interrupt did not stop it"
        if done:
            started.set()

    with pytest.raises(KeyboardInterrupt):
        dormant.save(state, tmp_path, progress=on_step)
    thread.join()
    assert not list(tmp_path.iterdir())
    assert dormant.is_lazy(state["large"])


CHILD = """
import sys, torch, dormant
from dormant.reporting.memory import highest_resident_bytes
{setup}
report = dormant.save({{"warm up": state.pop("small")}}, sys.argv[1] + "/warm.safetensors")
before = highest_resident_bytes()
{action}
print(highest_resident_bytes() - before, all(map(dormant.is_lazy, state.values())))
"""
SETUP = """
torch.set_num_threads(2)
with dormant.lazy_init():
    state = {"small": torch.empty(1000).normal_()}
    for i in range(4):
        state[str(i)] = torch.empty(8192, 8192).normal_()
    state["0"] = state["0"].t()
"""


def child(setup: str, action: str, folder: Path) -> subprocess.Popen[str]:
    code = CHILD.format(setup=setup, action=action)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True
    )


def test_a_model_of_a_gibibyte_is_saved_in_little_memory(tmp_path: Path) -> None:
    setup = SETUP.replace('state["0"] = state["0"].t()', "")
    process = child(setup, 'dormant.save(state, sys.argv[1], max_shard_size="600MB")', tmp_path)
    growth, lazy = process.communicate(timeout=200)[0].split()
    sizes = [path.stat().st_size for path in tmp_path.glob("model-*")]
    for path in tmp_path.iterdir():
        path.unlink()
    assert process.returncode == 0
    assert lazy == "True"
    assert sum(sizes) > 1 << 30
    assert int(growth) < 60 << 20


def test_a_killed_save_leaves_nothing_that_looks_like_a_model(tmp_path: Path) -> None:
    action = (
        'dormant.save(state, sys.argv[1], max_shard_size="300MB", progress=lambda done, total:'
        " done > total // 3 and __import__('os').kill(__import__('os').getpid(), 9))"
    )
    process = child(SETUP, action, tmp_path)
    process.communicate(timeout=200)
    left = [path.name for path in tmp_path.iterdir() if path.name != "warm.safetensors"]
    assert process.returncode == -signal.SIGKILL
    assert len(left) == 1
    assert left[0].startswith(".dormant-")
