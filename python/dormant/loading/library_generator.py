"""The state that the generator would have if a library had constructed in its own way.

For tensors that no file has, a library draws the numbers after those that its constructor has
drawn. On the meta device, a constructor draws only for tensors that no device context reaches,
such as `torch.Tensor(4)`, which many constructors fill with `.uniform_()`. If only the functions of
`torch.nn.init` are turned off, it draws with all other functions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from dormant._extension import _C
from dormant.tensors.identity import owns_storage
from dormant.tensors.reachable import is_tensor

# Functions that use the device of a context (torch/utils/_device.py).
_CONSTRUCTORS = frozenset(
    {
        *("empty", "empty_permuted", "empty_strided", "ones", "zeros", "full", "arange", "eye"),
        *("linspace", "logspace", "tensor", "as_tensor", "rand", "randn", "randint", "randperm"),
        *("normal", "tril_indices", "triu_indices"),
    }
)
_LIKE_ANOTHER = frozenset({"empty_like", "new_empty", "new_empty_strided"})
_MAKING = frozenset(
    {"rand", "randn", "randint", "randperm", "normal", "rand_like", "randn_like", "randint_like"}
)
_DRAWING = frozenset(
    {
        *("uniform_", "normal_", "random_", "bernoulli_", "exponential_", "cauchy_", "geometric_"),
        *("log_normal_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_", "sparse_"),
        *("kaiming_normal_", "trunc_normal_", "orthogonal_"),
    }
)


class LibraryGenerator(TorchFunctionMode):
    """Surrounds a constructor that is recorded.

    Args:
        on_meta: whether the library constructs on the meta device; otherwise it constructs on the
            CPU, with initialization turned off.

    Attributes:
        state: of PyTorch's generator for the CPU, as it would be in the library.
    """

    def __init__(self, *, on_meta: bool) -> None:
        super().__init__()
        self._constructs_on_meta = on_meta
        self.state = torch.get_rng_state()
        self._is_left_out = False
        # What each storage would hold. Kept, so that no other storage gets the same identity.
        self._on_meta: dict[int, torch.Tensor] = {}

    @contextlib.contextmanager
    def leaving_out(self) -> Iterator[None]:
        """Surrounds code that does not run on the meta device: its draws are not followed."""
        before, self._is_left_out = self._is_left_out, True
        try:
            yield
        finally:
            self._is_left_out = before

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
        if kwargs.get("generator") is None and not self._is_left_out:
            if name in _DRAWING:
                target: Any = args[0] if args else kwargs.get("tensor")
                if self._draws_for(func, target):
                    self._follow(func, torch.empty_like(target), *args[1:], **kwargs)
            elif name in _MAKING and not self._constructs_on_meta:
                self._follow(func, *args, **kwargs)
        result = func(*args, **kwargs)
        is_new = name in _LIKE_ANOTHER or (name in _CONSTRUCTORS and kwargs.get("device") is None)
        if is_new and is_tensor(result) and owns_storage(result) and _C.is_lazy(result):
            self._on_meta[_C.storage_id(result)] = result
        return result

    def _draws_for(self, func: Callable[..., Any], target: Any) -> bool:
        if not (is_tensor(target) and _C.is_lazy(target)):
            return False
        if not self._constructs_on_meta:
            return getattr(func, "__module__", "") != torch.nn.init.__name__
        # New memory, not where the device context would have put it on the meta device.
        return _C.storage_id(target) not in self._on_meta and not _C.operators(target)

    def _follow(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        here = torch.get_rng_state()
        torch.set_rng_state(self.state)
        kwargs.pop("tensor", None)  # it is the first of `args`
        try:
            with torch.no_grad():
                func(*args, **kwargs)
        finally:
            self.state = torch.get_rng_state()
            torch.set_rng_state(here)
