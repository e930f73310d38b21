"""A limit on memory that the system enforces."""

from __future__ import annotations

import resource

import torch


def limit_memory(nbytes: int) -> None:
    """Bounds what this process may allocate, all it has already included.

    RLIMIT_DATA counts private writable memory, whether touched or not; mapped files and code, which
    the system can take back at any time, it does not count.

    Raises:
        NotImplementedError: this system lets the process allocate more.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (nbytes, nbytes))
    try:
        torch.empty(nbytes, dtype=torch.uint8)
    except RuntimeError:
        return
    raise NotImplementedError("this system does not enforce RLIMIT_DATA")
