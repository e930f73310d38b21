"""Changes transformers' `from_pretrained` inside the context: its models keep their own values.

Since version 5, the library constructs on the meta device. Afterwards it gives unwritten memory to
everything that no file has (`_move_missing_keys_from_meta_to_device`) and calls `_init_weights`,
which also writes to loaded tensors if it does not check first (`_initialize_missing_keys`). Here,
the constructor is recorded. A tensor keeps the value of the constructor unless a file has it or
`_init_weights` sets it. Non-persistent buffers always keep it, and nothing is written to loaded
tensors.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from dormant._extension import _C
from dormant.loading.construction import Call, as_the_library, call, current
from dormant.loading.protection import Protection
from dormant.loading.transformers_sharding import cutting_last
from dormant.recording.patches import Function, Patch, declare

_MARK = "_is_hf_initialized"  # the library sets it on loaded tensors and initialized modules

# With these, it turns the tensors that it finds on the meta device into DTensors.
_DISTRIBUTED = ("distributed_config", "tp_plan", "tp_size", "device_mesh")


def _in_a_call(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(cls: Any, *args: Any, **kwargs: Any) -> Any:
        is_distributed = any(kwargs.get(name) is not None for name in _DISTRIBUTED)
        with as_the_library() if is_distributed else contextlib.nullcontext(), call() as here:
            result = original(cls, *args, **kwargs)
        if here is not None:
            here.warn(result[0] if isinstance(result, tuple) else result)
        return result

    return replacement


def _constructing_lazily(original: Function) -> Function:
    """`get_init_context` without the meta device."""

    @functools.wraps(original)
    def replacement(cls: Any, *args: Any, **kwargs: Any) -> Any:
        contexts = original(cls, *args, **kwargs)
        here = current()
        if here is None or not any(map(_is_meta, contexts)):
            return contexts
        kept = [each for each in contexts if not _is_meta(each) and not _unties(each)]
        return [*kept, _constructing(here)]

    return replacement


def _is_meta(context: Any) -> bool:
    return isinstance(context, torch.device) and context.type == "meta"


def _unties(context: Any) -> bool:
    """Whether it is the library's `no_tie_weights`.

    It disables `tie_weights` for all models, including those that the constructor loads.
    """
    return getattr(getattr(context, "func", None), "__name__", "") == "no_tie_weights"


@contextlib.contextmanager
def _constructing(here: Call) -> Iterator[None]:
    with here.constructing(on_meta=True):
        yield
    for module in here.marked:
        if hasattr(module, _MARK):
            delattr(module, _MARK)
    here.marked.clear()


def _not_while_constructing(original: Function) -> Function:
    """`tie_weights`: the file may have both of two tied tensors, so both must exist."""

    @functools.wraps(original)
    def replacement(self: Any, *args: Any, **kwargs: Any) -> Any:
        here = current()
        return (
            None if here is not None and here.is_constructing else original(self, *args, **kwargs)
        )

    return replacement


def _initializing(original: Function) -> Function:
    """`initialize_weights`, which the constructor calls, and later `from_pretrained`.

    The second call finds the modules as on the meta device: not marked by the first call.
    """

    @functools.wraps(original)
    def replacement(self: Any) -> Any:
        here = current()
        if here is None or not here.is_constructing or here.generator is None:
            return original(self)
        pending = [module for module in self.modules() if not getattr(module, _MARK, False)]
        loaded = {id(tensor): None for _, tensor in _tensors(self) if _is_loaded(here, tensor)}
        # On the meta device, the library does not do this (`init_weights`).
        with here.generator.leaving_out(), here.protecting(Protection(self, loaded)):
            result = original(self)
        here.marked += [module for module in pending if getattr(module, _MARK, False)]
        return result

    return replacement


def _initializing_a_module(original: Function) -> Function:
    @functools.wraps(original)
    def replacement(self: Any, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        here = current()
        if here is None or here.protection is None or getattr(module, _MARK, False):
            return original(self, module, *args, **kwargs)
        # One rule may read what another one has written.
        with here.protection.around(module):
            return original(self, module, *args, **kwargs)

    return replacement


def _among_the_constructed(original: Function) -> Function:
    """`_load_pretrained_model`, which replaces constructed tensors by loaded ones."""

    @functools.wraps(original)
    def replacement(
        model: Any, state_dict: Any, files: Any, load_config: Any, *args: Any, **kwargs: Any
    ) -> Any:
        here = current()
        if here is None or not here.has_constructed:
            with cutting_last(load_config):
                return original(model, state_dict, files, load_config, *args, **kwargs)
        names: dict[int, list[str]] = {}
        for name, tensor in _tensors(model):
            names.setdefault(id(tensor), []).append(name)
        here.shared = [group for group in names.values() if len(group) > 1]
        info, index = original(model, state_dict, files, load_config, *args, **kwargs)
        if "disk" in (load_config.device_map or {}).values():
            _leave_on_disk(model, load_config.device_map, info.missing_and_mismatched())
        return info, index

    return replacement


def _leave_on_disk(model: Any, device_map: Any, missing: set[str]) -> None:
    """Moves to the meta device what accelerate reads from files on demand."""
    library: Any = sys.modules["transformers.modeling_utils"]
    missing = missing | {name for name, _ in model.named_non_persistent_buffers()}
    for name, tensor in list(_tensors(model)):
        is_there = name not in missing and not hasattr(tensor, _MARK)
        if is_there and library.get_device(device_map, name) == "disk":
            meta = torch.empty_like(tensor, device="meta")
            library._load_parameter_into_model(model, name, meta)


def _keeping_the_constructed(original: Function) -> Function:
    """`_move_missing_keys_from_meta_to_device`, if nothing is on the meta device."""

    @functools.wraps(original)
    def replacement(
        self: Any, missing_keys: Iterable[str], device_map: Any, *args: Any, **kwargs: Any
    ) -> None:
        here = current()
        if here is None or not here.has_constructed:
            original(self, missing_keys, device_map, *args, **kwargs)
            return
        library: Any = sys.modules["transformers.modeling_utils"]
        missing = set(missing_keys) - self.all_tied_weights_keys.keys()
        buffers = {name for name, _ in self.named_non_persistent_buffers()}
        tensors = dict(_tensors(self))
        twins = {name: group for group in here.shared for name in group}
        made: dict[int, torch.Tensor] = {}
        for name, tensor in tensors.items():
            if name not in missing | buffers:
                continue
            device = torch.device(library.get_device(device_map, name, valid_torch_device=True))
            if tensor.device == device and _is_loaded(here, tensor):
                setattr(tensor, _MARK, True)
                continue
            loaded = [
                tensors[twin] for twin in twins.get(name, ()) if hasattr(tensors[twin], _MARK)
            ]
            if loaded:  # the file has it under another name
                new = loaded[0]
            elif id(tensor) in made:
                new = made[id(tensor)]
            else:
                new = _as_new(tensor, device)
            library._load_parameter_into_model(self, name, new)
            made[id(tensor)] = self.get_parameter_or_buffer(name)

    return replacement


def _as_new(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor as the library creates it, with the values that it does not have."""
    if tensor.device.type == "meta":  # a quantizer put it there
        return torch.empty_like(tensor, device=device)
    is_part = tensor._is_view() or _C.storage_nbytes(tensor) != tensor.nbytes
    return (tensor.data.clone() if is_part else tensor.data).to(device)


def _leaving_what_was_loaded(original: Function) -> Function:
    """`_initialize_missing_keys`."""

    @functools.wraps(original)
    def replacement(self: Any, *args: Any, **kwargs: Any) -> Any:
        here = current()
        if here is None or not here.has_constructed:
            return original(self, *args, **kwargs)
        names: dict[int, str | None] = {}
        for name, tensor in _tensors(self):
            if _is_loaded(here, tensor):
                setattr(tensor, _MARK, True)
                names[id(tensor)] = name
        # A rule gives them the constructor's values, if it is right.
        names |= {id(buffer): None for _, buffer in self.named_non_persistent_buffers()}
        with here.protecting(Protection(self, names)):
            return original(self, *args, **kwargs)

    return replacement


def _tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _is_loaded(here: Call, tensor: torch.Tensor) -> bool:
    return (
        getattr(tensor, _MARK, False)
        or id(tensor) in here.loaded_inside
        or (_C.is_lazy(tensor) and bool(_C.sources(tensor)))
    )


declare(
    *(
        Patch("transformers.modeling_utils:PreTrainedModel", name, reason, wrap)
        for name, reason, wrap in (
            ("from_pretrained", "its parts do different things for different callers", _in_a_call),
            ("get_init_context", "constructs on the meta device", _constructing_lazily),
            ("tie_weights", "is disabled for all models during the call", _not_while_constructing),
            ("initialize_weights", "marks what must be initialized again", _initializing),
            ("_initialize_weights", "overwrites loaded tensors", _initializing_a_module),
            (
                "_load_pretrained_model",
                "unties tensors",
                _among_the_constructed,
            ),
            (
                "_move_missing_keys_from_meta_to_device",
                "replaces constructed tensors with uninitialized memory",
                _keeping_the_constructed,
            ),
            ("_initialize_missing_keys", "overwrites loaded tensors", _leaving_what_was_loaded),
        )
    )
)
