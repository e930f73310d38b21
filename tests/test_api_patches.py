"""Every replaced Python function: right values for lazy tensors, and no trace afterwards."""

from __future__ import annotations

import copy
import functools
import gc
import importlib.util
import inspect
import pickle
import pkgutil
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors
import torch
import torch.utils.dlpack

import dormant
from child import in_child
from compare import assert_same_bits
from dormant import _C
from dormant.recording import patches
from dormant.recording.later_imports import LaterImports
from dormant.recording.replacement import replace

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


# Elements that are read with our key off (torch/csrc/utils/tensor_new.cpp).
NESTED: dict[str, Callable[[torch.Tensor], Any]] = {
    "tensor": lambda t: torch.tensor([t[0, 0], 1.0, t[1, 2]]),
    "tensor of rows": lambda t: torch.tensor([[*row] for row in t]),
    "tensor of lists of views": lambda t: torch.tensor([list(t[0]), list(t[1])]),
    "tensor with dtype": lambda t: torch.tensor([t[0, 0]], dtype=torch.float64),
    "tensor of a tuple": lambda t: torch.tensor((t[0, 0], (t[1, 1]))),
    "tensor of integers": lambda t: torch.tensor([(t[0, 0] * 100).long(), 2]),
    "tensor of booleans": lambda t: torch.tensor([t[0, 0] > 0, True]),
    "tensor of complex": lambda t: torch.tensor([torch.complex(t[0, 0], t[0, 1]), 1j]),
    "as_tensor": lambda t: torch.as_tensor([t[0, 0], 1.0]),
    "asarray": lambda t: torch.asarray([t[0, 0], 1.0]),
    "Tensor": lambda t: torch.Tensor([t[0, 0], 1.0]),
    "FloatTensor": lambda t: torch.FloatTensor([t[0, 0], 1.0]),
    "new_tensor": lambda t: torch.ones(1).new_tensor([t[0, 0], 1.0]),
    "new": lambda t: torch.ones(1).new([t[0, 0], 1.0]),
    "sparse_coo_tensor": lambda t: torch.sparse_coo_tensor(
        [[0, 1]], [t[0, 0], 1.0], (2,)
    ).to_dense(),
}


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
@pytest.mark.parametrize("name", NESTED)
def test_lazy_elements_of_a_sequence_become_values_by(name: str, inside: bool) -> None:
    expected = NESTED[name](values())
    if inside:
        with dormant.lazy_init():
            found = NESTED[name](values())
    else:
        found = NESTED[name](lazy_values())
    assert_same_bits(found, expected)


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


def _function(patch: patches.Patch) -> Any:
    """What the owner gives under the name; of a method of the class, the function it is made of."""
    found = getattr(_owner(patch), patch.name)
    return getattr(found, "__func__", found)


def _replaced() -> dict[str, object]:
    """What each owner has itself, and the code that it runs."""
    found = {}
    for patch in patches.declared():
        own = vars(_owner(patch)).get(patch.name)
        own = getattr(own, "__func__", own)
        found[f"{_owner(patch).__name__}.{patch.name}"] = (own, getattr(own, "__code__", None))
    return found


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
        assert all(changed[name] != originals[name] for name in originals)
    assert _replaced() == originals


# Functions of C in a module, and classes: another object for the time.
REBOUND = {"to_dlpack", "safe_open", "__torch_function__"}


def _seen() -> dict[str, object]:
    """What who asks for the functions finds out about them."""
    found: dict[str, object] = {}
    for patch in patches.declared():
        if patch.name not in REBOUND:
            function = _function(patch)
            try:
                signature = str(inspect.signature(function))
            except ValueError:  # a function of C without one
                signature = ""
            found[f"{_owner(patch).__name__}.{patch.name}"] = (
                function,
                id(function),
                signature,
                inspect.unwrap(function),
                function.__qualname__,
                function.__doc__,
                getattr(function, "__defaults__", None),
                getattr(function, "__wrapped__", None),
            )
    return found


def test_a_replaced_function_looks_as_it_did() -> None:
    before = _seen()
    assert len(before) > 25
    with dormant.lazy_init():
        assert _seen() == before
    assert _seen() == before


def test_functions_are_pickled_by_reference_while_they_are_replaced() -> None:
    functions = [
        *(torch.tensor, torch.as_tensor, torch.asarray, torch.load, torch.save, torch.to_dlpack),
        *(torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.new_tensor),
        *(torch.Tensor.__deepcopy__, torch.UntypedStorage.resize_, torch.nn.init.trunc_normal_),
        torch.nn.init._no_grad_trunc_normal_,
    ]
    alone = [pickle.dumps(function) for function in functions]
    with dormant.lazy_init():
        for function in functions:
            for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
                assert pickle.loads(pickle.dumps(function, protocol)) is function
        # `to_dlpack` is ours then; who reads the pickle finds there what is there.
        assert [pickle.dumps(function) for function in functions[:5]] == alone[:5]


def test_the_source_of_a_replaced_function_is_its_own() -> None:
    source = inspect.getsource(torch.load)
    with dormant.lazy_init():
        assert inspect.getsource(torch.load) == source


def test_a_name_bound_before_the_context_reads_lazily_in_it(tmp_path: Path) -> None:
    from torch import load, tensor

    torch.save({"w": torch.ones(3)}, tmp_path / "w.pt")
    with dormant.lazy_init():
        assert load is torch.load
        assert tensor is torch.tensor
        read = load(tmp_path / "w.pt")["w"]
        assert dormant.is_lazy(read)
    assert read.tolist() == [1.0, 1.0, 1.0]
    assert not dormant.is_lazy(load(tmp_path / "w.pt")["w"])


def test_a_module_imported_inside_keeps_nothing_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imported_inside.py").write_text(
        "from safetensors import safe_open\nfrom torch import as_tensor, load, tensor, to_dlpack\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with dormant.lazy_init():
        module = importlib.import_module("imported_inside")
    try:
        assert module.safe_open is safetensors.safe_open
        assert module.to_dlpack is torch.to_dlpack is torch._C._to_dlpack  # type: ignore[attr-defined]
        assert [module.as_tensor, module.load, module.tensor] == [
            torch.as_tensor,
            torch.load,
            torch.tensor,
        ]
    finally:
        del sys.modules["imported_inside"]


def test_a_subclass_that_asks_its_parent_reads_right() -> None:
    class Mine(torch.Tensor):
        def tolist(self) -> Any:
            return ["mine", *super().tolist()]

    with dormant.lazy_init():
        tensor = torch.arange(3).as_subclass(Mine)
        assert tensor.tolist() == ["mine", 0, 1, 2]


def test_a_method_asked_of_the_class_refuses_a_lazy_tensor_and_says_what_to_do() -> None:
    tensor = lazy_values()
    with pytest.raises(RuntimeError, match=r"dormant\.materialize"):
        torch.Tensor.tolist(tensor)
    assert dormant.is_lazy(tensor)
    assert torch.Tensor.tolist(values()) == values().tolist()


def test_what_is_imported_later_is_patched_then_and_not_afterwards() -> None:
    found = in_child(
        "import json, sys, torch, dormant\nfrom dormant.recording import patches\n",
        """
        finders = list(sys.meta_path)
        def of_dtensors():
            return sorted(p.name for p in patches.installed() if "tensor:DTensor" in str(p.owner))
        steps = []
        with dormant.lazy_init():
            steps.append(of_dtensors())
            from torch.distributed.tensor import DTensor
            steps.append(of_dtensors())
            loader = sys.modules["torch.distributed.tensor"].__spec__.loader
            assert loader is sys.modules["torch.distributed.tensor"].__loader__
            steps.append(type(loader).__name__)
        steps.append(of_dtensors())
        assert sys.meta_path == finders
        assert DTensor.__torch_function__ is torch._C._disabled_torch_function_impl
        assert "copy_" not in vars(DTensor)
        print(json.dumps({"steps": steps}))
        """,
    )
    both = ["__torch_function__", "copy_"]
    assert found["steps"] == [[], both, "SourceFileLoader", []]


def test_an_import_that_fails_inside_the_context_fails_as_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    later = LaterImports(lambda: calls.append(1))
    (tmp_path / "fails_late.py").write_text("made = 1\nraise OSError('on purpose')\n")
    (tmp_path / "works_late.py").write_text("made = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    later.wait_for(["fails_late", "works_late", "is_not_there"])
    try:
        with pytest.raises(OSError, match="on purpose"):
            importlib.import_module("fails_late")
        with pytest.raises(ModuleNotFoundError, match="is_not_there"):
            importlib.import_module("is_not_there")
        assert not calls
        assert importlib.import_module("works_late").made == 1
        assert calls == [1]
        assert importlib.util.find_spec("works_late") is not None
    finally:
        later.wait_for(())
        sys.modules.pop("works_late", None)
    assert later not in sys.meta_path


def _outer() -> Callable[..., Any]:
    factor = 10

    def scaled(a: int, /, b: int, *rest: int, c: int = 3, **named: int) -> list[Any]:
        return [factor * a, b, rest, c, sorted(named.items())]

    return scaled


def test_a_function_with_every_kind_of_parameter_is_called_as_before() -> None:
    function = _outer()
    calls: list[Callable[[], Any]] = [
        lambda: function(1, 2),
        lambda: function(1, b=2, c=5),
        lambda: function(1, 2, 3, 4, c=5, d=6, a=7),
    ]
    before = [call() for call in calls]
    signature = inspect.signature(function)
    owner = types.SimpleNamespace(scaled=function)

    def wrap(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            return ["ours", *original(*args, **kwargs)]

        return replacement

    for _ in range(2):
        undo = replace(owner, "scaled", wrap)
        assert owner.scaled is function
        assert inspect.signature(function) == signature
        assert [call() for call in calls] == [["ours", *result] for result in before]
        undo()
        assert [call() for call in calls] == before
    for wrong in (lambda: function(1), lambda: function(a=1, b=2)):
        undo = replace(owner, "scaled", wrap)
        with pytest.raises(TypeError, match="scaled"):
            wrong()
        undo()


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


def test_patches_go_when_reading_realizes_the_last_lazy_tensor(
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
