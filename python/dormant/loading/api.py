"""`load`: a checkpoint into a model, lazy or real, in one pass."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch

from dormant._extension import _C
from dormant.checkpoint.api import open_checkpoint
from dormant.loading.snapshot import HeldModule
from dormant.materialization.api import bring_to_life, is_lazy, make_report, steps
from dormant.materialization.options import (
    check_choice,
    check_dtype,
    check_memory_budget,
)
from dormant.quantization.layers import QuantizedWeight, forget_sources, quantized_weights
from dormant.quantization.layerwise import pending_layers
from dormant.recording import patches
from dormant.recording.dtensor_copies import own_part
from dormant.reporting.memory import MemoryTrace, PeakMemory
from dormant.reporting.progress import Callback
from dormant.reporting.report import Origin, Report, with_memory_trace
from dormant.tensor_parallel.sets import apply_diffs
from dormant.tensors.conversion import as_dtype, convert
from dormant.tensors.device import check_device
from dormant.tensors.dtensor import is_dtensor
from dormant.tensors.identity import identity
from dormant.tensors.inventory import (
    Inventory,
    element_bytes,
    is_wrapper,
    owns_storage,
    take_inventory,
)
from dormant.tensors.names import NamesError, Rename, listed, renamed, renamed_prefix, renaming
from dormant.text.printable import printable

CheckpointLike: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any]"
Mmap = Literal["auto", "always", "never"]

_EXTRA_STATE = "_extra_state"  # torch.nn.modules.module._EXTRA_STATE_KEY_SUFFIX

# load_state_dict makes text of what is raised while it copies: these are the words of
# c10/core/impl/alloc_cpu.cpp and of C++.
_NO_MEMORY = ("can't allocate memory", "bad_alloc")

# Tied names that are both in a checkpoint are compared in parts of this size.
_COMPARED_BYTES = 16 << 20


def load(
    model: torch.nn.Module,
    checkpoint: CheckpointLike | Sequence[CheckpointLike],
    *,
    missing: Literal["init", "error"] = "init",
    unexpected: Literal["error", "ignore"] = "error",
    mismatched: Literal["error", "init"] = "error",
    rename: Rename | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | int | None = None,
    materialize: bool = True,
    memory_budget: int | None = None,
    mmap: Mmap = "auto",
    progress: bool | Callback | None = None,
    trace_memory: bool = False,
    verbose: bool = False,
) -> Report:
    """Loads a checkpoint into a model and brings the model to life, in one pass.

    What the checkpoint has is read once, cast and cut on the way, straight into its final memory;
    what it lacks gets its own recorded initialisation; nothing is initialised in vain. The result
    has the bits of eager construction followed by `load_state_dict`, which is what runs here, with
    its hooks, on lazy tensors.

    It succeeds or changes nothing: a lazy model is as lazy as before after any error or Ctrl-C.
    (Where `dormant.quantize` left layers to another library's quantiser, that begins when the rest
    has succeeded; if it fails, the layers that remain are lazy, and `materialize` continues.)
    Tensors that were real are written in place once everything has been checked; where reading
    then fails, the error names those that were written.

    Args:
        model: lazy, real or mixed. Sharded parameters (DTensor) read their own part only.
        checkpoint: a path (see `open_checkpoint`), a `Checkpoint`, a state dict, or a sequence of
            these, of which later ones replace what earlier ones gave.
        missing: names that the checkpoint lacks: "init" initialises them as recorded (real ones
            keep their values), "error" refuses. A tied tensor needs one of its names.
        unexpected: names that the model lacks: "error" refuses, "ignore" leaves them out.
        mismatched: other shapes than the model's: "error" refuses, "init" treats them as missing.
        rename: from the checkpoint's names to the model's: a mapping of names, in which keys that
            are "" or end with "." stand for prefixes, or a function that returns the new name, or
            None to leave a tensor out. With several checkpoints it applies to each.
        dtype: floating point and complex tensors get this dtype, as by `model.to(dtype)` before
            loading; None keeps the model's.
        device: where the tensors shall be, as in `model.to(device)`; they are made on the CPU.
        materialize: False leaves lazy tensors lazy, loaded ones with the file as their source.
        memory_budget: bytes that this may take besides the final tensors; None sets no bound.
        mmap: whether tensors that keep the file's dtype may show its bytes in place, privately, so
            that they take no time and no memory until read: "auto" where whoever writes to the
            file later waits until they have copies (safetensors on a local filesystem of Linux),
            "always", where nobody may write to the file as long as the model lives, or "never".
        progress: True shows a progress bar, False none; a function is called with (done, total)
            bytes; None shows a bar where stderr is a terminal and it takes longer than a second.
        trace_memory: look at the memory of the process every few milliseconds from a thread of its
            own; `Report.memory_trace` holds what it saw, and `Report.plot` draws it.
        verbose: print the report.

    Returns:
        Where each tensor came from, what was missing, and what it cost.

    Raises:
        TypeError: an argument is of a type that cannot be used.
        ValueError: an option is not one of those possible; the model has tensors on the meta
            device; a file is damaged or was changed since it was opened; tied names have different
            values; two tensors get one name.
        KeyError: names that are missing, unexpected or of another shape, all of them listed, with
            the prefix to rename where one would help.
        NotImplementedError: a format or an operator that is not supported; the message names it.
        RuntimeError: an operator failed, as where memory is exhausted; its message says which.
        MemoryError: memory is exhausted.
        OSError: the system could not read a file; with its errno.
        KeyboardInterrupt: the user interrupted it.

    Example:
        >>> import pathlib, tempfile, torch, dormant
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "model.pt")
        ...     torch.save({"weight": torch.ones(2, 3)}, path)
        ...     with dormant.lazy_init():
        ...         layer = torch.nn.Linear(3, 2)
        ...     report = dormant.load(layer, path)
        >>> report.count("checkpoint"), report.missing, bool((layer.weight == 1).all())
        (1, ('bias',), True)
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"load: model must be a module, got {type(model).__name__}.")
    check_choice(missing, ("init", "error"), "missing", "load")
    check_choice(unexpected, ("error", "ignore"), "unexpected", "load")
    check_choice(mismatched, ("error", "init"), "mismatched", "load")
    check_choice(mmap, ("auto", "always", "never"), "mmap", "load")
    check_dtype(dtype, "load")
    place = check_device(device, "load")
    check_memory_budget(memory_budget, "load")
    # A quantiser of another library needs whole layers: one after the other, from the file.
    layerwise = materialize and bool(pending_layers(model))
    # At the end the lazy tensors of the checkpoint are gone.
    with patches.in_use(), MemoryTrace(trace_memory) as trace:
        report = _load(
            model,
            checkpoint,
            missing=missing,
            unexpected=unexpected,
            mismatched=mismatched,
            rename=renaming(rename),
            dtype=dtype,
            place=place,
            materialize=materialize and not layerwise,
            memory_budget=memory_budget,
            mmap=mmap,
            progress=progress,
        )
        if layerwise:
            finished = bring_to_life(
                [("", model)],
                place=place,
                memory_budget=memory_budget,
                mmap=mmap,
                progress=progress,
            )
            report = replace(
                finished,
                missing=report.missing,
                unexpected=report.unexpected,
                mismatched=report.mismatched,
                seconds=report.seconds + finished.seconds,
            )
    report = with_memory_trace(report, trace.samples)
    if verbose:
        print(report)
    return report


def _load(
    model: torch.nn.Module,
    checkpoint: CheckpointLike | Sequence[CheckpointLike],
    *,
    missing: str,
    unexpected: str,
    mismatched: str,
    rename: Callable[[str], str | None],
    dtype: torch.dtype | None,
    place: torch.device | None,
    materialize: bool,
    memory_budget: int | None,
    mmap: Mmap,
    progress: bool | Callback | None,
) -> Report:
    started = time.perf_counter()
    peak = PeakMemory()
    state = _state(checkpoint, rename)
    _check_values_can_be_held(model)
    inventory = take_inventory([("", model)])
    finished: dict[int, _C.MaterializedStorage] = {}
    held = HeldModule(model)
    try:
        names = _take(model, state, dtype, defer=materialize)
        if names.mismatched:
            # load_state_dict has taken the others, but says of them only that there was an error.
            held.restore()
            held = HeldModule(model)
            try:
                rest = _take(model, state.without(names.mismatched), dtype, defer=materialize)
            except Exception:  # a hook may want what was left out, and that is refused anyway
                if mismatched == "init":
                    raise
                rest = names
            absent = [n for n in rest.missing if mismatched == "init" or n not in names.mismatched]
            names = replace(rest, missing=tuple(absent), mismatched=names.mismatched)
        _check_names(names, missing, unexpected, mismatched)
        with steps("load", progress, peak) as on_step:

            def realize(tensors: list[torch.Tensor]) -> None:
                for storage in _C.materialize(
                    tensors, "exact", on_step, memory_budget, mmap, held.tensors
                ):
                    finished[storage["storage"]] = storage

            loaded = take_inventory([("", model)])
            realize(_wanted(loaded, inventory) if materialize else [])
    except BaseException as error:
        written = held.partly_written()
        held.restore()
        if written and isinstance(error, (ValueError, OSError, RuntimeError, MemoryError)):
            raise _with_names(error, written) from error
        raise
    held.keep()
    if materialize:
        forget_sources([model])
    read_at_once = _read_at_once(model, names.read_at_once)  # storages that `place` exchanges
    if place is not None and materialize:
        convert([("", model)], lambda tensor: tensor.to(place))
    return replace(
        make_report(
            _merged(inventory, loaded),
            finished,
            values="exact",
            seconds=time.perf_counter() - started,
            peak_memory=peak.result(),
            origins=read_at_once,
        ),
        missing=names.missing,
        unexpected=names.unexpected,
        mismatched=tuple(names.mismatched),
    )


@dataclass(frozen=True)
class _Names:
    """What model and checkpoint do not share; mismatched ones with both shapes.

    `read_at_once` are those whose values had to be copied while the checkpoint was taken.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    read_at_once: tuple[str, ...] = ()


def _state(
    checkpoint: CheckpointLike | Sequence[CheckpointLike],
    rename: Callable[[str], str | None],
) -> _State:
    """All tensors, and other values, under the model's names."""
    state: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    items: Sequence[Any] = checkpoint if isinstance(checkpoint, (list, tuple)) else [checkpoint]
    for item in items:
        if isinstance(item, (str, os.PathLike)):
            item = open_checkpoint(item)
        if not isinstance(item, Mapping):
            raise TypeError(
                "load: checkpoint must be a path, a mapping of names to tensors, or a sequence of "
                f"these; got {type(item).__name__}."
            )
        values = {name: item[name] for name in item}
        for name, value in getattr(item, "extra", {}).items():
            if name.endswith(_EXTRA_STATE):
                values.setdefault(name, value)
        values = renamed(values, rename)
        if getattr(item, "are_differences", False):
            if not state:
                raise ValueError(
                    f"load: {item!r} holds differences, which are added to other weights. Pass "
                    "[base, differences], or their sum as a mapping."
                )
            values = apply_diffs({name: state[name] for name in values if name in state}, [values])
        state.update(values)
        metadata.update(getattr(item, "_metadata", None) or {})
    return _State(state, metadata)


class _State(dict[str, Any]):
    """A state dict; `_metadata` is where `load_state_dict` looks for module versions."""

    def __init__(self, values: Mapping[str, Any], metadata: dict[str, Any]) -> None:
        super().__init__(values)
        if metadata:  # load_state_dict asks whether there is any
            self._metadata = metadata

    def like_this(self, values: Mapping[str, Any]) -> _State:
        """Other values of the same modules."""
        return _State(values, getattr(self, "_metadata", {}))

    def without(self, names: Collection[str]) -> _State:
        return self.like_this({name: self[name] for name in self if name not in names})


def _take(
    model: torch.nn.Module, state: _State, dtype: torch.dtype | None, *, defer: bool
) -> _Names:
    """Runs the module's own `load_state_dict` on lazy tensors."""
    if dtype is not None:
        convert([("", model)], as_dtype(dtype))
    given = state.like_this(
        {name: _lazily(value) if defer else value for name, value in state.items()}
    )
    with contextlib.ExitStack() as exposed:
        taken = _expose(quantized_weights(model), given, dtype, exposed)
        tensors = _tensors_of(model)
        for name in [name for name in given if is_dtensor(tensors.get(name))]:
            given[name] = _shard(given[name], tensors[name])
        _check_ties(tensors, given)
        at_once = tuple(
            name
            for name, tensor in tensors.items()
            if isinstance(given.get(name), torch.Tensor)
            and (_uninitialised(tensor) or not is_lazy(given[name]))
        )
        try:
            result = model.load_state_dict(given, strict=False)
        except RuntimeError as error:
            mismatched = {
                name: (tuple(given[name].shape), tuple(tensor.shape))
                for name, tensor in tensors.items()
                if isinstance(given.get(name), torch.Tensor)
                and not _uninitialised(tensor)
                and not _fits(given[name], tensor)
            }
            if not mismatched and any(words in str(error) for words in _NO_MEMORY):
                raise RuntimeError(f"load: there was no memory for a copy: {error}") from error
            if not mismatched:
                raise ValueError(f"load: the module refused the checkpoint: {error}") from error
            absent = tuple(name for name in tensors if name not in given)
            return _Names(absent, (), mismatched)
    missing, unexpected = _names_of(result, tensors, given)
    loaded = {identity(tensors[name]) for name in given if name in tensors}
    absent = tuple(
        name
        for name in missing
        if name not in taken and (name not in tensors or identity(tensors[name]) not in loaded)
    )
    return _Names(absent, tuple(unexpected), {}, at_once)


def _names_of(
    result: object, tensors: Mapping[str, torch.Tensor], given: Mapping[str, Any]
) -> tuple[Sequence[str], Sequence[str]]:
    """(missing, unexpected) as `load_state_dict` said; some classes have one that says nothing."""
    missing = getattr(result, "missing_keys", None)
    unexpected = getattr(result, "unexpected_keys", None)
    if missing is None:
        missing = [name for name in tensors if name not in given]
    if unexpected is None:
        unexpected = [
            name for name in given if name not in tensors and not name.endswith(_EXTRA_STATE)
        ]
    return missing, unexpected


def _expose(
    weights: Iterable[QuantizedWeight],
    state: dict[str, Any],
    dtype: torch.dtype | None,
    exposed: contextlib.ExitStack,
) -> set[str]:
    """Lets quantised weights take full-precision tensors; hands over those already quantised."""
    taken: set[str] = set()
    for weight in weights:
        if not weight.is_lazy:
            continue
        parts = [name for name in weight.prequantized_names() if name in state]
        if len(parts) > 1:
            prefix = weight.name.removesuffix(weight.attribute)
            weight.accept_prequantized(
                {name.removeprefix(prefix): state.pop(name) for name in parts}
            )
            taken.update(parts)
        else:
            exposed.enter_context(weight.expose(dtype=dtype))
    return taken


def _lazily(value: Any) -> Any:
    """A real tensor as a lazy one that reads it: nothing is copied before all is checked."""
    if (
        isinstance(value, torch.Tensor)
        and type(value) in (torch.Tensor, torch.nn.Parameter)
        and owns_storage(value)
        and value.device.type == "cpu"
        and not value.is_quantized
        and not _C.is_lazy(value)
        and not value.is_conj()
        and not value.is_neg()
        and value.is_contiguous()
    ):
        return _C.read_of(value)
    return value


def _tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a state dict of the model would hold, by every name."""
    found = dict(model.named_parameters(remove_duplicate=False))
    persistent: dict[str, torch.Tensor] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                persistent[f"{prefix}.{name}" if prefix else name] = buffer
    return {**found, **persistent}


def _shard(value: Any, like: torch.Tensor) -> Any:
    """This rank's part of a whole tensor of the right shape."""
    if not isinstance(value, torch.Tensor) or is_dtensor(value):
        return value
    assert is_dtensor(like)
    return own_part(value, like) if value.shape == like.shape else value


def _fits(value: torch.Tensor, tensor: torch.Tensor) -> bool:
    # Module._load_from_state_dict takes a scalar from a vector of one, as PyTorch 0.3 saved them.
    return value.shape == tensor.shape or (tensor.dim() == 0 and tuple(value.shape) == (1,))


def _read_at_once(model: torch.nn.Module, names: Sequence[str]) -> dict[int, Origin]:
    """What the report says of storages that got their values without the core's help."""
    tensors = _tensors_of(model) if names else {}
    return {
        _C.storage_id(tensors[name]): "checkpoint"
        for name in names
        if name in tensors and owns_storage(tensors[name]) and not is_wrapper(tensors[name])
    }


def _check_values_can_be_held(model: torch.nn.Module) -> None:
    """Raises ValueError where the model has tensors on the meta device."""
    named = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    held = [name for name, tensor in named.items() if tensor.is_meta]
    if held:
        raise ValueError(
            f"load: {len(held)} of {len(named)} tensors of the model are on the meta device, which "
            f"holds no values: {', '.join(map(printable, held[:10]))}"
            f"{', ...' if len(held) > 10 else ''}. Build the model in dormant.lazy_init() instead; "
            "or, where the checkpoint has everything, let the model take its tensors: "
            "model.load_state_dict(dormant.open_checkpoint(path), assign=True) and "
            "dormant.materialize(model)."
        )


def _uninitialised(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, (torch.nn.UninitializedParameter, torch.nn.UninitializedBuffer))


def _check_ties(tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
    """Raises ValueError where a checkpoint has different values for names of one tensor."""
    first: dict[object, str] = {}
    for name, tensor in tensors.items():
        if not isinstance(state.get(name), torch.Tensor):
            continue
        other = first.setdefault(identity(tensor), name)
        if other != name and not _same_values(state[other], state[name]):
            raise ValueError(
                f"load: {other!r} and {name!r} are one tensor in the model and have different "
                "values in the checkpoint. Leave one of them out (rename to None), or untie them "
                "in the model."
            )


def _same_values(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have the same bits; of lazy ones a part at a time is read."""
    if a.shape != b.shape or a.dtype is not b.dtype:
        return False
    if a is b or is_dtensor(a) or is_dtensor(b):
        return True
    if identity(a) == identity(b) or a.numel() == 0:
        return True
    with torch.no_grad():
        a, b = a.detach(), b.detach()
        if a.dim() == 0:
            a, b = a.view(1), b.view(1)
        rows = max(1, _COMPARED_BYTES * a.shape[0] // element_bytes(a))
        for row in range(0, a.shape[0], rows):
            parts = [each[row : row + rows].clone() for each in (a, b)]
            _C.materialize(parts, "exact", None, None, "never")
            one, other = (part.contiguous().view(-1).view(torch.uint8) for part in parts)
            if not torch.equal(one, other):
                return False
    return True


def _check_names(names: _Names, missing: str, unexpected: str, mismatched: str) -> None:
    """Raises KeyError for the names that are refused, all of them at once."""
    refused = ""
    if missing == "error":
        refused += listed("missing in the checkpoint", names.missing)
    if unexpected == "error":
        refused += listed("not in the model", names.unexpected)
    if mismatched == "error":
        refused += listed(
            "of another shape",
            (
                f"{name}: {theirs} in the checkpoint, {ours} in the model"
                for name, (theirs, ours) in names.mismatched.items()
            ),
        )
    if refused:
        raise NamesError(
            f"load: the checkpoint does not fit the model; nothing was changed.{refused}\n"
            + (f"{hint} " if (hint := renamed_prefix(names.unexpected, names.missing)) else "")
            + "Rename with rename=, or accept it with missing='init', unexpected='ignore' or "
            "mismatched='init'."
        )


def _wanted(loaded: Inventory, before: Inventory) -> list[torch.Tensor]:
    """The tensors to bring to life: the lazy ones, except those that are only held."""
    had_memory = {
        storage for storage in before.storage_nbytes if storage not in before.lazy_storages
    }
    return [tensor for storage, tensor in loaded.lazy_storages.items() if storage not in had_memory]


def _merged(before: Inventory, loaded: Inventory) -> Inventory:
    """What the model holds now, with what was real before said to be."""
    lazy = {
        storage: tensor
        for storage, tensor in loaded.lazy_storages.items()
        if storage in before.lazy_storages or storage not in before.storage_nbytes
    }
    return Inventory(
        objects=loaded.objects,
        entries=[replace(entry, lazy=entry.storage in lazy) for entry in loaded.entries],
        storage_nbytes=loaded.storage_nbytes,
        lazy_storages=lazy,
    )


def _with_names(error: Exception, written: Sequence[str]) -> Exception:
    text = f"These tensors, real before, were written in whole or in part: {', '.join(written)}."
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, f"{error.strerror} {text}")
    kinds = (ValueError, OSError, RuntimeError, MemoryError)
    kind = next(kind for kind in kinds if isinstance(error, kind))
    return kind(f"{error} {text}")
