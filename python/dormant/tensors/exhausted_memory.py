"""How exhausted memory is told from other errors."""

from __future__ import annotations

# What c10/core/impl/alloc_cpu.cpp and C++ say, where it reaches Python as a RuntimeError.
_WORDS = ("can't allocate memory", "not enough memory", "bad_alloc")


def is_exhausted_memory(error: BaseException) -> bool:
    """Whether `error` says that the process found no memory; a GPU's memory has its own error."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)
    )
