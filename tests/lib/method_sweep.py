"""Calls every method of a tensor or a storage, and every function of torch, with a few arguments.

Run as a program: `method_sweep.py eager|lazy OWNER NAME...` prints a JSON line before and after
each call, so that whoever reads them knows which call ended the process.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

KINDS: dict[str, Callable[[], torch.Tensor]] = {
    "float": lambda: torch.randn(4, 4),
    "int": lambda: torch.arange(16).view(4, 4).clone(),
    "bool": lambda: torch.randn(4, 4) > 0,
    "complex": lambda: torch.randn(4, 4, dtype=torch.complex64),
}
# "same" is another tensor (or storage) made in the same way, "real" one made eagerly.
ARGUMENTS: tuple[tuple[object, ...], ...] = ((), (2,), ("same",), ("real",), (0, 1), ((4, 4),))

OWNERS: dict[str, Any] = {
    "Tensor": torch.Tensor,
    "UntypedStorage": torch.UntypedStorage,
    "TypedStorage": torch.storage.TypedStorage,
    "torch": torch,
}
# What cannot be compared: uninitialized memory, addresses, pickles (tested by themselves), names
# that make no call, and functions that change the process.
_SKIPPED = re.compile(
    r"__(init|new|init_subclass|subclasshook|class|del|delattr|dir|weakref|module|doc|dict|setattr"
    r"|getattribute|sizeof|hash|reduce|reduce_ex|getstate|repr|dlpack|dlpack_c_exchange_api|format"
    r"|deepcopy)__|(_typed_|untyped_)?storage|_reduce_ex_internal|is_(pinned|shared)|_?data_ptr"
    r"|const_data_ptr|_cdata|name|register_.*hook|_make_.*|_fix_weakref|type|new(_empty.*)?"
    r"|empty.*|resize.*|_resize.*|cuda|xpu|mtia|mps|ipu|hpu|_new_.*|_free_weak_ref|_expired"
    r"|_set_cdata|_weak_ref|_shared_.*|_share_.*|_release_.*|_set_from_file|from_(file|buffer)"
    r"|_swap_data_ptr_|_get_legacy_storage_class|_find_new_device|_get_shared_fd"
)
_SKIPPED_FUNCTIONS = re.compile(
    r"_.*|compile|load|save|export|fork|wait|cond|while_loop|rand.*|normal|manual_seed|seed"
    r"|initial_seed|set_.*|use_deterministic_algorithms|import_ir_module.*|to_dlpack"
    # its packed bytes hold addresses and memory that nobody initialized
    r"|fbgemm_pack_gemm_matrix_fp16"
)


def names(owner: str) -> list[str]:
    """The attributes of an owner that are worth calling."""
    found = [name for name in dir(OWNERS[owner]) if not _SKIPPED.fullmatch(name)]
    if owner != "torch":
        return found
    return [
        name
        for name in found
        if callable(getattr(torch, name))
        and not isinstance(getattr(torch, name), type)
        and not _SKIPPED_FUNCTIONS.fullmatch(name)
    ]


def _shown(value: object) -> object:
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_quantized:
            return repr(value)
        plain = value.detach().resolve_conj().resolve_neg()
        return [str(value.dtype), list(value.shape), repr(plain.tolist())]
    if isinstance(value, (list, tuple)):
        return [_shown(item) for item in value]
    if isinstance(value, torch.UntypedStorage):
        return bytes(value).hex()
    if isinstance(value, torch.storage.TypedStorage):
        return list(value)
    return re.sub(r"0x[0-9a-f]+", "ADDRESS", repr(value))


def _call(owner: str, name: str, kind: str, arguments: tuple[object, ...], lazy: bool) -> object:
    def make() -> torch.Tensor:
        torch.manual_seed(0)
        return KINDS[kind]()

    def make_subject() -> Any:
        if lazy:
            import dormant

            with dormant.lazy_init():
                tensor = make()
        else:
            tensor = make()
        if owner == "UntypedStorage":
            return tensor.untyped_storage(), tensor
        return (tensor._typed_storage() if owner == "TypedStorage" else tensor), tensor

    subject, tensor = make_subject()
    extra = [
        make_subject()[0] if argument == "same" else make() if argument == "real" else argument
        for argument in arguments
    ]
    attribute = getattr(OWNERS[owner], name)
    torch.manual_seed(1)
    try:
        if callable(attribute) and owner.startswith(("Tensor", "Untyped", "Typed")):
            result = getattr(subject, name)(*extra)  # as code calls it; the class has PyTorch's own
        elif callable(attribute):
            result = attribute(subject, *extra)
        elif arguments or not hasattr(attribute, "__get__"):
            return "no call"
        else:
            result = attribute.__get__(subject)
        return [_shown(result), _shown(tensor)]
    except Exception as error:  # whatever it is, both have to raise it
        return {"raised": type(error).__name__}


def _calls(owner: str, chosen: list[str]) -> Iterator[tuple[str, str, tuple[object, ...]]]:
    kinds = ["float"] if "Storage" in owner else list(KINDS)
    for name in chosen:
        for kind in kinds:
            for arguments in ARGUMENTS:
                yield name, kind, arguments


def main() -> None:
    """Runs the calls named on the command line."""
    warnings.simplefilter("ignore")
    mode, owner, *chosen = sys.argv[1:]
    for name, kind, arguments in _calls(owner, chosen):
        print(json.dumps([name, kind, repr(arguments)]), flush=True)
        print(json.dumps(_call(owner, name, kind, arguments, mode == "lazy")), flush=True)


if __name__ == "__main__":
    main()
