"""Files of torch.save: their tensors by name, and their other contents.

They are read by the core (csrc/checkpoint/torch_archive.h, torch_state.h): no class that a file
names is imported, and nothing that it names is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch._weights_only_unpickler import _get_allowed_globals

from dormant._extension import _C
from dormant.checkpoint.entry import (
    Checksum,
    Contents,
    Entry,
    StoredTensor,
    contiguous_strides,
    place_of,
)
from dormant.checkpoint.torch_values import Values, allowed_by_user, module_versions, versions

# Returns how many of these names a model has.
Fits = Callable[[Iterable[str]], int]
# What to do with objects of classes that weights-only loading does not know.
Foreign = Literal["inert", "error"]

is_torch_file = _C.is_torch_file


def read_torch_file(
    file: _C.File,
    *,
    key: str | None = None,
    fits: Fits | None = None,
    foreign: Foreign = "inert",
) -> Contents:
    """Finds the tensors of a file of torch.save without reading their bytes.

    Args:
        file: the file, for which `is_torch_file` is true.
        key: name of the mapping or module in the file that holds the tensors; "" is the top level.
            None chooses it.
        fits: returns how many of the given names are wanted.
        foreign: "inert" shows objects of unknown classes as records; "error" refuses the file.

    Raises:
        KeyError: the file has no mapping `key`.
        ValueError: it is damaged or contradicts itself; it holds no mapping from names to tensors,
            or several; or it names unknown classes, and `foreign` is "error".
        NotImplementedError: it has the layout from before torch 0.1.10 (tar), or tensors that are
            not views of bytes in the file.
    """
    path = file.path
    archive = _open(file)
    allowed = allowed_by_user()
    unknown = _foreign(archive, allowed)
    if foreign == "error":
        _refuse_foreign(archive, unknown)
    state = archive.find_state(key, fits)
    tensors = {
        name: _stored(file, archive, number, f"{path}: tensor {name!r}")
        for name, number in state["tensors"]
    }
    known = module_versions(state["modules"]) or None
    if state["mapping"] is not None:
        values = Values(archive, lambda number: None, allowed, path)
        known = versions(values.objects[state["mapping"]], values)

    def extra() -> dict[str, Any]:
        def make(number: int) -> torch.Tensor:
            return _like(file, archive, number, f"{path}: extra")

        made = Values(archive, make, allowed, f"{path}: extra")
        beside: dict[str, Any] = {}
        for name, number in state["beside"]:
            beside["" if name is None else made.key(name)] = made.value(number)
        return beside

    return Contents(
        file=file,
        tensors=tensors,
        checksums=[Checksum(*run) for run in archive.checksums()],
        versions=known,
        extra=extra,
        foreign=tuple(sorted(unknown)),
    )


def read_objects(
    file: _C.File,
    finish: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
    is_for_cpu: Callable[[str], bool] = lambda location: True,
) -> Any:
    """Returns what `torch.load(weights_only=True)` returns, but with lazy tensors.

    Args:
        file: the file.
        finish: a function that is applied to each tensor.
        is_for_cpu: returns whether storages that were saved from the device of a given name are
            loaded to the CPU.

    Raises:
        ValueError: as for `read_torch_file`, except that the containers may be of any kind.
        NotImplementedError: as for `read_torch_file`; or an object that is not a plain container
            has tensors; or not everything is loaded to the CPU.
    """
    archive = _open(file)
    allowed = allowed_by_user()
    _refuse_foreign(archive, _foreign(archive, allowed))
    for key, location in archive.locations().items():
        if not is_for_cpu(location):
            raise NotImplementedError(
                f"open_checkpoint: {file.path}: storage {key!r} was saved from device "
                f"{location!r} and is not loaded to the CPU. Load it with torch.load."
            )

    def make(number: int) -> torch.Tensor:
        return _like(file, archive, number, file.path, finish=finish)

    return Values(archive, make, allowed, file.path, strict=True).value(archive.root)


def _open(file: _C.File) -> _C.TorchArchive:
    file.copy_always()  # torch.save empties the file that it replaces
    archive = _C.TorchArchive(file)
    if any(name.startswith("dormant.recipes.") for name, _ in archive.globals()):
        raise ValueError(
            f"open_checkpoint: {archive.where} is a recipe and has no values of tensors. Load it "
            "with dormant.load_recipe."
        )
    return archive


def _foreign(archive: _C.TorchArchive, allowed: dict[str, Any]) -> dict[str, int]:
    """The names that weights-only loading refuses, with the byte of the pickle that has each."""
    known = _get_allowed_globals()
    return {
        name: offset
        for name, offset in archive.globals()
        if name not in known and name not in allowed
    }


def _refuse_foreign(archive: _C.TorchArchive, unknown: dict[str, int]) -> None:
    if unknown:
        name = min(unknown, key=unknown.__getitem__)
        raise ValueError(
            f"open_checkpoint: {archive.where} is refused by weights-only loading at byte "
            f"{unknown[name]}: it asks for {name}, expected tensors and plain containers. Open it "
            'with foreign="inert", which creates no such objects, or allow them with '
            "torch.serialization.add_safe_globals if you trust the file."
        )


def _stored(file: _C.File, archive: _C.TorchArchive, number: int, where: str) -> StoredTensor:
    """The position of a tensor, after checking that all of it is in the file."""
    tensor = archive.tensor(number, where)
    entry = Entry(
        dtype=tensor.dtype,
        shape=tensor.sizes,
        nbytes=tensor.nbytes,
        file=place_of(file),
        offset=tensor.offset,
        strides=None if tensor.strides == contiguous_strides(tensor.sizes) else tensor.strides,
    )
    return StoredTensor(
        entry,
        tensor.storage,
        tensor.storage_offset,
        tensor.strides,
        tensor.conjugated,
        tensor.negated,
    )


def _like(
    file: _C.File,
    archive: _C.TorchArchive,
    number: int,
    where: str,
    *,
    finish: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """The tensor as the pickle makes it: a parameter, or a tensor that requires a gradient."""
    about = archive.tensor(number, where)
    if about.has_attributes and finish is not None:
        raise NotImplementedError(
            f"open_checkpoint: {where} has a tensor with Python attributes or of a subclass. "
            "Load it with torch.load."
        )
    tensor = _stored(file, archive, number, where).tensor()
    if finish is not None:
        tensor = finish(tensor)
    if about.is_parameter:
        return torch.nn.Parameter(tensor, requires_grad=about.requires_grad)
    return tensor.requires_grad_() if about.requires_grad else tensor
