"""Where the generator would be if a constructor had run on the meta device.

There almost nothing draws, so a library draws what a file lacks from the numbers that come first.
What draws even so are tensors that no device context reaches: those of `torch.Tensor(4)`, which
many constructors fill by `.uniform_()`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from dormant._extension import _C
from dormant.tensors.identity import owns_storage
from dormant.tensors.reachable import is_tensor

_LIKE_ANOTHER = frozenset({"empty_like", "new_empty", "new_empty_strided"})
_DRAWING = frozenset(
    {
        *("uniform_", "normal_", "random_", "bernoulli_", "exponential_", "cauchy_", "geometric_"),
        *("log_normal_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "sparse_"),
        *("kaiming_normal_", "trunc_normal_", "orthogonal_"),
    }
)


class LibraryGenerator(TorchFunctionMode):
    """A context around a constructor that is recorded.

    Attributes:
        state: of PyTorch's generator for the CPU, had it been constructed on the meta device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.state = torch.get_rng_state()
        # By storage, what would be there. Kept, so that no other storage gets such an identity.
        self._on_meta: dict[int, torch.Tensor] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Calls `func`, and follows what it draws."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _DRAWING:
            target = args[0] if args else kwargs.get("tensor")
            if kwargs.get("generator") is None and self._is_off_meta(target):
                self._follow(func, target, args[1:], kwargs)
        result = func(*args, **kwargs)
        takes_device = kwargs.get("device") is None and func in _device_constructors()
        is_new = takes_device or name in _LIKE_ANOTHER
        if is_new and is_tensor(result) and owns_storage(result) and _C.is_lazy(result):
            self._on_meta[_C.storage_id(result)] = result
        return result

    def _is_off_meta(self, target: Any) -> bool:
        """Whether it is new memory, and not from where the context would have put it on meta."""
        return (
            is_tensor(target)
            and _C.is_lazy(target)
            and _C.storage_id(target) not in self._on_meta
            and not _C.operators(target)
        )

    def _follow(
        self, func: Callable[..., Any], target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        here = torch.get_rng_state()
        torch.set_rng_state(self.state)
        try:
            with torch.no_grad():
                others = {key: value for key, value in kwargs.items() if key != "tensor"}
                func(torch.empty_like(target), *args, **others)
        finally:
            self.state = torch.get_rng_state()
            torch.set_rng_state(here)
