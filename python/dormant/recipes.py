"""Pickling of lazy tensors: what is written is how to make them.

A lazy tensor pickles as its geometry and one `RecipeStorage` for its storage, so ties and views
survive through pickle's own memo. The recipe is a versioned JSON document, the operators and their
arguments, with the bytes of the real tensors that were captured while recording: not the tensors,
since `torch.load` of the format before zip fills these only after everything was rebuilt.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dormant._extension import _C
from dormant.recording.patches import Patch, declare, in_use
from dormant.tensors.geometry import Geometry, geometry_of, lay_out
from dormant.tensors.storage import unrecorded

# A captured tensor: its dtype, sizes, strides, and the bytes of its elements in logical order.
Packed = tuple[torch.dtype, tuple[int, ...], tuple[int, ...], bytes]


class RecipeStorage:
    """Stands for one lazy storage in a pickle."""

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
# of a storage in here is not reused.
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
    """What `Tensor._reduce_ex_internal` returns for a lazy tensor.

    PyTorch's `__reduce_ex__` adds python attributes and subclasses on top, as for real tensors.
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
    """The captured tensor; ValueError where there is none of that geometry with so many bytes."""
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
            f"dormant: recipe: a captured tensor cannot be: {error}. The file is damaged, or "
            "another release wrote it; write it again with this release."
        ) from error
    with unrecorded():
        values = torch.empty(sizes, dtype=dtype)
        ctypes.memmove(values.data_ptr(), data, len(data))
        return torch.empty_strided(sizes, strides, dtype=dtype).copy_(values)


def load_storage(document: bytes, tensors: Sequence[Packed]) -> RecipeStorage:
    """A new lazy storage from its recipe.

    Args:
        document: the recipe, as `dormant._C.dump` wrote it.
        tensors: dtype, sizes, strides and bytes of the captured real tensors it refers to.

    Returns:
        The storage, lazy.

    Raises:
        ValueError: the document is damaged, its version is not one this release reads, or it names
            an operator that recipes may not run.
    """
    try:
        document.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"dormant: recipe: malformed document: it is no UTF-8 text at byte {error.start} of "
            f"{len(document)}. The file is damaged, or no recipe; write it again."
        ) from error
    with in_use():
        return RecipeStorage(_C.load(document, [_unpacked(tensor) for tensor in tensors]))


def rebuild_tensor(
    storage: RecipeStorage,
    geometry: tuple[Any, ...],
    requires_grad: bool,
    backward_hooks: OrderedDict[Any, Any],
) -> torch.Tensor:
    """A tensor over `storage` with this geometry; lazy as long as the storage is."""
    tensor = lay_out(storage.flat, Geometry(*geometry))
    tensor.requires_grad = requires_grad
    tensor._backward_hooks = backward_hooks
    return tensor


def safe_globals() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """What `torch.load(..., weights_only=True)` has to be allowed for files with recipes.

    Only operators on dormant's own list are ever run from a recipe, so allowing these does not
    allow a file to run other code.

    Returns:
        Functions for `torch.serialization.add_safe_globals` or `safe_globals`.

    Example:
        >>> import io, torch, dormant, dormant.recipes
        >>> with dormant.lazy_init():
        ...     state = torch.nn.Linear(2, 2).state_dict()
        >>> file = io.BytesIO()
        >>> torch.save(state, file)
        >>> _ = file.seek(0)
        >>> with torch.serialization.safe_globals(dormant.recipes.safe_globals()):
        ...     loaded = torch.load(file, weights_only=True)
        >>> dormant.is_lazy(loaded["weight"])
        True
    """
    return [load_storage, rebuild_tensor, RecipeStorage]


def _reduce_to_recipe(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def replacement(self: torch.Tensor, proto: int) -> Any:
        return reduce_tensor(self) if _C.is_lazy(self) else original(self, proto)

    return replacement


declare(
    Patch(
        torch.Tensor,
        "_reduce_ex_internal",
        "pickles the bytes of the storage: pickle, torch.save and copy.copy get the recipe",
        _reduce_to_recipe,
    ),
)
