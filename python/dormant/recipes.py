"""Recipes say how to make lazy tensors, and are written instead of their values on request.

Inside `pickling`, a lazy tensor pickles as its geometry and one `RecipeStorage` for its storage, so
ties and views survive through pickle's own memo. A recipe is a versioned JSON document with the
operators and their arguments, and the bytes of the real tensors that were captured while recording.
It contains bytes, not tensors, because `torch.load` of the layout before zip fills tensors only
after everything was rebuilt.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import pickle
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import torch

from dormant._extension import _C
from dormant.publication.publication import written_aside
from dormant.recording.patches import Patch, declare, in_use
from dormant.tensors.geometry import Geometry, geometry_of, lay_out
from dormant.tensors.storage import unrecorded

# A captured tensor: its dtype, sizes, strides, and the bytes of its elements in logical order.
Packed = tuple[torch.dtype, tuple[int, ...], tuple[int, ...], bytes]


class _Asked(threading.local):
    """The number of open `pickling` contexts in this thread."""

    def __init__(self) -> None:
        self.open = 0


_asked = _Asked()


@contextlib.contextmanager
def pickling() -> Iterator[None]:
    """A context in which this thread pickles lazy tensors as recipes instead of values.

    It applies to `pickle`, `torch.save`, and the arguments of a process that `multiprocessing`
    spawns. A recipe takes kilobytes for a tensor of any size, and is loaded as a lazy tensor. Real
    tensors and forked processes are not affected. The context can be nested.

    Raises:
        NotImplementedError: a pickled tensor has no recipe, because it is read from a file, is
            quantized, or is made by an operator of another library.

    Example:
        >>> import pickle, torch, dormant
        >>> with dormant.lazy_init():
        ...     layer = torch.nn.Linear(1000, 1000)
        >>> with dormant.recipes.pickling():
        ...     data = pickle.dumps(layer)
        >>> len(data) < 10_000, dormant.is_lazy(pickle.loads(data))
        (True, True)
    """
    _asked.open += 1
    try:
        with _reducers:
            yield
    finally:
        _asked.open -= 1


class _Reducers:
    """PyTorch's reducers for `multiprocessing`, which are replaced while recipes are pickled.

    The originals move a tensor to shared memory before pickle calls the tensor's own method.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = 0
        self._replaced: dict[type, tuple[Any, Any]] = {}
        # A child must not find it held by a thread that it does not have.
        os.register_at_fork(
            before=self._lock.acquire,
            after_in_parent=self._lock.release,
            after_in_child=self._lock.release,
        )

    def __enter__(self) -> None:
        with self._lock:
            self._open += 1
            if self._open > 1:
                return
            known: dict[type, Any] = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
            for kind, original in known.items():
                if issubclass(kind, torch.Tensor):
                    self._replaced[kind] = original, _recipe_or(original)
            known.update((kind, ours) for kind, (_, ours) in self._replaced.items())

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._open -= 1
            if self._open:
                return
            known: dict[type, Any] = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
            for kind, (original, ours) in self._replaced.items():
                if known.get(kind) is ours:
                    known[kind] = original
            self._replaced.clear()


def _recipe_or(original: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
    @functools.wraps(original)
    def reduce(tensor: torch.Tensor) -> Any:
        if _asked.open and _C.is_lazy(tensor):
            return tensor.__reduce_ex__(pickle.DEFAULT_PROTOCOL)  # type: ignore[no-untyped-call]
        return original(tensor)

    return reduce


_reducers = _Reducers()


class RecipeStorage:
    """Represents one lazy storage in a pickle."""

    __slots__ = ("__weakref__", "flat")

    def __init__(self, flat: torch.Tensor) -> None:
        self.flat = flat
        """A uint8 tensor over the whole storage, which keeps it alive."""

    def __reduce__(self) -> tuple[Callable[..., RecipeStorage], tuple[Any, ...]]:
        # Another thread may materialize it at any time after the tensor was reduced.
        if _C.is_lazy(self.flat):
            try:
                document, tensors = _C.dump(self.flat)
                return load_storage, (document, [_packed(tensor) for tensor in tensors])
            except ValueError:
                if _C.is_lazy(self.flat):
                    raise
        return RecipeStorage, (self.flat,)


# One object per storage while any pickle refers to it. It keeps the storage alive, so the identity
# of a storage in this mapping is not reused.
_recipes: weakref.WeakValueDictionary[int, RecipeStorage] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def recipe_storage(tensor: torch.Tensor) -> RecipeStorage:
    """The one `RecipeStorage` of the storage of a lazy tensor."""
    with _lock:
        recipe = _recipes.get(_C.storage_id(tensor))
        if recipe is None:
            flat = _C.view_as(tensor, torch.uint8, (_C.storage_nbytes(tensor),), (1,), 0)
            recipe = _recipes[_C.storage_id(tensor)] = RecipeStorage(flat)
    return recipe


def reduce_tensor(tensor: torch.Tensor) -> tuple[Callable[..., torch.Tensor], tuple[Any, ...]]:
    """The result of `Tensor._reduce_ex_internal` for a lazy tensor.

    PyTorch's `__reduce_ex__` adds Python attributes and subclasses, as for real tensors.
    """
    torch.utils.hooks.warn_if_has_hooks(tensor)  # as for real tensors: hooks are not pickled
    return (
        rebuild_tensor,
        (
            recipe_storage(tensor),
            tuple(geometry_of(tensor)),
            tensor.requires_grad,
            OrderedDict(),
        ),
    )


def _packed(tensor: torch.Tensor) -> Packed:
    with unrecorded():
        flat = tensor.contiguous().flatten().view(torch.uint8)
    return (
        tensor.dtype,
        tuple(tensor.size()),
        tensor.stride(),
        ctypes.string_at(flat.data_ptr(), flat.numel()),
    )


def _unpacked(packed: Packed) -> torch.Tensor:
    """The captured tensor; raises ValueError if its geometry does not match its bytes."""
    dense = torch.ops.aten.is_non_overlapping_and_dense.default
    try:
        dtype, sizes, strides, data = packed
        with unrecorded():
            shape = torch.empty_strided(sizes, strides, dtype=dtype, device="meta")
        nbytes = shape.untyped_storage().nbytes()
        if not (isinstance(data, bytes) and len(data) == shape.nbytes == nbytes and dense(shape)):
            raise ValueError(f"got {data!r:.40} for {shape.nbytes} bytes of strides {strides}")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"recipe: a captured tensor is not valid: {error}. The file is damaged, or "
            "another release wrote it; write it again with this release."
        ) from error
    with unrecorded():
        values = torch.empty(sizes, dtype=dtype)
        ctypes.memmove(values.data_ptr(), data, len(data))
        return torch.empty_strided(sizes, strides, dtype=dtype).copy_(values)


def load_storage(document: bytes, tensors: Sequence[Packed]) -> RecipeStorage:
    """A new lazy storage from its recipe.

    Args:
        document: the recipe, as written by `dormant._C.dump`.
        tensors: dtype, sizes, strides and bytes of the captured real tensors that it refers to.

    Returns:
        The lazy storage.

    Raises:
        ValueError: the document is damaged, has a version that this release does not read, or names
            an operator that recipes may not contain.
    """
    try:
        document.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"recipe: malformed document: it is not UTF-8 at byte {error.start} of "
            f"{len(document)}. The file is damaged or not a recipe; write it again."
        ) from error
    with in_use():
        return RecipeStorage(_C.load(document, [_unpacked(tensor) for tensor in tensors]))


def rebuild_tensor(
    storage: RecipeStorage,
    geometry: tuple[Any, ...],
    requires_grad: bool,
    backward_hooks: OrderedDict[Any, Any],
) -> torch.Tensor:
    """A tensor over `storage` with this geometry, which is lazy as long as the storage is."""
    tensor = lay_out(storage.flat, Geometry(*geometry))
    tensor.requires_grad = requires_grad
    tensor._backward_hooks = backward_hooks
    return tensor


def safe_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """The functions that `torch.load(..., weights_only=True)` needs for files with recipes.

    `load_recipe` allows them automatically. Only operators on Dormant's own list are run from a
    recipe, so allowing these functions does not allow a file to run other code.

    Returns:
        Functions for `torch.serialization.add_safe_globals` or `safe_globals`.

    Example:
        >>> import io, torch, dormant, dormant.recipes
        >>> with dormant.lazy_init():
        ...     state = torch.nn.Linear(2, 2).state_dict()
        >>> file = io.BytesIO()
        >>> with dormant.recipes.pickling():
        ...     torch.save(state, file)
        >>> _ = file.seek(0)
        >>> with torch.serialization.safe_globals(dormant.recipes.safe_globals()):
        ...     loaded = torch.load(file, weights_only=True)
        >>> dormant.is_lazy(loaded["weight"])
        True
    """
    return [load_storage, rebuild_tensor, RecipeStorage]


class _Allowed:
    """Allows weights-only loading to call what recipes need, until the last caller has ended."""

    _lock = threading.Lock()
    _open = 0
    _added: Any = None

    # A child must not find it held by a thread that it does not have.
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )

    def __enter__(self) -> None:
        kind = type(self)
        with self._lock:
            kind._open += 1
            if kind._open == 1:
                # Functions that the user has allowed permanently stay allowed.
                known = torch.serialization.get_safe_globals()
                new = [one for one in safe_globals() if one not in known]
                kind._added = torch.serialization.safe_globals(new)
                kind._added.__enter__()

    def __exit__(self, *error: object) -> None:
        kind = type(self)
        with self._lock:
            kind._open -= 1
            if kind._open == 0:
                kind._added.__exit__(None, None, None)


def save_recipe(obj: Any, path: str | os.PathLike[str]) -> None:
    """Writes an object with its lazy tensors as recipes instead of values.

    The file takes kilobytes for a lazy tensor of any size, and nothing is materialized. Real
    tensors are written as by `torch.save`. If this raises, an existing file at `path` is unchanged.

    Args:
        obj: any object that `torch.save` takes, such as a state dict or a lazy model.
        path: the file.

    Raises:
        NotImplementedError: a lazy tensor has no recipe, because it is read from a file, is
            quantized, or is made by an operator of another library.
        OSError: the file cannot be written.

    Example:
        >>> import pathlib, tempfile, torch, dormant
        >>> with dormant.lazy_init():
        ...     state = torch.nn.Linear(1000, 1000).state_dict()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "model.recipe")
        ...     dormant.save_recipe(state, path)
        ...     size = path.stat().st_size
        ...     again = dormant.load_recipe(path)
        >>> size < 10_000, dormant.is_lazy(again["weight"])
        (True, True)
        >>> torch.equal(again["weight"], state["weight"])
        True
    """
    # A constant name inside the archive keeps the bytes independent of the file's name.
    with written_aside(Path(path), "save_recipe") as aside, aside.open("wb") as file, pickling():
        torch.save(obj, file)


def load_recipe(path: str | os.PathLike[str], *, weights_only: bool = True) -> Any:
    """Reads a file of `save_recipe`; tensors that were lazy are lazy again.

    A recipe may come from an untrusted source: it can only name operators on Dormant's own list,
    and is checked before anything is created.

    Args:
        path: the file.
        weights_only: False also creates objects of any class, such as whole models. Such a file can
            run any code, so it must come from a source that you trust, as with `torch.load`.

    Returns:
        The object.

    Raises:
        ValueError: the file is damaged, asks for an operator or a class that is not allowed, or has
            a version that this release does not read.
        OSError: the file cannot be read.

    Example:
        >>> import pathlib, tempfile, torch, dormant
        >>> with dormant.lazy_init():
        ...     layer = torch.nn.Linear(4, 4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "layer.recipe")
        ...     dormant.save_recipe(layer, path)
        ...     again = dormant.load_recipe(path, weights_only=False)
        >>> dormant.is_lazy(again)
        True
    """
    name = Path(path)
    try:
        with name.open("rb") as file, _Allowed():
            return torch.load(file, weights_only=weights_only)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"load_recipe: {name} asks for {named[1] if named else 'what recipes do not contain'}, "
            "expected tensors and plain containers. If you trust the file, load whole models "
            "with dormant.load_recipe(path, weights_only=False)."
        ) from error
    except (EOFError, RuntimeError, OSError) as error:
        # A damaged file may refer to a position before its beginning.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ValueError(
            f"load_recipe: {name} cannot be read: {error}. It is damaged or not a file of "
            "dormant.save_recipe; write it again."
        ) from error


def _reduce_to_recipe(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def replacement(self: torch.Tensor, proto: int) -> Any:
        as_recipe = _asked.open and _C.is_lazy(self)
        return reduce_tensor(self) if as_recipe else original(self, proto)

    return replacement


declare(
    Patch(
        torch.Tensor,
        "_reduce_ex_internal",
        "pickles the bytes of the storage, although the recipe may be wanted",
        _reduce_to_recipe,
    ),
)
