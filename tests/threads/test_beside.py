"""Two threads that share nothing, or one model of which one thread takes copies."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import dormant
from dormant import _C
from dormant.recording import patches
from living import live_storages

sys.path.insert(0, str(Path(__file__).parent))

from together import together, while_running

from compare import assert_same_bits


@pytest.fixture(autouse=True)
def frequent_switches() -> Iterator[None]:
    """Lets threads meet at more places."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def linear(width: int) -> nn.Module:
    with dormant.lazy_init():
        return nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))


def state_of(value: float, width: int) -> dict[str, torch.Tensor]:
    return {
        name: torch.full_like(tensor, value)
        for name, tensor in nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))
        .state_dict()
        .items()
    }


def assert_patched_only_for_lazy_tensors() -> None:
    """Of this test there are none any more; others may have left some."""
    gc.collect()
    patches.uninstall_if_idle()
    assert bool(patches.installed()) == bool(live_storages())


def written_often(tensor: torch.Tensor) -> torch.Tensor:
    """A long history, so that making it takes a while."""
    for _ in range(300):
        tensor.add_(1.0)
    return tensor


@pytest.mark.threads
def test_two_threads_each_load_their_own_model(tmp_path: Path) -> None:
    def load(value: float) -> None:
        path = tmp_path / f"{value}.pt"
        torch.save(state_of(value, 300), path)
        for _ in range(10):
            model = linear(300)
            dormant.load(model, path, mmap="never")
            assert all(bool((p == value).all()) for p in model.parameters())

    together(lambda: load(1.0), lambda: load(2.0))


@pytest.mark.threads
def test_constants_are_made_while_another_thread_materializes() -> None:
    with dormant.lazy_init():
        big = torch.empty(3_000_000).normal_(generator=torch.Generator().manual_seed(0))

    def make_constants() -> None:
        with dormant.lazy_init():
            for _ in range(20):
                torch.tensor([1.0, 2.0])

    while_running(lambda: dormant.materialize(big), make_constants)
    expected = torch.empty(3_000_000).normal_(generator=torch.Generator().manual_seed(0))
    assert_same_bits(expected, big)


@pytest.mark.threads
def test_constants_are_made_while_meta_kernels_in_python_run() -> None:
    def record() -> list[torch.Tensor]:
        found = []
        with dormant.lazy_init():
            for rows in range(2, 60):
                x = torch.ones(rows, 3)
                found += [torch.cumsum(x, 0), torch.logsumexp(x, 0)]
        return found

    def make_constants() -> None:
        with dormant.lazy_init():
            torch.tensor([1.0, 2.0])

    found = while_running(record, make_constants)
    for rows, pair in zip(range(2, 60), zip(found[::2], found[1::2], strict=True), strict=True):
        x = torch.ones(rows, 3)
        assert_same_bits(torch.cumsum(x, 0), pair[0])
        assert_same_bits(torch.logsumexp(x, 0), pair[1])


@pytest.mark.threads
def test_a_deepcopy_taken_while_another_thread_materializes_has_the_values() -> None:
    for _ in range(100):
        with dormant.lazy_init():
            model = nn.Linear(8, 8)
            nn.init.ones_(model.weight)
            written_often(model.weight.data)
        duplicate, _ = together(
            lambda m=model: copy.deepcopy(m), lambda m=model: dormant.materialize(m)
        )
        assert_same_bits(torch.full((8, 8), 301.0), duplicate.weight.detach())
        assert duplicate.weight.data_ptr() != model.weight.data_ptr()


@pytest.mark.threads
def test_tuples_are_made_while_another_thread_quantizes() -> None:
    """Whoever lists all objects of the process takes part in tuples that are not finished."""

    pytest.importorskip("bitsandbytes")

    def quantize() -> None:
        for _ in range(5):
            dormant.quantize(linear(64), "nf4")

    while_running(quantize, lambda: tuple(number + 1 for number in range(200)))


@pytest.mark.threads
def test_models_are_built_while_another_thread_materializes_its_own() -> None:
    def materialize() -> None:
        for _ in range(200):
            with dormant.lazy_init():
                model = nn.Linear(64, 64)
                nn.init.ones_(model.weight)
            dormant.materialize(model)
            assert bool((model.weight == 1).all())

    while_running(materialize, lambda: linear(8))


@pytest.mark.threads
def test_a_pickle_written_while_another_thread_materializes_has_the_values() -> None:
    for _ in range(60):
        with dormant.lazy_init():
            tensor = written_often(torch.zeros(64))
        texts: list[bytes] = []
        while_running(
            lambda t=tensor: dormant.materialize(t),
            lambda t=tensor, found=texts: found.append(pickle.dumps(t)),
        )
        for text in {len(text): text for text in texts}.values():
            assert_same_bits(torch.full((64,), 300.0), pickle.loads(text).clone())


@pytest.mark.threads
def test_checkpoints_are_opened_and_read_in_four_threads(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.arange(64.0)}, path)

    def read() -> None:
        for _ in range(200):
            # Python reads the pointer: it needs the patches, which the others take away when idle.
            assert dormant.open_checkpoint(path)["weight"].numpy()[3] == 3

    together(read, read, read, read)
    assert_patched_only_for_lazy_tensors()


def test_the_patches_stay_while_somebody_makes_lazy_tensors_and_go_then() -> None:
    assert_patched_only_for_lazy_tensors()
    with patches.in_use():
        together(patches.uninstall_if_idle)  # another thread has materialized the last one
        assert patches.installed()
    assert_patched_only_for_lazy_tensors()


@pytest.mark.threads
def test_threads_put_elements_of_one_lazy_tensor_into_sequences() -> None:
    """Each element is read with our key off, and brings the whole tensor to life."""
    for _ in range(20):
        with dormant.lazy_init():
            tensor = written_often(torch.zeros(64))
        made = together(*[lambda t=tensor: torch.tensor([t[0], 1.0, t[5]]).tolist()] * 3)
        assert made == [[300.0, 1.0, 300.0]] * 3
    assert_patched_only_for_lazy_tensors()


@pytest.mark.threads
def test_functions_are_called_while_other_threads_replace_them(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"w": torch.ones(3)}, path)

    def come_and_go() -> None:
        for _ in range(100):
            with dormant.lazy_init():
                pass

    def read() -> None:
        for _ in range(50):
            assert torch.load(path)["w"].tolist() == [1.0, 1.0, 1.0]

    together(come_and_go, come_and_go, read, read)
    assert_patched_only_for_lazy_tensors()


@pytest.mark.threads
def test_a_copy_made_while_another_thread_materializes_can_be_read_by_python() -> None:
    """The copy is lazy or real; where it is lazy, the patches are in place."""
    for _ in range(300):
        with dormant.lazy_init():
            tensor = torch.ones(16)
        copied, _ = together(lambda t=tensor: t.clone(), lambda t=tensor: dormant.materialize(t))
        assert copied.numpy().sum() == 16


@pytest.mark.threads
def test_the_default_dtype_of_other_threads_stays_while_one_materializes() -> None:
    with dormant.lazy_init(dtype=torch.float64):
        generator = torch.Generator().manual_seed(0)
        tensor = torch.empty(200, 200).normal_(generator=generator)
        tensor = tensor.cumsum(0).cumsum(1)
    seen = {(torch.zeros(1) / 2).dtype}
    while_running(lambda: dormant.materialize(tensor), lambda: seen.add((torch.zeros(1) / 2).dtype))
    assert seen == {torch.float32}
    assert tensor.dtype is torch.float64


@pytest.mark.threads
def test_the_thread_count_of_other_threads_stays_while_one_materializes() -> None:
    torch.set_num_threads(2)
    with dormant.lazy_init():
        tensor = torch.ones(200, 200).cumsum(0).sum(1)
    torch.set_num_threads(3)  # replay restores what was recorded, for its own thread
    seen = {3}

    def look() -> None:
        seen.add(torch.get_num_threads())
        fresh = threading.Thread(target=lambda: seen.add(torch.get_num_threads()))
        fresh.start()
        fresh.join()

    while_running(lambda: dormant.materialize(tensor), look)
    assert seen == {3}


@pytest.mark.threads
def test_two_loads_of_one_model_leave_each_tensor_whole(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        safetensors.torch.save_file(state_of(value, 40), tmp_path / f"{value}.safetensors")
    for materialized in (False, True) * 10:
        model = linear(40)
        if materialized:
            dormant.materialize(model)
        together(
            lambda m=model: dormant.load(m, tmp_path / "1.0.safetensors"),
            lambda m=model: dormant.load(m, tmp_path / "2.0.safetensors"),
        )
        for name, tensor in model.state_dict().items():
            assert not _C.is_lazy(tensor)
            assert len(tensor.unique()) == 1, name
            assert tensor.flatten()[0].item() in (1.0, 2.0), name


@pytest.mark.threads
def test_loading_a_folder_while_another_thread_saves_to_it_finds_whole_files(
    tmp_path: Path,
) -> None:
    path = tmp_path / "model.safetensors"
    values = itertools.cycle((1.0, 2.0))
    safetensors.torch.save_file(state_of(3.0, 40), path)

    def save() -> None:
        with dormant.lazy_init():
            model = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
            value = next(values)
            for parameter in model.parameters():
                nn.init.constant_(parameter, value)
        dormant.save(model, path)

    def load() -> None:
        for _ in range(20):
            model = linear(40)
            dormant.load(model, path)
            found = {p.unique().item() for p in model.parameters()}
            assert len(found) == 1
            assert found <= {1.0, 2.0, 3.0}

    while_running(load, save)
