"""Tells exhausted memory from other errors."""

from __future__ import annotations

# The texts of c10/core/impl/alloc_cpu.cpp and of C++, if the error reaches Python as RuntimeError.
_WORDS = ("can't allocate memory", "not enough memory", "bad_alloc")


def is_exhausted_memory(error: BaseException) -> bool:
    """Whether `error` says that the process is out of memory; GPU memory has its own error."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
    )
