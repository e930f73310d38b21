"""The line of reports and summaries about random numbers."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch

from dormant._extension import _C

_FAST_PATH = "Philox 4x32-10, not PyTorch's values"


def random_path(tensors: Iterable[torch.Tensor], values: str = "exact") -> str:
    """Describes the code that draws the random numbers of lazy tensors; "" if they need none.

    Args:
        tensors: lazy tensors, with their histories.
        values: as for `materialize`.
    """
    if values == "empty" or not any(
        _draws(name) for each in tensors for name in _C.operators(each)
    ):
        return ""
    return _FAST_PATH if values == "fast" else _C.exact_path()


@cache
def _draws(operator: str) -> bool:
    """Whether an operator, such as "aten::bernoulli_.float", draws random numbers."""
    namespace, _, name = operator.partition("::")
    name, _, overload = name.partition(".")
    packet = getattr(getattr(torch.ops, namespace), name)
    return torch.Tag.nondeterministic_seeded in getattr(packet, overload or "default").tags
