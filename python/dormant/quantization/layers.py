"""Quantized weights that still know the full-precision tensor that they are computed from.

A quantized module holds packed bytes and statistics, so it has no parameter for the tensors of a
full-precision checkpoint. While its packed bytes are lazy, each weight therefore keeps its source:
the lazy float tensor that it is computed from. `load` exposes the sources as ordinary parameters
during `load_state_dict`. Afterwards it quantizes again, from the new histories, into the same
parameter objects.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeAlias

import torch

from dormant._extension import _C
from dormant.quantization.packed_format import PackedFormat
from dormant.recording.context import lazy_init
from dormant.tensors.division import divisions_of
from dormant.tensors.dtensor import is_dtensor
from dormant.tensors.shards import part_of


@dataclass
class _Source:
    """What a quantized weight is computed from; refers to no module, so it keeps none alive."""

    tensor: torch.Tensor
    transposed: bool
    requires_grad: bool
    format: PackedFormat
    # Sums over many scales depend on the number of threads.
    threads: int = field(default_factory=torch.get_num_threads)

    def weight(self) -> torch.Tensor:
        """The tensor in the layout in which it is quantized: [out, in]."""
        return self.tensor.t().contiguous() if self.transposed else self.tensor


# By the name of the parameter in its module.
_Sources: TypeAlias = "dict[str, _Source]"

_sources: weakref.WeakKeyDictionary[torch.nn.Module, _Sources] = weakref.WeakKeyDictionary()


class QuantizedWeight:
    """One quantized weight: the weight of a layer, or a parameter of another module.

    Attributes:
        name: its name in the state dict of the model.
        held_as: the name that the packed bytes have in `named_parameters`.
        module: the layer or module.
        attribute: the name of the parameter in the module.
        format: how it is packed.
    """

    def __init__(self, prefix: str, module: torch.nn.Module, source: _Source) -> None:
        self.module = module
        self.format = source.format
        self.attribute = source.format.attribute
        self.name = prefix + self.attribute
        self.held_as = prefix + source.format.held_as
        self._prefix = prefix
        self._source = source

    @property
    def source(self) -> torch.Tensor:
        """The lazy float tensor that is quantized, in the layout of a checkpoint."""
        return self._source.tensor

    @property
    def held(self) -> torch.nn.Parameter | None:
        """The packed parameter; after sharding, this may be a part of it, or nothing."""
        return _held(self.module, self._source)

    @property
    def is_whole(self) -> bool:
        """Whether the module has all packed bytes: nothing has sharded or taken them."""
        packed = _reachable(self.module, self._source)
        return packed is not None and not is_dtensor(packed)

    @property
    def place(self) -> tuple[int, str]:
        """Identity of the module that had the packed bytes as a parameter, and its name there."""
        return id(_holder(self.module, self._source)), self.format.held_as.split(".")[-1]

    @property
    def threads(self) -> int:
        """The number of threads that PyTorch had when the weight was quantized."""
        return self._source.threads

    @property
    def shape(self) -> torch.Size:
        """The shape of the weight as it is quantized: [out, in] for a linear layer."""
        sizes = self._source.tensor.shape
        return torch.Size(sizes[::-1]) if self._source.transposed else sizes

    def source_elements(self, begin: int, end: int) -> torch.Tensor:
        """Elements [begin, end) of the lazy float tensor in the order in which they are packed."""
        with torch.no_grad():
            return self._source.weight().detach().reshape(-1)[begin:end]

    def source_columns(self, begin: int, end: int) -> torch.Tensor:
        """Columns [begin, end) of the lazy float matrix, one row after the other."""
        with torch.no_grad():
            return self._source.weight().detach()[:, begin:end].reshape(-1)

    @property
    def is_lazy(self) -> bool:
        """Whether the packed bytes, or this rank's part of them, have no memory yet.

        True if FSDP1 holds them, because it does not say.
        """
        return _reachable(self.module, self._source) is None or _is_lazy(self.module, self._source)

    @contextlib.contextmanager
    def expose(self, *, dtype: torch.dtype | None = None) -> Iterator[torch.nn.Parameter]:
        """Replaces the quantized parameter by a float parameter while the context is open.

        The float parameter starts with the history of the source. At the end, what was written to
        it, or to a parameter that replaced it, is quantized lazily into the same parameter object
        as before. If nothing was written and no dtype was given, or after an exception, everything
        is unchanged.

        Args:
            dtype: what is quantized is first cast to this dtype.

        Yields:
            The float parameter.

        Raises:
            NotImplementedError: FSDP1 holds the packed bytes in its flat parameter.
        """
        self._check_reachable()
        source = self._source
        # A tensor that was created in inference mode would not count writes to it.
        with torch.inference_mode(False):
            exposed = torch.nn.Parameter(_copy(source.tensor), requires_grad=source.requires_grad)
        version = exposed._version
        with source.format.showing(self.module, exposed):
            yield exposed
            written = self.module._parameters[self.attribute]
        assert written is not None
        changed = written is not exposed or written._version != version
        if not changed and dtype in (None, source.tensor.dtype):
            return
        with torch.no_grad():
            tensor = written.detach()
            replaced = replace(
                source,
                tensor=tensor if dtype is None else tensor.to(dtype),
                threads=torch.get_num_threads(),
            )
            source.format.check(replaced.tensor, self.name)
            source.format.refresh(self.module, replaced.weight())
        self._source = _remember(self.module, _to_keep(replaced))

    def accept_prequantized(self, entries: Mapping[str, torch.Tensor]) -> None:
        """Takes a weight that a checkpoint has in quantized form; stays lazy if that is lazy.

        Args:
            entries: the checkpoint's tensors of this weight by their names within its module:
                "weight", "weight.absmax", "weight.quant_map", ... or "weight", "SCB",
                "weight_format".

        Raises:
            KeyError: a part is missing, or there is an additional one.
            NotImplementedError: FSDP1 holds the packed bytes in its flat parameter.
            ValueError: a part does not match the weight, or is quantized in another way.
        """
        self._check_reachable()
        tensor = self._source.tensor
        sizes = tensor.shape[::-1] if self._source.transposed else tensor.shape
        with torch.no_grad():
            self._source.format.accept(self.module, entries, torch.Size(sizes))
        # The tensor that was to be quantized is not the source of these bytes.
        self._source = _remember(self.module, _placeholder(self._source))

    def prequantized_names(self) -> tuple[str, ...]:
        """Every name under which a checkpoint of quantized weights may keep parts of this one."""
        return tuple(self._prefix + part for part in self._source.format.parts)

    def _check_reachable(self) -> None:
        if _reachable(self.module, self._source) is None:
            raise NotImplementedError(
                f"load: {self.name} is quantized, and FSDP has it in a flat parameter, which no "
                "checkpoint matches. Load before you shard: dormant.quantize, dormant.load(..., "
                "materialize=False), FullyShardedDataParallel, dormant.materialize; or use "
                "fully_shard."
            )


def register(
    module: torch.nn.Module,
    weight: torch.Tensor,
    *,
    transposed: bool,
    requires_grad: bool,
    packed_format: PackedFormat,
) -> None:
    """Remembers `weight`, as the module held it, as the source of what the module holds now."""
    _remember(module, _to_keep(_Source(weight, transposed, requires_grad, packed_format)))


def format_of(module: torch.nn.Module) -> PackedFormat | None:
    """How `dormant.quantize` packed the weight of a layer; None for other modules."""
    source = _sources.get(module, {}).get("weight")
    return None if source is None or _reachable(module, source) is None else source.format


def set_format(module: torch.nn.Module, packed_format: PackedFormat) -> None:
    """Changes how a weight of `module` is packed from now on."""
    source = _sources[module][packed_format.attribute]
    _remember(module, replace(source, format=packed_format))


def quantized_weights(model: torch.nn.Module) -> list[QuantizedWeight]:
    """The quantized weights in `model` that `dormant.quantize` made, each once.

    Args:
        model: the module, or one that holds it.

    Returns:
        The weights in the order of `named_modules`.
    """
    if not _sources:  # nothing in this process is quantized
        return []
    return [
        QuantizedWeight(f"{name}." if name else "", module, source)
        for name, module in model.named_modules()
        for source in tuple(_sources.get(module, {}).values())
        if _holder(module, source) is not None
    ]


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All tensors of the model's state dict, by every name."""
    found = dict(model.named_parameters(remove_duplicate=False))
    # A module's own hook restores the previous names of packed parameters.
    names = {weight.held_as: weight.name for weight in quantized_weights(model)}
    found = {names.get(name, name): parameter for name, parameter in found.items()}
    persistent: dict[str, torch.Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                persistent[f"{prefix}.{name}" if prefix else name] = buffer
    return {**found, **persistent}


class HeldQuantization:
    """The sources of a model's quantized weights, and how they are held, for `restore`.

    It does not hold the tensors themselves.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        weights = quantized_weights(model)
        self._sources = [(weight.module, weight._source) for weight in weights]
        self._without_copier = [
            module for module, _ in self._sources if _Copier.ATTRIBUTE not in vars(module)
        ]
        self._attributes = [
            attributes
            for module, source in self._sources
            if _reachable(module, source) is not None
            for attributes in source.format.attributes(module)
        ]

    def restore(self) -> None:
        """Restores everything as it was when this object was created."""
        for module, source in self._sources:
            _sources[module][source.format.attribute] = source
        for module in self._without_copier:
            vars(module).pop(_Copier.ATTRIBUTE, None)
        for attributes, before in self._attributes:
            attributes.clear()
            attributes.update(before)


def _holder(module: torch.nn.Module, source: _Source) -> torch.nn.Module | None:
    """The module that has the packed bytes as a parameter; None if quantization was undone."""
    holder: torch.nn.Module | None = module
    for name in source.format.held_as.split(".")[:-1]:
        holder = None if holder is None else holder._modules.get(name)
    return holder


def _held(module: torch.nn.Module, source: _Source) -> torch.nn.Parameter | None:
    """The packed parameter of `source`; after sharding, this may be a part, or None."""
    holder = _holder(module, source)
    return None if holder is None else holder._parameters.get(source.format.held_as.split(".")[-1])


def _reachable(module: torch.nn.Module, source: _Source) -> torch.nn.Parameter | None:
    """The packed weight, whole or a DTensor; None if FSDP1 has taken it."""
    parameter = _held(module, source)
    # FSDP1 leaves a run of its flat parameter, or no parameter.
    if parameter is None or (parameter.dim() != 2 and not is_dtensor(parameter)):
        return None
    return parameter


def adopt_parts(roots: Iterable[object], operation: str) -> None:
    """Prepares the modules for parts of weights that were sharded after they were quantized.

    Args:
        roots: modules; other objects are ignored.
        operation: "load" or "materialize", for the message.

    Raises:
        NotImplementedError: nothing gathers such a weight before it is used.
    """
    for root in roots:
        for weight in quantized_weights(root) if isinstance(root, torch.nn.Module) else ():
            divided = weight.format.held_as in divisions_of(weight.module)
            if divided and _reachable(weight.module, weight._source) is None:
                raise NotImplementedError(
                    f"{operation}: {weight.name} was quantized by {weight.format}, divided for "
                    "tensor or expert parallelism, and taken by FSDP1. Use fully_shard instead, or "
                    "only one of them."
                )
            if _is_never_gathered(weight):
                raise NotImplementedError(
                    f"{operation}: {weight.name} was quantized by {weight.format} and then "
                    "divided by distribute_tensor or distribute_module; the layers of bitsandbytes "
                    "cannot compute with such a part. Use parallelize_module with ColwiseParallel "
                    "and RowwiseParallel, or fully_shard, before anything is materialized."
                )
            if is_dtensor(weight.held):
                weight.format.adopt_part(weight.module)


def _is_never_gathered(weight: QuantizedWeight) -> bool:
    """Whether the module would compute with a part of its weight: no fully_shard gathers it."""
    parameter = _held(weight.module, weight._source)
    if not is_dtensor(parameter):
        return False
    divisions = sum(not placement.is_replicate() for placement in parameter.placements)
    # fully_shard marks the modules whose parameters it has taken, and undoes one division.
    return divisions > int(hasattr(weight.module, "_is_fsdp_managed_module"))


def forget_sources(roots: Iterable[object]) -> None:
    """Drops the histories of weights that are real now.

    They are no longer needed, and a lazy tensor that is alive keeps Dormant's patches in place.

    Args:
        roots: modules; other objects are ignored.
    """
    if not _sources:
        return
    for root in roots:
        for module in root.modules() if isinstance(root, torch.nn.Module) else ():
            if module in _sources:
                _forget_finished(module)


def _forget_finished(module: torch.nn.Module) -> None:
    sources = _sources[module]
    for attribute, source in tuple(sources.items()):
        if _is_lazy(module, source):
            continue
        if _holder(module, source) is None:
            del sources[attribute]
        else:
            source.format.finish(module)
            sources[attribute] = _placeholder(source)
    if not any(_is_lazy(module, source) for source in sources.values()):
        vars(module).pop(_Copier.ATTRIBUTE, None)


def _is_lazy(module: torch.nn.Module, source: _Source) -> bool:
    packed = _reachable(module, source)
    own = None if packed is None else part_of(packed)
    return packed is not None and _C.is_lazy(packed if own is None else own)


class _Copier:
    """An attribute of a lazy quantized module that gives a deep copy its own sources."""

    ATTRIBUTE: ClassVar[str] = "_dormant_copier"

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = weakref.ref(module)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Copier | None:
        module = self._module()
        sources = _sources.get(module) if module is not None else None
        duplicate = memo.get(id(module))
        if module is None or not sources or duplicate is None:
            return None
        for source in sources.values():
            source.format.follow(module, duplicate, memo)
        _sources[duplicate] = {name: _to_keep(source) for name, source in sources.items()}
        return _Copier(duplicate)

    def __reduce__(self) -> tuple[Any, ...]:
        # Only the library's module is pickled.
        return type(None), ()


def _remember(module: torch.nn.Module, source: _Source) -> _Source:
    _sources.setdefault(module, {})[source.format.attribute] = source
    if _is_lazy(module, source):
        vars(module)[_Copier.ATTRIBUTE] = _Copier(module)
    return source


def _to_keep(source: _Source) -> _Source:
    """`source` in a separate storage, which no replay of the quantized one materializes."""
    if not _C.is_lazy(source.tensor):
        return _placeholder(source)
    with torch.no_grad():
        return replace(source, tensor=source.tensor.detach().clone())


def _placeholder(source: _Source) -> _Source:
    """A source of the same geometry on the meta device: it has neither values nor a history."""
    tensor = torch.empty(source.tensor.shape, dtype=source.tensor.dtype, device="meta")
    return replace(source, tensor=tensor)


def _copy(source: torch.Tensor) -> torch.Tensor:
    """A lazy tensor with the history of `source`; without values if `source` has no history."""
    with torch.no_grad():
        if not source.is_meta:
            return source.detach().clone()
        with lazy_init():
            return torch.empty(source.shape, dtype=source.dtype, device="cpu")
