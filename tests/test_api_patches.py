"""Every replaced Python function: right values for lazy tensors, and no trace afterwards."""

from __future__ import annotations

import copy
import gc
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
import torch.utils.dlpack

import dormant
from compare import assert_same_bits
from dormant import _C
from dormant.recording import patches

pytestmark = pytest.mark.core


def values() -> torch.Tensor:
    torch.manual_seed(5)
    return torch.randn(4, 5)


def lazy_values() -> torch.Tensor:
    with dormant.lazy_init():
        tensor = values()
    assert dormant.is_lazy(tensor)
    return tensor


# What a reader gives must compare equal with ==.
READERS: dict[str, Callable[[torch.Tensor], Any]] = {
    "numpy": lambda t: t.numpy().tobytes(),
    "numpy of a view": lambda t: t[1:, ::2].numpy().tobytes(),
    "numpy force": lambda t: t.numpy(force=True).tobytes(),
    "numpy.asarray": lambda t: numpy.asarray(t).tobytes(),
    "numpy.array with dtype": lambda t: numpy.array(t, dtype=numpy.float64).tobytes(),
    "tolist": lambda t: t.tolist(),
    "item": lambda t: t[2, 3].item(),
    "float": lambda t: float(t[0, 0]),
    "repr": repr,
    "format": lambda t: f"{t[0, 0]:.5f}",
    "str of a storage": lambda t: str(t.untyped_storage()).replace(str(t.data_ptr()), ""),
    "bytes of the storage": lambda t: bytes(t.untyped_storage()),
    "storage index": lambda t: t.untyped_storage()[7],
    "storage slice": lambda t: bytes(t.untyped_storage()[3:9]),
    "storage tolist": lambda t: t.untyped_storage().tolist(),
    "storage clone": lambda t: t.untyped_storage().clone().tolist(),
    "storage copy": lambda t: copy.copy(t.untyped_storage()).tolist(),
    "storage deepcopy": lambda t: copy.deepcopy(t.untyped_storage()).tolist(),
    "storage cast": lambda t: t.untyped_storage().short().tolist(),
    "typed storage index": lambda t: t._typed_storage()._getitem(3),
    "typed storage tolist": lambda t: list(t.storage()),
    "storage byteswap": lambda t: _byteswapped(t),
    "dlpack": lambda t: torch.from_dlpack(t).tolist(),
    "numpy.from_dlpack": lambda t: numpy.from_dlpack(t).tobytes(),
    "to_dlpack": lambda t: torch.from_dlpack(torch.utils.dlpack.to_dlpack(t)).tolist(),
    "torch.to_dlpack": lambda t: torch.from_dlpack(torch.to_dlpack(t)).tolist(),
    "apply_": lambda t: t.clone().apply_(lambda x: 2 * x).tolist(),
    "map_": lambda t: torch.zeros(4, 5).map_(t, lambda x, y: y + 1).tolist(),
    "map_ of a lazy tensor": lambda t: t.map_(torch.ones(4, 5), lambda x, y: x + y).tolist(),
    "iteration": lambda t: [row.tolist() for row in t],
    "reversed": lambda t: [row.tolist() for row in reversed(t)],
    "in": lambda t: 123.0 in t,
    "bool": lambda t: bool((t == t).all()),
    "index": lambda t: [10, 20, 30][(t[0, 0] * 0).long()],
    "frombuffer": lambda t: torch.frombuffer(t.numpy(), dtype=torch.float32).tolist(),
    "as_tensor": lambda t: torch.as_tensor(t).tolist(),
    "torch.tensor of a tensor": lambda t: torch.tensor(t[0].tolist()).tolist(),
    "set_ to its storage": lambda t: torch.empty(0).set_(t.untyped_storage()).tolist(),
    "share_memory_": lambda t: (t.share_memory_().is_shared(), t.tolist()),
    "storage share_memory_": lambda t: t.untyped_storage().share_memory_().tolist(),
}


def _byteswapped(tensor: torch.Tensor) -> list[float]:
    tensor.untyped_storage().byteswap(torch.float32)
    return tensor.tolist()


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated", "ignore:The given NumPy array")
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
def test_a_lazy_tensor_is_read_right_by(reader: str, inside: bool) -> None:
    expected = READERS[reader](values())
    if inside:
        with dormant.lazy_init():
            got = READERS[reader](values())
    else:
        got = READERS[reader](lazy_values())
    assert got == expected


def test_the_data_pointer_is_that_of_the_values() -> None:
    tensor = lazy_values()
    pointer = tensor.data_ptr()
    assert pointer
    assert not dormant.is_lazy(tensor)
    assert tensor.untyped_storage().data_ptr() == pointer
    assert_same_bits(values(), tensor)


def test_asking_for_the_storage_and_its_size_reads_nothing() -> None:
    tensor = lazy_values()
    storage = tensor.untyped_storage()
    assert (storage.nbytes(), storage.size(), len(storage)) == (80, 80, 80)
    assert storage.device.type == "cpu"
    assert tensor.storage_offset() == 0
    assert dormant.is_lazy(tensor)
    assert storage.data_ptr() == tensor.data_ptr()


def test_the_storage_of_a_tensor_that_is_gone_still_has_its_values() -> None:
    storage = lazy_values().untyped_storage()
    assert bytes(storage) == values().numpy().tobytes()


def test_writing_through_a_storage_keeps_the_other_bytes() -> None:
    tensor, expected = lazy_values(), values()
    for each in (tensor, expected):
        each.untyped_storage()[0:4] = 0
    assert_same_bits(expected, tensor)
    tensor = lazy_values()
    tensor.untyped_storage().fill_(0)
    assert_same_bits(torch.zeros(4, 5), tensor)
    tensor = lazy_values()
    tensor.untyped_storage().copy_(torch.ones(4, 5).untyped_storage())
    assert_same_bits(torch.ones(4, 5), tensor)


def test_a_storage_grows_with_its_values() -> None:
    tensor = lazy_values()
    tensor.untyped_storage().resize_(160)
    assert tensor.untyped_storage().nbytes() == 160
    assert_same_bits(values(), tensor)


def test_whether_it_is_shared_or_pinned_needs_no_values() -> None:
    tensor = lazy_values()
    assert not tensor.is_shared()
    assert not tensor.is_pinned()
    assert not tensor.untyped_storage().is_shared()
    assert not tensor.untyped_storage().is_pinned()
    assert dormant.is_lazy(tensor)


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
def test_new_and_new_tensor_follow_the_type_of_a_lazy_tensor(inside: bool) -> None:
    eager = values().half()
    with dormant.lazy_init():
        lazy = values().half()
        if inside:
            results = lazy.new(2, 3), lazy.new([1, 2]), lazy.new_tensor([1.5])
    if not inside:
        results = lazy.new(2, 3), lazy.new([1, 2]), lazy.new_tensor([1.5])
    expected = eager.new(2, 3), eager.new([1, 2]), eager.new_tensor([1.5])
    for left, right in zip(expected, results, strict=True):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
    assert results[1].tolist() == [1, 2]
    assert results[2].tolist() == [1.5]
    assert dormant.is_lazy(results[0]) == inside
    assert dormant.is_lazy(lazy), "nothing of this reads values"


def test_new_follows_an_alias_that_carries_the_key_after_its_storage_is_real() -> None:
    tensor, other = lazy_values(), lazy_values()
    alias = tensor.detach()
    dormant.materialize(tensor)
    assert _C.carries_key(alias)
    assert dormant.is_lazy(other), "the patches are in place while any lazy tensor is alive"
    assert alias.new(3).shape == (3,)
    assert not _C.carries_key(alias)


def test_errors_of_the_original_are_kept() -> None:
    with dormant.lazy_init():
        parameter = torch.nn.Parameter(torch.zeros(2))
    with pytest.raises(RuntimeError, match="requires grad"):
        parameter.numpy()
    with pytest.raises(BufferError):
        torch.from_dlpack(parameter)
    with pytest.raises(AttributeError):
        parameter.__cuda_array_interface__  # noqa: B018


def _owner(patch: patches.Patch) -> Any:
    """The other libraries that are patched are all imported here."""
    return pkgutil.resolve_name(patch.owner) if isinstance(patch.owner, str) else patch.owner


def _replaced() -> dict[str, object]:
    return {
        f"{_owner(patch).__name__}.{patch.name}": vars(_owner(patch)).get(patch.name)
        for patch in patches.declared()
    }


@pytest.fixture
def originals() -> dict[str, object]:
    gc.collect()
    patches.uninstall_if_idle()
    assert patches.installed() == []
    return _replaced()


def test_every_entry_of_the_list_exists_and_has_a_reason() -> None:
    assert len(patches.declared()) > 25
    for patch in patches.declared():
        assert callable(getattr(_owner(patch), patch.name)), patch
        assert len(patch.reason) > 10, patch
    places = [(patch.owner, patch.name) for patch in patches.declared()]
    assert len(set(places)) == len(places)


def test_patches_are_in_place_inside_only(originals: dict[str, object]) -> None:
    with dormant.lazy_init():
        assert len(patches.installed()) == len(patches.declared())
        changed = _replaced()
        assert all(changed[name] is not originals[name] for name in originals)
    assert _replaced() == originals


def test_patches_stay_while_a_lazy_tensor_is_alive(originals: dict[str, object]) -> None:
    tensor = lazy_values()
    assert patches.installed()
    dormant.materialize(tensor)
    assert _replaced() == originals


def test_patches_go_with_the_next_use_after_the_last_lazy_tensor_died(
    originals: dict[str, object],
) -> None:
    tensor = lazy_values()
    del tensor
    gc.collect()
    torch.zeros(2).tolist()
    assert _replaced() == originals


def test_patches_go_when_reading_realises_the_last_lazy_tensor(
    originals: dict[str, object],
) -> None:
    tensor = lazy_values()
    tensor.tolist()
    assert _replaced() == originals


def test_patches_are_gone_after_an_exception(originals: dict[str, object]) -> None:
    with pytest.raises(ZeroDivisionError), dormant.lazy_init():
        1 / 0  # noqa: B018
    assert _replaced() == originals


def test_who_wrapped_a_patched_function_meanwhile_is_not_undone(
    originals: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    with dormant.lazy_init():
        ours = torch.Tensor.tolist

        def theirs(self: torch.Tensor) -> object:
            return ["wrapped", *ours(self)]

        monkeypatch.setattr(torch.Tensor, "tolist", theirs)
    assert torch.tensor([1]).tolist() == ["wrapped", 1]
    monkeypatch.undo()
    assert torch.tensor([1]).tolist() == [1]  # what stays behind calls the original
    del torch.Tensor.tolist
    assert _replaced() == originals


@pytest.mark.threads
def test_a_device_context_first_used_while_patches_are_in_place_works_on() -> None:
    program = """
import dormant, torch
with dormant.lazy_init():
    alive = torch.ones(2)
    for _ in range(2):
        with torch.device("meta"):
            made = torch.tensor([1.0, 2.0]), torch.as_tensor([3]), torch.asarray([4])
        print(*(tensor.device for tensor in made))
del alive
with torch.device("meta"):
    print(torch.tensor([1.0]).device)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert result.stdout.split() == ["meta"] * 7


def test_threads_that_come_and_go_leave_no_patch(originals: dict[str, object]) -> None:
    import threading

    def build() -> None:
        for _ in range(30):
            with dormant.lazy_init():
                tensor = torch.zeros(3)
            assert tensor.tolist() == [0.0] * 3

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    patches.uninstall_if_idle()
    assert _replaced() == originals


# Each of these ended the process, or read a null pointer, without a guard. A crash here must be a
# failure and nothing more, so they run in a process of their own, one after another.
ABORTS = {
    "is_shared": "print(t.is_shared())",
    "storage is_shared": "print(t.untyped_storage().is_shared())",
    "share_memory_": "t.share_memory_(); print(t.is_shared())",
    "module share_memory": "torch.nn.ParameterList([t]).share_memory(); print(t.is_shared())",
    "pin": "print(t.is_pinned())",
    "resize storage": "t.untyped_storage().resize_(1 << 16); print(t.tolist())",
    "numpy": "print(t.numpy())",
    "tolist": "print(t.tolist())",
    "storage": "print(list(t.untyped_storage()))",
    "apply_": "print(t.apply_(lambda x: x + 1))",
    "multiprocessing": (
        "import torch.multiprocessing, multiprocessing.reduction as r, pickle\n"
        "print(pickle.loads(bytes(r.ForkingPickler.dumps(t))).tolist())"
    ),
    "type constructor": "print(torch.Tensor(t).tolist(), torch.FloatTensor(t).tolist())",
    "type": "print(t.type(), t.is_floating_point(), t.type(torch.HalfTensor).tolist())",
    "to numpy dtype": "import numpy; print(numpy.float64(t[0]), numpy.add(t, 1))",
    "ctypes": "import ctypes; print(ctypes.c_float.from_address(t.data_ptr()).value)",
    "storage file": (
        "import tempfile\n"
        "with tempfile.TemporaryFile() as f:\n"
        "    t.untyped_storage()._write_file(f, True, True, 1); f.seek(8)\n"
        "    print(f.read())"
    ),
    "swap": "s = torch.ones(6); torch.utils.swap_tensors(t, s); print(t.tolist(), s.tolist())",
    "set_": "print(torch.empty(0).set_(t).tolist(), t.set_(torch.ones(2)).tolist())",
    "weak reference": "import weakref; print(weakref.ref(t)().tolist())",
}
_HEAD = "import torch\ntorch.manual_seed(0)\n"
_LAZILY = "import dormant\nwith dormant.lazy_init():\n    t = torch.randn(6)\n"


def _run(programs: dict[str, str]) -> dict[str, str]:
    """What each program prints; a program that ends the process is followed by a new process."""
    printed: dict[str, str] = {}
    while len(printed) < len(programs):
        left = {name: code for name, code in programs.items() if name not in printed}
        runner = (
            "import sys, traceback\n"
            f"for name, code in {left!r}.items():\n"
            "    print('\\0' + name, end='\\0', flush=True)\n"
            "    try:\n        exec(code, {})\n"
            "    except Exception:\n        traceback.print_exc(file=sys.stdout)\n"
            "    sys.stdout.flush()\n"
        )
        result = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", runner],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        pieces = result.stdout.split("\0")[1:]
        assert pieces, result.stderr
        printed.update(zip(pieces[::2], pieces[1::2], strict=True))
        if result.returncode:
            printed[pieces[-2]] += f"<ended with {result.returncode}> {result.stderr[-2000:]}"
    return printed


@pytest.fixture(scope="module")
def eager_output() -> dict[str, str]:
    return _run({name: f"{_HEAD}t = torch.randn(6)\n{code}" for name, code in ABORTS.items()})


@pytest.fixture(scope="module")
def lazy_output() -> dict[str, str]:
    return _run({name: f"{_HEAD}{_LAZILY}{code}" for name, code in ABORTS.items()})


@pytest.fixture(scope="module")
def opened_output(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a checkpoint's tensor, in processes that never open a context."""
    path = tmp_path_factory.mktemp("checkpoint") / "t.pt"
    torch.manual_seed(0)
    torch.save({"t": torch.randn(6)}, path)
    opened = f"import dormant\nt = dormant.open_checkpoint({str(path)!r})['t']\n"
    return _run({name: f"{_HEAD}{opened}{code}" for name, code in ABORTS.items()})


@pytest.mark.parametrize("name", ABORTS)
def test_no_crash_in(name: str, eager_output: dict[str, str], lazy_output: dict[str, str]) -> None:
    assert "Traceback" not in eager_output[name]
    assert lazy_output[name] == eager_output[name]


@pytest.mark.parametrize("name", ABORTS)
def test_no_crash_outside_any_context_in(
    name: str, eager_output: dict[str, str], opened_output: dict[str, str]
) -> None:
    assert opened_output[name] == eager_output[name]
